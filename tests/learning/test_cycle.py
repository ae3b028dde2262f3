from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from app.domain import Normalisation, Phase, Progress
from app.errors import (
    InvalidInputSpec,
    InvalidWeights,
    InvariantBroken,
    NothingToTrain,
    TrainingDiverged,
)
from app.learning import course as module
from app.learning import criteria, reading, rows
from app.learning.architectures import build, load_strictly, prunable_parameters
from app.learning.cycle import CycleInput, CycleResult, Examples, Parent, initial_version
from app.learning.evaluation import evaluate
from app.learning.normalisation import Preparation
from app.learning.plan import Plan
from app.learning.recipe import FullReplay, Magnitude, Recipe
from app.learning.rows import Rows
from app.learning.schedules import density_at, kept_at
from espalier.formats import checkpoint
from espalier.formats.canonical import exact
from espalier.formats.megabatch import is_validation
from tests.learning.cases import (
    CPU,
    Snapshot,
    clusters,
    events_of,
    first_cycle,
    gradual,
    images,
    next_cycle,
    noisy,
    parent_of,
    run,
    same_arrays,
    same_result,
    second_cycle,
    small_recipe,
    spec_of,
)


class Killed(Exception):
    """The worker is gone."""


def stream(recipe: Recipe, cycles: int, make: Callable[[int], Examples] = clusters) -> list[CycleResult]:
    given = first_cycle(recipe, make(1))
    results = [run(given)]
    for number in range(2, cycles + 1):
        given = next_cycle(given, results[-1], make(number))
        results.append(run(given))
    return results


# -- density, nesting, stage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["snip", "snip-absolute", "magnitude", "random"])
def test_every_stage_has_the_planned_density_and_nests(criterion: str) -> None:
    recipe = small_recipe(criterion={"name": criterion})
    before = None
    for stage, result in enumerate(stream(recipe, 6), start=1):
        assert result.stage == result.depth == stage
        assert result.target_density == density_at(recipe.schedule, stage)
        assert result.kept == kept_at(result.target_density, result.total)
        assert result.kept == sum(int(mask.sum()) for mask in result.masks.values())
        for name, mask in result.masks.items():
            assert not result.arrays[name][~mask].any()
            assert before is None or not (mask & ~before[name]).any()
        before = result.masks


def test_a_ramp_prunes_step_by_step_while_it_trains() -> None:
    given = second_cycle(gradual(epochs=3))
    result = run(given)
    steps = events_of(result, "mask.pruned")
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and steps[0]["steps"] == 4
    assert steps[0]["optimizer_step"] >= 1 and steps[-1]["kept"] == result.kept
    (trained,) = events_of(result, "network.trained")
    assert steps[-1]["optimizer_step"] == math.ceil(trained["steps"] / 2)
    for before, after in pairwise(steps):
        assert before["mask_digest_after"] == after["mask_digest_before"] and before["kept"] > after["kept"]
    assert all(step["planned"] == step["kept"] for step in steps)
    assert steps[0]["scored"] == "gradients of training" and 0 <= steps[1]["mask_agreement"] <= 1


@pytest.mark.parametrize("schedule", ["factor", "linear", "cubic", "examples", "auto", "app", "one-shot"])
def test_every_schedule_prunes_to_the_weight_and_nests(schedule: str) -> None:
    recipe = gradual().model_copy(update={"schedule": Recipe.resolve({"schedule": {"name": schedule}}).schedule})
    before = None
    for result in stream(recipe, 3):
        assert (
            result.kept == kept_at(result.target_density, result.total) == sum(m.sum() for m in result.masks.values())
        )
        for name, mask in result.masks.items():
            assert not result.arrays[name][~mask].any()
            assert before is None or not (mask & ~before[name]).any()
        before = result.masks


def test_a_held_cycle_trains_and_keeps_its_mask_and_its_stage() -> None:
    given = second_cycle(gradual())
    result = run(replace(given, hold="accuracy fell"))
    assert given.parent is not None and same_arrays(result.masks, dict(given.parent.masks))
    assert result.stage == given.parent.stage and result.depth == given.parent.depth + 1
    assert events_of(result, "mask.held")[0]["reason"] == "accuracy fell" and not events_of(result, "mask.pruned")


def test_half_a_step_prunes_half_as_much() -> None:
    given = second_cycle(gradual())
    assert given.parent is not None
    parent = sum(int(mask.sum()) for mask in given.parent.masks.values())
    whole, half = run(given), run(replace(given, scale=0.5))
    assert parent - half.kept == pytest.approx((parent - whole.kept) / 2, abs=1)
    assert half.stage == given.parent.stage == whole.stage - 1


def test_a_cycle_of_one_optimizer_step_is_scored_before_it() -> None:
    result = run(first_cycle(gradual(epochs=1, minibatch=64)))
    (step,) = events_of(result, "mask.pruned")
    assert step["optimizer_step"] == 0 and step["sample_size"] > 0 and step["scored"].startswith("a sample")
    assert result.kept == kept_at(result.target_density, result.total) < result.total


def test_a_mask_that_is_not_the_planned_one_fails_the_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_running = module.rank_running
    monkeypatch.setattr(module, "rank_running", lambda *a: rank_running(*a[:-1], a[-1] - 1))
    with pytest.raises(InvariantBroken, match="weights are kept where"):
        run(second_cycle(gradual()))


def test_at_the_last_stage_pruning_ends_and_the_stage_goes_on() -> None:
    *_, fourth, fifth = stream(small_recipe(), 5)
    assert (fourth.stage, fifth.stage) == (4, 5)
    assert events_of(fourth, "mask.pruned") and not events_of(fifth, "mask.pruned")
    assert same_arrays(fourth.masks, fifth.masks)


def test_dense_never_prunes_nor_advances_the_stage() -> None:
    first, second = stream(small_recipe(schedule={"name": "constant"}), 2)
    assert (first.stage, second.stage, first.depth, second.depth) == (0, 0, 1, 2)
    assert second.kept == second.total and not events_of(second, "mask.pruned")
    assert all(mask.all() for mask in second.masks.values())


def test_a_schedule_that_asks_for_more_than_is_left_keeps_what_is_left() -> None:
    given = second_cycle(small_recipe(schedule={"name": "one-shot", "target": 0.1}))
    loosened = replace(given, recipe=small_recipe(schedule={"name": "one-shot", "target": 0.9}))
    result = run(loosened)
    assert result.target_density == result.kept / result.total and result.kept == kept_at(0.1, result.total)


def test_the_audit_event_tells_the_whole_pruning_step() -> None:
    given = second_cycle(small_recipe())
    result = run(given)
    assert given.parent is not None
    (step,) = events_of(result, "mask.pruned")
    assert list(step) == [
        "stage", "step", "steps", "optimizer_step", "criterion", "schedule", "pace", "distribution", "target_density",
        "planned", "realised_density", "kept", "total", "layers", "score_quantiles", "threshold", "scored",
        "sample_digest", "sample_size", "batchnorm_mode", "seed", "mask_agreement", "mask_agreement_by_layer",
        "remedies", "mask_digest_before", "mask_digest_after",
    ]  # fmt: skip
    assert (step["steps"], step["optimizer_step"], step["pace"], step["planned"]) == (1, 0, "at-start", result.kept)
    assert (step["stage"], step["step"], step["criterion"], step["schedule"]) == (2, 1, "snip", "app")
    assert step["kept"] == result.kept and step["realised_density"] == result.kept / result.total
    assert step["mask_digest_before"] == checkpoint.mask_digest(dict(given.parent.masks))
    assert step["mask_digest_after"] == checkpoint.mask_digest(result.masks)
    assert [y["kept_before"] for y in step["layers"]] == [int(m.sum()) for m in given.parent.masks.values()]
    assert step["sample_size"] == round(0.2 * 60), "a share of the newest megabatch"
    low, *_, high = step["score_quantiles"]
    assert low <= step["threshold"] <= high


def test_events_are_plain_values_that_the_audit_log_can_hold() -> None:
    for event in run(second_cycle(small_recipe())).events:
        assert json.loads(json.dumps(event.parameters)) == event.parameters
        exact(event.parameters)


def test_the_checkpoint_codec_takes_the_result_and_predicts_alike() -> None:
    result = run(second_cycle(small_recipe()))
    manifest = {
        "network": small_recipe().network.model_dump(mode="json"),
        "input": {"shape": [8], "normalisation": {"signed_log": False, "clip": 8.0}},
    }
    assert result.normalisation is not None
    statistics = {"mean": result.normalisation.mean, "std": result.normalisation.std}
    saved = checkpoint.decode(checkpoint.encode(result.arrays, result.masks, manifest, statistics))
    examples = clusters(9)
    network = build(small_recipe().network, (8,), 3)
    assert load_strictly(network, saved.arrays) == []
    prepared = Preparation(spec_of(examples), result.normalisation, small_recipe().network, CPU)(examples.x)
    np.testing.assert_array_equal(saved.predict(examples.x), network(prepared).argmax(1))


# -- what is scored, tested, trained and judged ------------------------------------------------------------------------


def test_the_trained_weights_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: dict[str, np.ndarray] = {}

    def spy(options: object, network: Any, parameters: Any, sample: object, seed: int) -> Any:
        scored.update({name: weight.detach().numpy().copy() for name, weight in parameters.items()})
        return {name: weight.detach().abs() for name, weight in parameters.items()}

    given = second_cycle(small_recipe(criterion={"name": "magnitude"}))
    monkeypatch.setitem(criteria.CRITERIA._implementations, Magnitude, spy)
    run(given)
    assert given.parent is not None
    assert all(np.array_equal(value, given.parent.arrays[name]) for name, value in scored.items())


def test_scoring_other_weights_than_the_parents_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(options: object, network: Any, parameters: Any, sample: object, seed: int) -> Any:
        for weight in parameters.values():
            weight.data.uniform_()
        return {name: weight.detach().abs() for name, weight in parameters.items()}

    given = second_cycle(small_recipe(criterion={"name": "magnitude"}))
    monkeypatch.setitem(criteria.CRITERIA._implementations, Magnitude, fresh)
    with pytest.raises(InvariantBroken, match=r"scored weights of layers\.0\.weight are not the trained ones"):
        run(given)


def test_scores_come_from_training_rows_of_all_megabatches() -> None:
    given = second_cycle(small_recipe(criterion={"name": "snip", "sample": 1.0}))
    plan = Plan(given, CPU)
    ids = plan.training.ids[plan.sample(plan.sample_size, "scores-0").numpy()]
    assert not is_validation(ids, given.recipe.validation_share).any()
    first, second = (set(examples.ids) for examples in given.megabatches)
    assert len(ids) == 60 and first & set(ids) and second & set(ids)


def test_the_champion_is_tested_on_all_rows_of_each_new_megabatch_before_training() -> None:
    first = first_cycle(small_recipe())
    result = run(first)
    drifted = replace(clusters(3), x=clusters(3).x[::-1].copy())
    given = next_cycle(first, result, clusters(2), drifted)
    tested = run(given).prequential
    network = build(given.recipe.network, (8,), 3)
    assert load_strictly(network, result.arrays) == []
    prepare = Preparation(given.input, result.normalisation, given.recipe.network, CPU)
    for examples in (clusters(2), drifted):
        expected = evaluate(network, Rows([examples], [np.ones(60, bool)], prepare, device=CPU, classes=3))
        assert tested[examples.number] == (expected.accuracy, expected.loss, 60, 0)
    assert list(tested) == [2, 3]
    assert run(given).metrics["prequential_accuracy"] == pytest.approx((tested[2][0] + tested[3][0]) / 2)


def test_what_was_tested_is_not_tested_again_and_without_a_parent_nothing_is() -> None:
    given = second_cycle(small_recipe())
    result = run(replace(given, untested=frozenset()))
    assert result.prequential == {} and "prequential_accuracy" not in result.metrics
    assert run(first_cycle(small_recipe())).prequential == {}


def test_training_and_validation_never_share_an_example() -> None:
    a, b = clusters(1), clusters(2)
    twice = Examples(2, np.concatenate([b.x, a.x]), np.concatenate([b.y, a.y]), np.concatenate([b.ids, a.ids]))
    plan = Plan(first_cycle(small_recipe(), a, twice), CPU)
    assert plan.selection is not None
    judged = plan._validation(plan._verdict_half, plan.normalisation)
    parts = [set(part.ids.tolist()) for part in (plan.training, plan.selection, judged)]
    assert all(parts)
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert set.union(*parts) == set(twice.ids.tolist())


def test_statistics_come_from_training_rows_of_the_first_megabatch_and_freeze() -> None:
    examples = clusters(1)
    given = first_cycle(small_recipe(), examples)
    result = run(given)
    kept = ~is_validation(examples.ids, given.recipe.validation_share)
    assert result.normalisation is not None
    np.testing.assert_allclose(result.normalisation.mean, examples.x[kept].mean(axis=0), rtol=1e-4, atol=1e-6)
    after = run(next_cycle(given, result, replace(clusters(2), x=clusters(2).x + 50)))
    assert after.normalisation is not None
    np.testing.assert_array_equal(after.normalisation.mean, result.normalisation.mean)


RUNNING = replace(spec_of(clusters(1)), normalisation=Normalisation("running"))


def trainable(share: float, *examples: Examples) -> np.ndarray:
    return np.concatenate([e.x[~is_validation(e.ids, share)] for e in examples]).astype(np.float64)


@pytest.mark.parametrize("replay", ["full", "none"])
def test_running_statistics_are_those_of_all_training_rows_so_far(replay: str) -> None:
    recipe = small_recipe(replay={"name": replay})
    given = first_cycle(recipe, clusters(1), input=RUNNING)
    stream, result = [clusters(1)], run(given)
    for number in (2, 3):
        moved = replace(clusters(number, 90), x=clusters(number, 90).x * 3 + 50 * number)
        stream.append(moved)
        given = next_cycle(given, result, moved)
        result = run(given)
        everything = trainable(recipe.validation_share, *stream)
        assert result.normalisation is not None and result.history.moments is not None
        assert result.history.moments.count == len(everything)
        np.testing.assert_allclose(result.normalisation.mean, everything.mean(axis=0), rtol=2e-7)
        np.testing.assert_allclose(result.normalisation.std, everything.std(axis=0), rtol=2e-7)


def test_a_cycle_from_an_older_version_goes_on_from_its_statistics() -> None:
    """What a rollback does: the statistics of the version left behind leave no trace."""
    recipe = small_recipe()
    first = first_cycle(recipe, clusters(1), input=RUNNING)
    one = run(first)
    left = run(next_cycle(first, one, replace(clusters(2), x=clusters(2).x + 1000)))
    result = run(next_cycle(first, one, clusters(3)))
    everything = trainable(recipe.validation_share, clusters(1), clusters(3))
    assert left.normalisation is not None and result.normalisation is not None
    assert left.normalisation.mean.min() > result.normalisation.mean.max()
    np.testing.assert_allclose(result.normalisation.mean, everything.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_running_statistics_go_on_where_classes_come_late() -> None:
    recipe = small_recipe()
    early = clusters(1)
    known = early.y < 2
    early = Examples(1, early.x[known], early.y[known], early.ids[known])
    given = first_cycle(recipe, early, input=replace(RUNNING, classes=("a", "b")))
    result = run(given)
    parent = replace(parent_of(result), classes=2)
    after = run(next_cycle(given, result, clusters(2), parent=parent, input=replace(RUNNING, classes=("a", "b", "c"))))
    everything = trainable(recipe.validation_share, early, clusters(2))
    assert after.normalisation is not None
    np.testing.assert_allclose(after.normalisation.mean, everything.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_a_megabatch_without_training_rows_leaves_running_statistics_as_they_are() -> None:
    given = first_cycle(small_recipe(), clusters(1), input=RUNNING)
    result = run(given)
    held = is_validation(clusters(2).ids, 0.34)
    late = Examples(2, clusters(2).x[held], clusters(2).y[held], clusters(2).ids[held])
    assert run(next_cycle(given, result, late)).history.moments == result.history.moments


def test_no_replay_trains_on_the_new_ones_alone() -> None:
    recipe = small_recipe(replay={"name": "none"})
    result = run(second_cycle(recipe))
    assert result.trained == (2,) and result.replay == {}
    (report,) = events_of(result, "network.trained")
    fresh = ~is_validation(clusters(2).ids, recipe.validation_share)
    assert report["examples"] == fresh.sum() and result.metrics["examples_seen"] == 2 * fresh.sum()


def test_full_replay_trains_on_all() -> None:
    given = second_cycle(small_recipe())
    result = run(given)
    assert result.trained == (1, 2) and list(result.replay) == [1, 2]
    for examples in given.megabatches:
        kept = ~is_validation(examples.ids, given.recipe.validation_share)
        assert np.array_equal(result.replay[examples.number], kept), "validation rows are never trained on"


def test_metrics_are_those_of_the_published_weights_on_rows_that_were_not_selected_on() -> None:
    given = second_cycle(small_recipe())
    result = run(given)
    plan = Plan(given, CPU)
    network = build(given.recipe.network, (8,), 3)
    assert load_strictly(network, result.arrays) == []
    judged = plan._validation(1, plan.normalisation)
    assert (judged.ids & np.uint64(1)).all()
    answers, training = evaluate(network, judged), evaluate(network, plan.training)
    assert result.metrics["validation_accuracy"] == answers.accuracy
    assert result.metrics["validation_loss"] == answers.loss
    assert result.metrics["train_accuracy"] == training.accuracy
    assert result.metrics["generalization_gap"] == training.accuracy - answers.accuracy
    assert given.parent is not None and load_strictly(network, given.parent.arrays) == []
    assert result.metrics["champion_validation_accuracy"] == evaluate(network, judged).accuracy


def test_selecting_the_last_epoch_judges_on_all_validation_rows() -> None:
    given = second_cycle(small_recipe(training={"select": "last"}))
    result = run(given)
    (judged,) = events_of(result, "cycle.judged")
    held = sum(int(is_validation(e.ids, 0.34).sum()) for e in given.megabatches)
    assert judged["rules"][0]["examples"] == held
    assert result.metrics["best_epoch"] == result.metrics["epochs"] == 2


def lopsided(bit: int, n: int = 40) -> Examples:
    """A megabatch whose validation rows all have the same lowest bit, so that they cannot be halved."""
    examples = clusters(1, 200)
    fits = ~is_validation(examples.ids, 0.34) | ((examples.ids & np.uint64(1)) == bit)
    return Examples(1, examples.x[fits][:n], examples.y[fits][:n], examples.ids[fits][:n])


@pytest.mark.parametrize("bit", [0, 1])
def test_validation_that_cannot_be_halved_is_said(bit: int) -> None:
    result = run(first_cycle(small_recipe(), lopsided(bit)))
    assert result.verdict.passed
    assert any("too few to halve" in reason for reason in result.verdict.reasons)
    assert "validation_accuracy" in result.metrics


def test_no_validation_rows_are_said_and_keep_the_last_epoch() -> None:
    examples = clusters(1)
    keep = ~is_validation(examples.ids, 0.34)
    result = run(first_cycle(small_recipe(), Examples(1, examples.x[keep], examples.y[keep], examples.ids[keep])))
    assert result.verdict.passed and "no validation examples" in result.verdict.reasons[0]
    assert "validation_accuracy" not in result.metrics and result.metrics["best_epoch"] == 2


def test_a_drop_withholds_the_version() -> None:
    """Labels turned round: what is learned from them answers the champion's validation rows wrongly."""
    recipe = small_recipe(training={"epochs": 25, "select": "last"}, schedule={"name": "constant"})
    first = first_cycle(recipe, clusters(1, 400, noise=0.1))
    poison = clusters(2, 1200, noise=0.1)
    poison = replace(poison, y=(poison.y + 1) % 3)
    champion = run(first)
    result = run(next_cycle(first, champion, poison, recipe=recipe))
    assert champion.metrics["validation_accuracy"] > 0.95
    assert result.prequential[2].accuracy < 0.05
    assert result.verdict.passed, "on the poisoned rows, which are the majority, the champion is worse"
    kept = replace(next_cycle(first, champion, clusters(3, 40)), recipe=small_recipe(
        training={"epochs": 1, "learning_rate": 1e-6}, schedule={"name": "one-shot", "target": 0.01}
    ))  # fmt: skip
    starved = run(kept)
    assert not starved.verdict.passed
    assert any(reason.startswith("accuracy-drop: accuracy") for reason in starved.verdict.reasons)


# -- stopping and going on ---------------------------------------------------------------------------------------------


def with_own_network(**training: Any) -> CycleInput:
    recipe = small_recipe(
        network={"name": "custom", "architecture": "noisy"},
        training={"minibatch": 8, "label_smoothing": 0.1} | training,
    )
    return second_cycle(recipe, images, architecture=noisy)


CYCLES: dict[str, Callable[[], CycleInput]] = {
    "mlp, sgd, best epoch": lambda: second_cycle(small_recipe()),
    "mlp, adamw, last, cosine": lambda: second_cycle(
        small_recipe(training={"optimizer": {"name": "adamw"}, "select": "last", "rate": {"name": "cosine"}})
    ),
    "cnn, sgd": lambda: second_cycle(small_recipe(network={"name": "cnn", "channels": [4, 6]}), images),
    "own network with dropout, batch norm and buffers, adamw, best epoch": lambda: with_own_network(
        optimizer={"name": "adamw"}, epochs=3
    ),
    "own network, bfloat16, magnitude": lambda: with_own_network(precision="bfloat16"),
    "first cycle": lambda: first_cycle(small_recipe()),
    "espalier": lambda: second_cycle(gradual(epochs=3)),
    "espalier, cnn, adamw, best epoch": lambda: second_cycle(
        gradual(epochs=3, select="best-epoch", optimizer={"name": "adamw"}, network={"name": "cnn", "channels": [4]}),
        images,
    ),
    "ramp of snip, own network": lambda: second_cycle(
        gradual({"name": "snip", "stability": {"at_least": 0.9}}, network={"name": "custom", "architecture": "noisy"}),
        images,
        architecture=noisy,
    ),
    "iterated snip at the start": lambda: second_cycle(small_recipe(criterion={"name": "snip", "iterations": 3})),
    "dense": lambda: second_cycle(small_recipe(schedule={"name": "constant"})),
    "running statistics": lambda: second_cycle(small_recipe(), input=RUNNING),
    "by blocks": lambda: second_cycle(gradual(epochs=3, reading=BLOCKS)),
    "by blocks, a share of new examples": lambda: second_cycle(
        gradual(epochs=3, reading=BLOCKS).model_copy(update={"replay": FullReplay(new_share=0.7)})
    ),
}

BLOCKS = {"name": "blocks", "block_bytes": 96, "pool_bytes": 480}
"""Of 3 and 15 of the examples that ``clusters`` makes."""


class Saboteur:
    """Takes the snapshot of the ``n``-th call and kills the worker there."""

    def __init__(self, n: int | None = None) -> None:
        self.n, self.calls, self.snapshot = n, 0, b""
        self.phases: list[Phase] = []

    def __call__(self, progress: Progress, snapshot: Snapshot) -> None:
        self.phases.append(progress.phase)
        if self.calls == self.n:
            self.snapshot = snapshot()
            raise Killed
        self.calls += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CYCLES)
def test_killed_at_any_call_and_resumed_gives_the_same_bits(name: str) -> None:
    given = CYCLES[name]()
    count = Saboteur()
    whole = run(given, count)
    assert count.phases == sorted(count.phases, key=list(Phase).index) and set(count.phases) == set(Phase)
    for n in range(count.calls):
        killed = Saboteur(n)
        with pytest.raises(Killed):
            run(given, killed)
        assert same_result(run(given, snapshot=killed.snapshot), whole), f"call {n}, {killed.phases[-1]}"


@pytest.mark.parametrize("name", ["by blocks, a share of new examples", "mlp, sgd, best epoch"])
def test_killed_while_examples_are_read_ahead_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held in memory, and a span is two minibatches long."""
    whole = run(CYCLES[name]())
    monkeypatch.setattr(rows, "HELD_BYTES", 0)
    monkeypatch.setattr(reading, "SPAN_BYTES", 16 * 32)
    given, count = CYCLES[name](), Saboteur()
    assert same_result(run(given, count), whole)
    for n in range(0, count.calls, 3):
        killed = Saboteur(n)
        with pytest.raises(Killed):
            run(given, killed)
        assert same_result(run(given, snapshot=killed.snapshot), whole), f"call {n}, {killed.phases[-1]}"


@pytest.mark.parametrize("name", ["mlp, sgd, best epoch", next(n for n in CYCLES if n.startswith("own network with"))])
def test_killed_again_and_again_it_still_gets_there(name: str) -> None:
    """Every run goes on for a few calls from the snapshot before; only judging is done in one go."""
    given = CYCLES[name]()
    whole, snapshot = run(given), None
    for _ in range(200):
        killed = Saboteur(6)
        try:
            result = run(given, killed, snapshot)
        except Killed:
            snapshot = killed.snapshot
        else:
            assert same_result(result, whole)
            return
    pytest.fail("no progress")


def test_taking_snapshots_changes_nothing() -> None:
    given = with_own_network()
    taken: list[bytes] = []
    assert same_result(run(given, lambda progress, snapshot: taken.append(snapshot())), run(given))
    assert len(taken) > 10


def test_a_snapshot_is_plain_safetensors(tmp_path: Path) -> None:
    killed = Saboteur(14)
    with pytest.raises(Killed):
        run(second_cycle(small_recipe()), killed)
    (tmp_path / "snapshot").write_bytes(killed.snapshot)
    with safe_open(tmp_path / "snapshot", "np") as file:
        assert {key.split("/")[0] for key in file.keys()} >= {"network", "mask", "optimizer", "random"}  # noqa: SIM118


def test_a_snapshot_of_another_cycle_is_refused() -> None:
    killed = Saboteur(2)
    with pytest.raises(Killed):
        run(second_cycle(small_recipe()), killed)
    for other in (second_cycle(small_recipe(seed=8)), replace(second_cycle(small_recipe()), attempt=1)):
        with pytest.raises(InvariantBroken, match="the snapshot was taken in another cycle"):
            run(other, snapshot=killed.snapshot)


def test_the_caller_keeps_its_random_numbers() -> None:
    given = with_own_network()
    before = torch.get_rng_state()
    run(given)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(Killed):
        run(given, Saboteur(20))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_random_numbers_do_not_matter() -> None:
    given = with_own_network()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = run(given)
        torch.manual_seed(2)
        assert same_result(one, run(given))


def test_seed_depth_and_attempt_change_the_numbers() -> None:
    given = second_cycle(small_recipe())
    base = run(given)
    assert given.parent is not None
    for other in (replace(given, attempt=1), replace(given, parent=replace(given.parent, depth=5))):
        assert not same_arrays(run(other).arrays, base.arrays)


def test_sets_too_large_to_hold_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = second_cycle(small_recipe())
    held = run(given)
    monkeypatch.setattr(rows, "HELD_BYTES", 0)
    assert same_result(run(given), held)


def test_progress_counts_every_optimizer_step() -> None:
    seen: list[Progress] = []
    result = run(second_cycle(small_recipe()), lambda progress, snapshot: seen.append(progress))
    steps = [p.step for p in seen if p.phase is Phase.TRAIN]
    assert sorted(set(steps)) == list(range(seen[-1].steps + 1))
    assert seen[-1].epoch == seen[-1].epochs == 2
    assert seen[0].density != seen[-1].density == result.kept / result.total
    assert all(p.loss is not None for p in seen if p.phase is Phase.TRAIN and p.step)


# -- version 0 ---------------------------------------------------------------------------------------------------------


def weights(seed: int = 3) -> dict[str, np.ndarray]:
    network = build(small_recipe().network, (8,), 3, seed=seed)
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def test_version_0_is_the_uploaded_weights() -> None:
    given = first_cycle(small_recipe(), initial=weights())
    result = initial_version(given, device=CPU)
    assert same_arrays(result.arrays, weights())
    assert (result.stage, result.depth, result.target_density, result.kept) == (0, 0, 1.0, result.total)
    assert result.metrics == {} and result.events == () and result.normalisation is None and result.verdict.passed


def test_version_0_has_the_fixed_normalisation() -> None:
    fixed = Normalisation(name="fixed", mean=(0.0,) * 8, std=(2.0,) * 8)
    given = first_cycle(small_recipe(), initial=weights(), input=replace(spec_of(clusters(1)), normalisation=fixed))
    result = initial_version(given, device=CPU)
    assert result.normalisation is not None and (result.normalisation.std == 2).all()


def test_the_cycle_after_version_0_prunes_its_weights() -> None:
    given = first_cycle(small_recipe(), initial=weights())
    zero = initial_version(given, device=CPU)
    result = run(replace(given, parent=parent_of(zero), initial=None))
    assert (result.stage, result.depth) == (1, 1)
    assert result.normalisation is not None
    unscaled = replace(spec_of(clusters(1)), normalisation=Normalisation())
    network = build(given.recipe.network, (8,), 3)
    assert load_strictly(network, zero.arrays) == []
    prepare = Preparation(unscaled, None, given.recipe.network, CPU)
    expected = evaluate(network, Rows([clusters(1)], [np.ones(60, bool)], prepare, device=CPU, classes=3))
    assert result.prequential[1].accuracy == expected.accuracy, "its clients do not standardise yet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers.0.bias": None}, r"missing layers\.0\.bias"),
        ({"more": np.zeros(1, np.float32)}, "unexpected more"),
        ({"layers.0.bias": np.zeros(3, np.float32)}, r"layers\.0\.bias has shape \(3,\), not \(12,\)"),
        ({"layers.0.bias": np.full(12, np.nan, np.float32)}, r"layers\.0\.bias is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, np.ndarray | None], words: str) -> None:
    given = {name: value for name, value in (weights() | change).items() if value is not None}
    with pytest.raises(InvalidWeights, match=f"the initial weights do not fit the network mlp: {words}"):
        initial_version(first_cycle(small_recipe(), initial=given), device=CPU)


def test_version_0_needs_weights() -> None:
    with pytest.raises(InvalidWeights, match="no initial weights"):
        initial_version(first_cycle(small_recipe()), device=CPU)


# -- what cannot work --------------------------------------------------------------------------------------------------


def test_a_parent_of_another_network_is_refused() -> None:
    given = replace(second_cycle(small_recipe()), recipe=small_recipe(network={"name": "mlp", "hidden": [5]}))
    with pytest.raises(InvalidWeights, match="the parent's weights do not fit the network mlp"):
        run(given)


def test_a_parent_whose_mask_does_not_hold_is_refused() -> None:
    given = second_cycle(small_recipe())
    assert given.parent is not None
    masks = {name: mask.copy() for name, mask in given.parent.masks.items()}
    next(iter(masks.values()))[:] = False
    with pytest.raises(InvariantBroken, match="pruned weights are not zero"):
        run(replace(given, parent=replace(given.parent, masks=masks)))


def test_divergence_is_told_and_nothing_comes_out() -> None:
    decay = {"name": "sgd", "weight_decay": 100.0}
    recipe = small_recipe(training={"epochs": 60, "learning_rate": 10.0, "optimizer": decay})
    with pytest.raises(TrainingDiverged, match=r"lower training\.learning_rate"):
        run(first_cycle(recipe))


def test_an_incomplete_input_is_refused() -> None:
    with pytest.raises(InvalidInputSpec, match="not complete"):
        run(first_cycle(small_recipe(), input=replace(spec_of(clusters(1)), classes=None)))


@pytest.mark.parametrize("examples", [[], [clusters(1, 40)]])
def test_nothing_to_train_on_is_told(examples: list[Examples]) -> None:
    held = [
        Examples(e.number, e.x[chosen], e.y[chosen], e.ids[chosen])
        for e in examples
        for chosen in [is_validation(e.ids, 0.34)]
    ]
    given = first_cycle(small_recipe(), clusters(1))
    with pytest.raises(NothingToTrain, match="upload more, or lower validation_share"):
        run(replace(given, megabatches=held, new=frozenset(e.number for e in held)))


def test_the_parent_is_not_changed() -> None:
    given = second_cycle(small_recipe())
    assert isinstance(given.parent, Parent)
    before = {name: array.copy() for name, array in given.parent.arrays.items()}
    run(given)
    assert same_arrays(before, dict(given.parent.arrays))


def test_read_only_arrays_will_do(tmp_path: Path) -> None:
    examples = clusters(1)
    for name in ("x", "y", "ids"):
        np.save(tmp_path / f"{name}.npy", getattr(examples, name))
    mapped = Examples(1, *(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "ids")))
    assert same_result(run(first_cycle(small_recipe(), mapped)), run(first_cycle(small_recipe(), examples)))


@pytest.mark.parametrize(("name", "side"), [("resnet18", 8), ("resnet50", 8), ("vgg16", 32)])
def test_all_networks_go_through_a_cycle(name: str, side: int) -> None:
    recipe = small_recipe(network={"name": name, "width": 2}, training={"epochs": 1})
    result = run(second_cycle(recipe, lambda number: images(number, 12, side)))
    assert result.kept == kept_at(density_at(recipe.schedule, 2), result.total)
    assert result.masks.keys() == prunable_parameters(build(recipe.network, (1, side, side), 3)).keys()
