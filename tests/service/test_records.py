"""What real cycles write down about the versions that they make, recounted from what went in and what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from app.domain import Progress, Version
from app.service import comparison, custody, evaluation, history, ingest, models, outcomes, release, rerun, retention
from app.service.erasure import Asked, erase
from app.service.inputs import decode_inputs
from app.service.lease import Running
from espalier.formats import checkpoint, megabatch
from espalier.formats.custody import (
    EVALUATION,
    FALLEN_BEFORE,
    KEPT_WEIGHT,
    VALIDATION,
    Answers,
    Falls,
    Samples,
    Use,
    decode_answers,
    decode_falls,
    decode_samples,
    encode_falls,
)
from tests.service.conftest import ACTOR, LIMITS, RECIPE, House, blob_of_examples
from tests.service.test_models import SPEC, network_weights
from tests.service.test_training import DiesAt, Killed

HELD_OUT = 0.3
SAMPLED: dict[str, Any] = {
    **RECIPE,
    "preset": "app-paper",
    "validation_share": HELD_OUT,
    "guardrails": [],
    "criterion": {"name": "snip", "sample": 0.2},
    "replay": {"name": "reservoir", "examples": 50},
}
GRADUAL: dict[str, Any] = {
    **RECIPE,
    "validation_share": HELD_OUT,
    "guardrails": [],
    "criterion": {"name": "taylor"},
    "pace": {"name": "ramp", "steps": 3},
    "checkpoint": {"values": "float16"},
}
PARTS = ("inputs", "samples", "answers", "falls")


def read(house: House, version: Version, part: str) -> bytes:
    digest = getattr(version, part)
    assert digest is not None
    return house.store.blobs.read(digest)


def samples_of(house: House, version: Version) -> Samples:
    return decode_samples(read(house, version, "samples"))


def answers_of(house: House, version: Version) -> Answers:
    return decode_answers(read(house, version, "answers"))


def falls_of(house: House, version: Version) -> Falls:
    return decode_falls(read(house, version, "falls"))


def version_of(house: House, number: int) -> Version:
    return release.get_version(house.store, "gas", str(number)).version


def weights(house: House, version: Version) -> checkpoint.Checkpoint:
    return checkpoint.decode(house.store.blobs.read(version.checkpoint))


def events(house: House, version: Version, kind: str) -> list[dict[str, Any]]:
    with house.store.reading() as tx:
        found = [entry.document["parameters"] for entry in tx.audit.entries("gas", None, 1000, kind).items]
    return [each for each in found if each["cycle"] == version.cycle]


def arrays_of(house: House, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = ingest.get_megabatch(house.store, "gas", number)[0]
    return tuple(np.load(house.store.blobs.path(digest)) for digest in (found.x, found.y, found.ids))  # type: ignore[return-value]


def set_evaluation(house: House, x: np.ndarray, y: np.ndarray) -> None:
    with house.store.blobs.receiver(LIMITS.max_bytes) as receiver:
        receiver.write(megabatch.encode(x, y))
        evaluation.set_evaluation(house.store, "gas", receiver.finish(), limits=LIMITS, actor=ACTOR)


def uses(samples: Samples, number: int, flag: Use) -> set[int]:
    ids, use = samples[number]
    return set(ids[(use & flag) > 0].tolist())


@pytest.fixture(params=[SAMPLED, GRADUAL], ids=["sampled", "gradual"])
def grown(house: House, request: pytest.FixtureRequest) -> House:
    """Three versions; an evaluation set that holds ten examples of the third megabatch comes before it."""
    house.create("gas", request.param)
    house.grow(2)
    third, other = blob_of_examples(3), blob_of_examples(9)
    set_evaluation(house, *(np.concatenate([a[:10], b]) for a, b in zip(third, other, strict=True)))
    house.upload(x=third[0], y=third[1])
    ended = house.cycle()
    assert ended is not None and ended.version == 3, ended
    return house


def test_every_sample_is_told_with_what_was_done_with_it(grown: House) -> None:
    evaluated = set(megabatch.example_ids(blob_of_examples(3)[0][:10]).tolist())
    before: Samples = {}
    for number in (1, 2, 3):
        version = version_of(grown, number)
        found = samples_of(grown, version)
        ids = arrays_of(grown, number)[2]
        held = set(ids[megabatch.is_validation(ids, HELD_OUT)].tolist())
        test = evaluated if number == 3 else set()
        assert uses(found, number, Use.NEW) == set(ids.tolist())
        assert uses(found, number, Use.VALIDATION) == held
        assert uses(found, number, Use.TEST) == test
        assert uses(found, number, Use.TRAINED) == set(ids.tolist()) - held - test
        for old in before:
            replayed = uses(before, old, Use.KEPT)
            assert uses(found, old, Use.REPLAYED) == uses(found, old, Use.TRAINED) == replayed
            assert not uses(found, old, Use.NEW)
        trained = sum(len(uses(found, n, Use.TRAINED)) for n in found)
        assert events(grown, version, "network.trained")[0]["examples"] == trained
        kept = sum(len(uses(found, n, Use.KEPT)) for n in found)
        assert events(grown, version, "replay.kept")[0]["examples"] == kept
        before = found


def test_the_log_names_the_samples_that_were_scored(grown: House) -> None:
    """Its digests are over ids of samples that the file marks, and of no others."""
    for number in (1, 2, 3):
        version = version_of(grown, number)
        found = samples_of(grown, version)
        scored = np.concatenate([ids[(use & Use.SCORED) > 0] for ids, use in found.values()])
        digest = "sha256:" + hashlib.sha256(np.sort(scored).astype(">u8").tobytes()).hexdigest()
        last = events(grown, version, "mask.pruned")[-1]
        assert (last["sample_digest"], last["sample_size"]) == (digest, len(scored))
        assert 0 < len(scored) <= sum(len(uses(found, n, Use.TRAINED)) for n in found)


def test_every_entry_of_a_pruning_step_holds_all_that_it_must(grown: House) -> None:
    steps = [step for number in (1, 2, 3) for step in events(grown, version_of(grown, number), "mask.pruned")]
    for step in steps:
        assert {"stage", "criterion", "schedule", "target_density", "realised_density", "seed"} <= step.keys()
        assert {"score_quantiles", "threshold", "sample_digest", "sample_size"} <= step.keys()
        assert {"mask_digest_before", "mask_digest_after", "mask_agreement"} <= step.keys()
        assert step["mask_agreement_by_layer"].keys() == {layer["name"] for layer in step["layers"]}
        assert all({"kept_before", "kept", "total"} <= layer.keys() for layer in step["layers"])


def test_weights_fell_when_the_log_says_so(grown: House) -> None:
    before: Falls = {}
    for number in (1, 2, 3):
        version = version_of(grown, number)
        falls, saved = falls_of(grown, version), weights(grown, version)
        assert {name: array.shape for name, array in falls.items()} == {n: m.shape for n, m in saved.masks.items()}
        for step in events(grown, version, "mask.pruned"):
            standing = {name: (array == KEPT_WEIGHT) | (array > step["step"]) for name, array in falls.items()}
            standing = {name: kept & (falls[name] != FALLEN_BEFORE) for name, kept in standing.items()}
            assert checkpoint.mask_digest({n: standing[n] for n in saved.masks}) == step["mask_digest_after"]
            assert [int(standing[layer["name"]].sum()) for layer in step["layers"]] == [
                layer["kept"] for layer in step["layers"]
            ]
        for name, array in falls.items():
            assert np.array_equal(array == KEPT_WEIGHT, saved.masks[name])
            gone = before[name] != KEPT_WEIGHT if before else np.zeros(array.shape, np.bool_)
            assert np.array_equal(array == FALLEN_BEFORE, gone)
        before = falls


def test_answers_are_those_of_the_published_weights(grown: House) -> None:
    version = version_of(grown, 3)
    saved, found = weights(grown, version), answers_of(grown, version)
    x, y, ids = (np.concatenate(parts) for parts in zip(*(arrays_of(grown, n) for n in (1, 2, 3)), strict=True))
    held = megabatch.is_validation(ids, HELD_OUT)
    _expect(found.of(VALIDATION), saved, x[held], y[held], ids[held])
    third, other = blob_of_examples(3), blob_of_examples(9)
    x, y = (np.concatenate([a[:10], b]) for a, b in zip(third, other, strict=True))
    _expect(found.of(EVALUATION), saved, x, y, megabatch.example_ids(x))
    told = found.of(EVALUATION)
    assert version.metrics["evaluation_accuracy"] == pytest.approx(float((told.labels == told.answers).mean()))


def _expect(found: Answers, saved: checkpoint.Checkpoint, x: np.ndarray, y: np.ndarray, ids: np.ndarray) -> None:
    order = np.argsort(ids)
    logits = saved.logits(x[order])
    sure = np.exp(logits - logits.max(1, keepdims=True))
    sure = (sure / sure.sum(1, keepdims=True)).max(1)
    assert np.array_equal(found.ids, ids[order])
    assert np.array_equal(found.labels, y[order])
    assert np.array_equal(found.answers, saved.predict(x[order]))
    assert np.allclose(found.confidence, sure, atol=1e-5)


def test_inputs_name_all_that_the_cycle_was_given(grown: House) -> None:
    version, parent = version_of(grown, 3), version_of(grown, 2)
    inputs = decode_inputs(read(grown, version, "inputs"))
    assert inputs.encode() == read(grown, version, "inputs")
    assert (inputs.model, inputs.version, inputs.cycle) == ("gas", 3, version.cycle)
    assert (inputs.recipe_digest, inputs.seed) == (version.recipe_digest, grown.manifest(3)["seed"])
    assert inputs.parent is not None
    assert (inputs.parent.version, inputs.parent.checkpoint) == (2, parent.checkpoint)
    assert (inputs.parent.state, inputs.parent.passed) == (parent.state, True)
    assert inputs.environment.items() >= grown.manifest(3)["environment"].items()
    assert [fed.number for fed in inputs.megabatches] == [1, 2, 3]
    for fed in inputs.megabatches:
        found = ingest.get_megabatch(grown.store, "gas", fed.number)[0]
        assert (fed.digest, fed.x, fed.y, fed.ids) == (found.digest, found.x, found.y, found.ids)
    kept = {n: len(uses(samples_of(grown, parent), n, Use.KEPT)) for n in (1, 2)}
    assert {fed.number: fed.rows.count for fed in inputs.megabatches if fed.rows} == kept
    assert inputs.evaluation is not None and inputs.evaluation.revision == 1


def test_what_was_written_down_stands_in_the_log_and_is_looked_after(grown: House) -> None:
    version = version_of(grown, 3)
    with grown.store.reading() as tx:
        entry = tx.audit.entries("gas", None, 1000, "version.published").items[-1]
        rows = tx.custody.megabatches_of(tx.ledger.model("gas"), 3, None, 9).items
        named = tx.ledger.references([getattr(version, part) for part in PARTS])
    assert set(entry.document["outputs"]) >= {getattr(version, part) for part in PARTS} == named
    samples = samples_of(grown, version)
    told = {number: int(np.bitwise_or.reduce(use)) for number, (_, use) in samples.items()}
    assert {row.megabatch: row.use for row in rows} == told
    assert history.examine(grown.store) == []
    path = grown.store.blobs.path(str(version.falls))
    path.chmod(0o644)
    path.write_bytes(encode_falls({}))
    assert [(f.kind, f.subject) for f in history.examine(grown.store)] == [("blob", "version 3 of gas")]


def test_retention_leaves_what_was_written_down(grown: House) -> None:
    first = version_of(grown, 1)
    grown.settings = grown.settings.model_copy(update={"keep_versions": 1, "orphan_grace_seconds": 0.0})
    assert retention.retain(grown.store, grown.settings, ACTOR) == 1
    outcomes.sweep(grown.store, grown.settings, ACTOR)
    assert not grown.store.blobs.has(first.checkpoint)
    assert all(read(grown, first, part) for part in PARTS)
    assert history.examine(grown.store) == []


def test_versions_are_compared_and_data_is_followed(grown: House) -> None:
    sought = comparison.Sought(kinds=list(comparison.Kind))
    found = comparison.compare(grown.store, "gas", "2", "3", sought=sought, after=None, limit=1000)
    before, now = (answers_of(grown, version_of(grown, number)) for number in (2, 3))
    tallies = {tally.source: tally for tally in found.tallies}
    assert tallies["validation"].total.examples == len(np.intersect1d(before.ids, now.of(VALIDATION).ids))
    assert (tallies["evaluation"].total.examples, tallies["evaluation"].only_now) == (0, len(now.of(EVALUATION)))
    _, page = custody.versions_of(grown.store, "gas", 1, after=None, limit=9, inherited=False)
    assert [used.version for used in page.items] == [1, 2, 3]


def test_an_erasure_takes_labels_and_answers_and_leaves_ids_and_uses(grown: House) -> None:
    before = [version_of(grown, number) for number in (1, 2, 3)]
    second = arrays_of(grown, 2)[2]
    third, evaluated = arrays_of(grown, 3)[2], answers_of(grown, before[2]).of(EVALUATION).ids
    single = {int(third[megabatch.is_validation(third, HELD_OUT)][-1]), int(evaluated[0])}
    erase(grown.store, "gas", Asked(megabatches=(2,), samples=tuple(single)), reason="asked to", actor=ACTOR)
    gone = single | set(second.tolist())
    for old in before:
        now, told = version_of(grown, old.number), answers_of(grown, version_of(grown, old.number))
        assert (now.inputs, now.samples, now.falls) == (old.inputs, old.samples, old.falls)
        assert not gone & set(told.of(VALIDATION).ids.tolist())
        assert not single & set(told.of(EVALUATION).ids.tolist())
        if old.number == 1:
            assert now.answers == old.answers
        else:
            assert not grown.store.blobs.has(str(old.answers))
    assert len(answers_of(grown, version_of(grown, 3)).of(VALIDATION)) > 0
    assert history.examine(grown.store) == []
    report = rerun.rerun(
        grown.store, rerun.subject_of(grown.store, "gas", "3"), until=None, device=torch.device("cpu"), observe=quiet
    )
    assert (report.outcome, report.findings) == (rerun.Outcome.GONE, ())


def quiet(progress: Progress, snapshot: Callable[[], bytes]) -> None:
    """An observer that looks away."""


def test_version_0_saw_nothing(house: House) -> None:
    with house.store.blobs.receiver(2**20) as receiver:
        receiver.write(save(network_weights()))
        kept = models.keep_initial_weights(house.store, receiver.finish())
    house.create("gas", {**SAMPLED, "initial_weights": kept.digest}, **SPEC)
    ended = house.cycle()
    assert ended is not None and ended.version == 0, ended
    version = version_of(house, 0)
    assert samples_of(house, version) == {}
    assert len(answers_of(house, version)) == 0
    assert all((array == KEPT_WEIGHT).all() for array in falls_of(house, version).values())
    assert decode_inputs(read(house, version, "inputs")).initial_weights == kept.digest


@pytest.mark.parametrize("recipe", [SAMPLED, GRADUAL], ids=["sampled", "gradual"])
@pytest.mark.parametrize("step", [9, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 17))])
def test_a_cycle_that_was_killed_writes_the_same(
    house: House, second_house: House, recipe: dict[str, Any], step: int
) -> None:
    for each in (house, second_house):
        each.create("gas", recipe)
        each.grow(1)
        each.upload(seed=2)
    second_house.cycle()
    house.settings = house.settings.model_copy(update={"snapshot_seconds": 0.0})
    house.running = DiesAt("doomed", step)
    with pytest.raises(Killed):
        house.cycle()
    outcomes.reclaim(house.store, house.settings, ACTOR, list)
    house.running = Running("second")
    ended = house.cycle()
    assert ended is not None and ended.version == 2, ended
    one, two = version_of(house, 2), version_of(second_house, 2)
    assert [getattr(one, part) for part in PARTS] == [getattr(two, part) for part in PARTS]
