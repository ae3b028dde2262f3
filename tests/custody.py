"""Versions that say what they were made from, without training: samples and answers as a cycle would write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from app.domain import CHAMPION, Model, Version
from app.store.database import Store
from espalier.formats.custody import EVALUATION, VALIDATION, Answers, Use, encode_answers, encode_samples, uses_of
from tests.builders import ACTOR, claim, make_cycle, version_draft

FRESH = Use.TRAINED | Use.NEW
OLD = Use.TRAINED | Use.REPLAYED
HELD_BACK = Use.VALIDATION | Use.NEW

Samples = Mapping[int, Mapping[int, int]]
"""By megabatch: id to use."""

Answered = Mapping[int, tuple[int, int, float]]
"""By id: label, answer, confidence."""


def answers(validation: Answered, evaluation: Answered) -> Answers:
    rows = [
        (id, *told, code)
        for code, each in ((VALIDATION, validation), (EVALUATION, evaluation))
        for id, told in each.items()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    kinds = ("u8", "i8", "i8", "f4", "u1")
    return Answers(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def make_recorded(
    store: Store,
    model: Model,
    samples: Samples | None,
    *,
    validation: Answered | None = None,
    evaluation: Answered | None = None,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
) -> Version:
    """Publish a version, and make it the champion; without samples or answers it is one of before they were written."""
    cycle = make_cycle(store, model)
    claimed = claim(store)
    assert claimed is not None
    assert (claimed.model.name, claimed.cycle.number) == (model.name, cycle.number)
    draft = version_draft(store, f"{model.name} {claimed.next_version}")
    draft = replace(draft, manifest={**draft.manifest, "input": {"classes": list(classes)}})
    if samples is not None:
        arrays = {n: (np.array([*ids], "u8"), np.array([*ids.values()], "u1")) for n, ids in samples.items()}
        draft = replace(draft, samples=store.blobs.put(encode_samples(arrays)), uses=uses_of(arrays))
    if validation is not None or evaluation is not None:
        found = answers(validation or {}, evaluation or {})
        draft = replace(draft, answers=store.blobs.put(encode_answers(found)))
    with store.transaction(ACTOR) as tx:
        version = tx.ledger.publish_version(claimed, draft)
        about = {"cycle": claimed.cycle.number, "version": version.number}
        tx.audit.append("version.published", model=model.name, parameters=about, outputs=[version.checkpoint])
        tx.ledger.move_alias(claimed.model, CHAMPION, version.number, expected_revision=None, reason="passed")
        tx.audit.append("alias.moved", model=model.name)
    return version
