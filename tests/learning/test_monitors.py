"""Monitors in whole cycles: what is compared with what, what it leaves, and how guardrails act on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.errors import InvalidRecipe
from app.learning.cycle import CycleInput, CycleResult, Examples
from app.learning.guardrails import judge
from app.learning.history import Ancestor, History
from app.learning.monitors import FEWEST, gap_rise
from app.learning.plan import Plan
from app.learning.recipe import GapChange, GapMonitor, LabelShift, PrequentialDrop
from tests.learning.cases import (
    CPU,
    clusters,
    events_of,
    first_cycle,
    images,
    next_cycle,
    run,
    same_arrays,
    same_result,
    second_cycle,
    small_recipe,
)
from tests.learning.test_cycle import Killed, Saboteur
from tests.learning.test_guardrails import evidence

OFF: dict[str, Any] = {name: {"on": False} for name in ("inputs", "labels", "accuracy", "gap")}
LOOSE: dict[str, Any] = {name: {"confidence": 0.99} for name in ("inputs", "labels", "accuracy")}

EMBEDDED: dict[str, Any] = LOOSE | {"inputs": {"of": "embedding", "confidence": 0.99}}


def moved(number: int, n: int = 60, feature: int = 5) -> Examples:
    """One of the features lies elsewhere."""
    there = clusters(number, n)
    there.x[:, feature] += 6 * np.logspace(-2, 2, 8)[feature]
    return there


def of_one_class(number: int) -> Examples:
    there = clusters(number, 180)
    chosen = there.y == 0
    return Examples(number, there.x[chosen], there.y[chosen], there.ids[chosen])


def drift_of(result: CycleResult, number: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = result.report["drift"][str(number)]
    return found


def watched(*guardrails: dict[str, Any], **over: Any) -> Any:
    return small_recipe(monitoring=LOOSE, guardrails=list(guardrails), replay={"name": "full"}, **over)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_feature_that_moved_is_found_and_named() -> None:
    first = first_cycle(watched())
    found = drift_of(run(next_cycle(first, run(first), moved(2))))
    assert found["inputs"]["alarm"]
    assert found["inputs"]["of"] == "features"
    assert found["inputs"]["features"][0]["index"] == 5
    assert found["inputs"]["width"] == 8
    assert not found["labels"]["alarm"]


def test_the_version_and_its_time_line_tell_the_largest_figures() -> None:
    first = first_cycle(watched())
    result = run(next_cycle(first, run(first), clusters(2), moved(3)))
    effects = [drift_of(result, number)["inputs"]["effect"] for number in (2, 3)]
    assert result.metrics["input_drift"] == max(effects) == effects[1]
    assert result.metrics["alarms"] >= 1
    assert json.loads(json.dumps(result.report)) == result.report


def test_the_first_megabatch_has_nothing_to_be_compared_with() -> None:
    result = run(first_cycle(watched()))
    assert result.report["drift"] == {}
    assert "input_drift" not in result.metrics
    assert result.report["gap"] is not None


def test_what_is_off_is_not_measured_and_training_is_the_same() -> None:
    on, off = (run(second_cycle(small_recipe(monitoring=how))) for how in ({}, OFF))
    assert drift_of(off) == {"inputs": None, "labels": None, "accuracy": None}
    assert off.report["gap"] is None
    assert not {"input_drift", "label_shift", "prequential_drop", "gap_change", "alarms"} & off.metrics.keys()
    assert same_arrays(on.arrays, off.arrays)


def test_the_accuracy_on_arrival_is_compared_with_the_parents_validation() -> None:
    first = first_cycle(watched())
    before = run(first)
    result = run(next_cycle(first, before, clusters(2)))
    accuracy, parent = drift_of(result)["accuracy"], before.history.ancestors[-1]
    assert accuracy["statistic"] == result.prequential[2].accuracy
    assert accuracy["reference"] == parent.examples
    assert accuracy["effect"] == pytest.approx(max(0, parent.accuracy - result.prequential[2].accuracy))


def test_a_retried_cycle_looks_at_drift_again_though_its_megabatch_was_tested() -> None:
    given = second_cycle(watched())
    again = run(replace(given, untested=frozenset()))
    assert again.prequential == {}
    assert drift_of(again) == drift_of(run(given))


def test_images_are_compared_as_the_champion_sees_them_with_what_it_never_trained_on() -> None:
    recipe = small_recipe(network={"name": "cnn", "channels": [4]}, replay={"name": "full"}, monitoring=EMBEDDED)
    first = first_cycle(recipe, images(1, n=240))
    dark = replace(images(2, n=240), x=(images(2, n=240).x // 6).astype(np.uint8))
    given = next_cycle(first, run(first), dark)
    found = drift_of(run(given))["inputs"]
    assert (found["of"], found["width"], found["examples"]) == ("embedding", 4 * 16, 240)
    held = Plan(given, CPU).held_out(images(1, n=240))
    assert found["reference"] == held.sum() < 240
    assert found["alarm"]


def test_an_embedding_is_asked_for_where_there_is_one() -> None:
    recipe = small_recipe(network={"name": "mlp", "hidden": [6]}, monitoring={"inputs": {"of": "embedding"}})
    assert drift_of(run(second_cycle(recipe)))["inputs"]["of"] == "embedding"
    with pytest.raises(InvalidRecipe, match=r"monitoring.inputs.of to features"):
        small_recipe(network={"name": "custom", "architecture": "mine"}, monitoring={"inputs": {"of": "embedding"}})


def test_too_few_examples_are_not_compared() -> None:
    first = first_cycle(watched())
    few = run(next_cycle(first, run(first), clusters(2, FEWEST - 1)))
    assert drift_of(few)["inputs"] is None
    assert drift_of(few)["labels"] is not None


# -- the past ----------------------------------------------------------------------------------------------------------


def test_the_past_is_the_newest_megabatches_of_the_lineage_and_a_rollback_rewinds_it() -> None:
    recipe = small_recipe(monitoring=LOOSE | {"past": 1}, replay={"name": "full"})
    first = first_cycle(recipe)
    one = run(first)
    second = next_cycle(first, one, moved(2, 90))
    two = run(second)
    assert not drift_of(run(next_cycle(second, two, moved(3, 90))), 3)["inputs"]["alarm"]  # against megabatch 2
    assert drift_of(run(next_cycle(first, one, moved(3, 90))), 3)["inputs"]["alarm"]  # against megabatch 1


def test_samples_are_bounded_and_repeat() -> None:
    recipe = small_recipe(monitoring={"inputs": {"sample": 50}}, replay={"name": "full"})
    given = next_cycle(first := first_cycle(recipe, clusters(1, 200)), run(first), clusters(2, 300))
    result = run(given)
    assert (drift_of(result)["inputs"]["examples"], drift_of(result)["inputs"]["reference"]) == (50, 50)
    assert same_result(result, run(given))


# -- guardrails --------------------------------------------------------------------------------------------------------


def lineage(recipe: Any, *arrivals: Examples) -> list[CycleResult]:
    given = first_cycle(recipe)
    results = [run(given)]
    for examples in arrivals:
        given = next_cycle(given, results[-1], examples)
        results.append(run(given))
    return results


def test_hold_keeps_the_density_in_the_very_cycle_and_publishes_it() -> None:
    recipe = watched({"name": "input-drift", "recover_after": 1})
    one, two = lineage(recipe, moved(2))
    assert two.kept == one.kept
    assert same_arrays(one.masks, two.masks)
    assert two.verdict.passed and two.verdict.action == ""
    assert "new inputs are unlike those of the past: megabatch 2 differs most in feature 5" in two.verdict.reasons[0]
    assert [trip.rule for trip in two.trips] == ["input-drift"]
    (held,) = events_of(two, "mask.held")
    assert held["reason"].startswith("input-drift tripped (new inputs are unlike")
    assert two.stage == one.stage


def test_pruning_goes_on_once_the_figure_has_recovered_for_long_enough() -> None:
    rule = {"name": "input-drift", "recover_after": 2}
    recipe = small_recipe(monitoring=LOOSE | {"past": 1}, guardrails=[rule], replay={"name": "full"})
    results = lineage(recipe, *(moved(number, 90) for number in (2, 3, 4, 5)))
    kept = [result.kept for result in results]
    assert kept[0] == kept[1] == kept[2] == kept[3] > kept[4]
    assert [bool(result.trips) for result in results] == [False, True, False, False, False]


def test_a_watch_that_needs_breaches_in_a_row_waits_for_them() -> None:
    one, two, three = lineage(watched({"name": "input-drift", "trip_after": 2}), moved(2, 90), moved(3, 90, feature=3))
    assert two.kept < one.kept and not two.trips
    assert "breached 1 of 2 times before it trips" in two.verdict.reasons[0]
    assert three.kept == two.kept and three.trips


def test_withhold_withholds() -> None:
    _, two = lineage(watched({"name": "label-shift", "then": "withhold"}), of_one_class(2))
    assert (two.verdict.passed, two.verdict.action) == (False, "withhold")
    assert "would have to change the class" in two.verdict.reasons[0]


def test_a_held_cycle_that_is_killed_and_resumed_gives_the_same_bits() -> None:
    recipe = watched({"name": "input-drift"}, pace={"name": "ramp", "steps": 4}, criterion={"name": "taylor"},
                     training={"select": "last"})  # fmt: skip
    given: CycleInput = next_cycle(first := first_cycle(recipe), run(first), moved(2))
    whole = run(given)
    assert whole.trips and not events_of(whole, "mask.pruned")
    for call in range(0, 16, 2):
        killed = Saboteur(call)
        with pytest.raises(Killed):
            run(given, killed)
        assert same_result(run(given, snapshot=killed.snapshot), whole), f"call {call}"


def test_another_rule_that_withholds_decides_the_action_alone() -> None:
    floor = {"name": "accuracy-floor", "at_least": 1.0, "confidence": 0.5, "then": "withhold"}
    _, two = lineage(watched({"name": "input-drift"}, floor), moved(2))
    assert (two.verdict.passed, two.verdict.action) == (False, "withhold")
    assert {trip.rule for trip in two.trips} == {"input-drift", "accuracy-floor"}


def test_a_watch_without_data_passes() -> None:
    judgement = judge([PrequentialDrop(), LabelShift(), GapChange()], evidence())
    assert judgement.verdict.passed and not judgement.trips
    assert "nothing to compare" in judgement.verdict.reasons[0]


def test_a_guardrail_whose_monitor_is_off_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match=r"set monitoring\.labels\.on to true") as refused:
        small_recipe(guardrails=[{"name": "label-shift"}], monitoring={"labels": {"on": False}})
    assert [pointer for pointer, _ in refused.value.errors] == ["/guardrails/0"]


# -- the gap -----------------------------------------------------------------------------------------------------------


def ancestors(*gaps: float | None) -> tuple[Ancestor, ...]:
    return tuple(Ancestor(1, 0.5, 0.9, 400, gap) for gap in gaps)


def test_a_gap_that_jumps_raises_an_alarm_and_one_within_its_noise_does_not() -> None:
    steady = ancestors(*[0.05, 0.06] * 8)
    noise = (0.9 * 0.1 / 400) ** 0.5
    for gap, alarm in ((0.06 + noise, False), (0.06 + 12 * noise, True)):
        found = gap_rise(History(ancestors=steady), ancestors(gap)[0], GapMonitor())
        assert found is not None and found.alarm is alarm


def test_versions_from_before_gaps_were_remembered_are_passed_over() -> None:
    found = gap_rise(History(ancestors=ancestors(None, None, 0.1)), ancestors(0.1)[0], GapMonitor())
    assert found is not None and found.length == 2
    assert History.from_document({**History().document(), "ancestors": [
        {"stage": 1, "density": 0.5, "accuracy": 0.9, "examples": 400}]}).ancestors == ancestors(None)  # fmt: skip


def test_the_gap_of_each_version_is_handed_on() -> None:
    one, two = lineage(watched(), clusters(2))
    assert [a.gap for a in two.history.ancestors] == [r.metrics["generalization_gap"] for r in (one, two)]
