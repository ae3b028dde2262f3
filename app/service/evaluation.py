"""Evaluation: a model's fixed labelled set that is never trained on.

Knows: how an upload becomes an evaluation set, and what else must be counted anew then. Must never know: HTTP, torch.

Laws:
    * It is received, decoded, limited and checked exactly as a megabatch is; only, it completes and extends nothing.
    * Whenever a set comes into force, every megabatch says anew how many of its examples are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.domain import Actor, EvaluationSet, InputSpec, Megabatch, MegabatchDraft, MegabatchStatus, Model
from app.errors import InputUnknown
from app.intake.arrays import Limits
from app.intake.sandbox import DecodedFiles
from app.service.ingest import check_fit, decoded_draft, reading_of
from app.service.overlap import ids_of, overlap
from app.service.removal import expect_kept, kept
from app.store.blobs import Blobs, Staged
from app.store.database import Store

_PAGE = 500


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """An evaluation set, the input spec that its values follow, and how many training examples are in it too."""

    found: EvaluationSet
    input: InputSpec
    overlap: int


def set_evaluation(
    store: Store, name: str, staged: Staged, *, limits: Limits, actor: Actor, media: str | None = None
) -> tuple[EvaluationView, bool]:
    """Decode, check and keep an upload as the model's evaluation set, instead of the one that it has, if it has one.

    Args:
        staged: the upload's bytes, durable but not yet trusted.
        limits: how much, and for how long, decoding may take.
        media: its declared media type, if any.

    Returns:
        The set in force now, and whether it is new: the arrays that are in force already change nothing.

    Raises:
        UnknownModel, InvalidMegabatch: nothing was changed.
        InputUnknown: the model does not know yet what it is fed.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        before = tx.buffer.evaluation(model)
        logged = tx.audit.head().size
    require_input(model)
    reading = replace(reading_of(model.input), extend=False)
    _, draft = decoded_draft(
        store.blobs, staged, limits, reading, lambda decoded: _fitting(model.input, decoded), media
    )
    again = before is not None and before.digest == draft.digest
    counted = {} if again else _counted(store, model, draft)
    arrays = (draft.x, draft.y, draft.ids)
    with kept(store, arrays, actor), store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        before = tx.buffer.evaluation(model)
        found, new = tx.buffer.set_evaluation(model, draft)
        if new:
            meanwhile = range(max(counted, default=0) + 1, tx.buffer.last_number(model) + 1)
            counted |= _overlaps(store.blobs, draft, tx.buffer.training_set(model, meanwhile))
            tx.buffer.set_overlaps(model, counted)
            tx.audit.append(
                "evaluation.set",
                model=name,
                parameters={
                    "revision": found.revision,
                    "digest": found.digest,
                    "replaces": before.digest if before else None,
                    "examples": found.examples,
                    "histogram": list(found.histogram),
                    "overlap": {str(number): rows for number, rows in sorted(counted.items()) if rows},
                },
                inputs=[found.x, found.y, found.ids],
            )
            expect_kept(tx, logged, arrays)
        view = EvaluationView(found, model.input, tx.buffer.evaluation_overlap(model))
    return view, new


def get_evaluation(store: Store, name: str) -> EvaluationView:
    """The evaluation set in force.

    Raises:
        UnknownModel, UnknownEvaluationSet: there is none.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        return EvaluationView(tx.buffer.evaluation_set(model), model.input, tx.buffer.evaluation_overlap(model))


def require_input(model: Model) -> None:
    """Check that an evaluation set can be compared with what the model is fed.

    Raises:
        InputUnknown: shape, dtype or classes are not known yet, with the remedy.
    """
    spec = model.input
    missing = [part for part in ("shape", "dtype", "classes") if getattr(spec, part) is None]
    if missing:
        raise InputUnknown(
            f"model {model.name!r} does not know its input's {', '.join(missing)} yet, so an evaluation set cannot be "
            f"compared with it: upload a megabatch first, or create a model that declares them as input.{missing[0]}"
            + "".join(f", input.{part}" for part in missing[1:])
        )


def _fitting(spec: InputSpec, decoded: DecodedFiles) -> InputSpec:
    if spec.features is None and decoded.features is not None and len(decoded.features) > 1:
        raise InputUnknown(
            "the model does not know yet in which order columns become features: upload a megabatch with these columns "
            "first, or create a model that declares them as input.features; or send the evaluation set as npz"
        )
    remedy = (
        "correct y, or upload a megabatch with this label first, which extends the classes"
        if spec.unseen_classes == "extend"
        else "correct y, or create a model that declares all classes as input.classes"
    )
    check_fit(spec, decoded, remedy)
    return spec


def _counted(store: Store, model: Model, draft: MegabatchDraft) -> dict[int, int]:
    """Rows of each megabatch that are in the set, by number: before any transaction, since it reads all ids."""
    counted: dict[int, int] = {}
    after: int | None = None
    while True:
        with store.reading() as tx:
            page = tx.buffer.megabatches(model.name, after, _PAGE)
        counted |= _overlaps(store.blobs, draft, page.items)
        if page.next is None:
            return counted
        after = int(page.next)


def _overlaps(blobs: Blobs, draft: MegabatchDraft, megabatches: Sequence[Megabatch]) -> dict[int, int]:
    there = [megabatch for megabatch in megabatches if megabatch.status is not MegabatchStatus.ERASED]
    held = ids_of(blobs, draft.ids) if there else None
    return {m.number: overlap(blobs, m.ids, held) for m in there if held is not None}
