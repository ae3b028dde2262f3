"""Rules against constructed evidence, and what the judge makes of findings, version after version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.domain import Layer, Phase, Progress, Trip
from app.errors import InvariantBroken, NothingToTrain, TrainingDiverged
from app.learning.cycle import CycleInput, CycleResult, events_of
from app.learning.evaluation import Evaluation
from app.learning.flops import Flops
from app.learning.guardrails import Evidence, Judgement, diverged, hold_since, judge
from app.learning.history import History, Hold
from app.learning.metrics import Measured, Retained
from app.learning.recipe import (
    AccuracyDrop,
    AccuracyFloor,
    ClassFloor,
    DensityFloor,
    Divergence,
    Forgetting,
    GeneralizationGap,
    LayerCollapse,
    MaskAgreement,
)
from espalier.formats.canonical import exact
from tests.learning.cases import (
    Snapshot,
    clusters,
    first_cycle,
    next_cycle,
    run,
    same_result,
    second_cycle,
    small_recipe,
)

LAYERS = (Layer("a", (10,), 5, 10), Layer("b", (90,), 9, 90))


def answers(correct: Sequence[bool], labels: Sequence[int] | None = None, classes: int = 3) -> Evaluation:
    """Right or wrong, one after the other."""
    given = np.zeros(len(correct), dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    predicted = np.where(correct, given, (given + 1) % classes)
    return Evaluation(0.5, classes, given, predicted, np.full(len(given), 0.5, dtype=np.float32))


def share(right: int, of: int) -> Evaluation:
    return answers([True] * right + [False] * (of - right))


def measured(**over: Any) -> Measured:
    given: dict[str, Any] = {
        "training": share(1, 1), "validation": None, "champion": None, "retained": {}, "new": frozenset({9}),
        "evaluation": None, "tested": {}, "flops": Flops(200, 100),
    }  # fmt: skip
    return Measured(**given | over)


def evidence(
    layers: tuple[Layer, ...] = LAYERS,
    history: History | None = None,
    losses: tuple[float | None, float | None] = (1.0, 0.5),
    notes: tuple[str, ...] = (),
    **over: Any,
) -> Evidence:
    return Evidence(measured(**over), layers, history or History(), *losses, notes)


def paired(lost: int, won: int, both: int = 0, neither: int = 0, **over: Any) -> Evidence:
    """Answers by how often only the champion, only the candidate, both or neither are right."""
    counts = [lost, won, both, neither]
    given: dict[str, Any] = {
        "champion": answers(np.repeat([True, False, True, False], counts)),
        "validation": answers(np.repeat([False, True, True, False], counts)),
    }
    return evidence(**given | over)


def by_class(*counts: tuple[int, int]) -> Evidence:
    """Validation answers: (right, examples) of each class."""
    labels = np.repeat(range(len(counts)), [n for _, n in counts])
    correct = [at < right for right, n in counts for at in range(n)]
    return evidence(validation=answers(correct, labels, len(counts)))


def passes(rule: object, given: Evidence) -> bool:
    return judge([rule], given).verdict.passed


def figures(rule: object, given: Evidence) -> dict[str, Any]:
    (found,) = judge([rule], given).rules
    json.dumps(exact(found))  # the audit log must be able to hold it
    return found


def reason(rule: object, given: Evidence) -> str:
    (told,) = judge([rule], given).verdict.reasons
    return told


# -- accuracy-drop -----------------------------------------------------------------------------------------------------


def test_a_drop_within_the_accepted_one_passes() -> None:
    assert passes(AccuracyDrop(at_most=0.1), paired(10, 0, both=90))
    assert not passes(AccuracyDrop(at_most=0.1), paired(11, 0, both=89))


def test_a_drop_that_may_be_chance_passes() -> None:
    few = paired(4, 0, both=6)  # p = 1/16
    assert passes(AccuracyDrop(at_most=0.1, confidence=0.95), few)
    assert not passes(AccuracyDrop(at_most=0.1, confidence=0.9), few)
    assert not passes(AccuracyDrop(at_most=0.1, confidence=0.9375), few), "at the limit it is no chance any more"


def test_half_confidence_ignores_all_but_the_drop() -> None:
    assert not passes(AccuracyDrop(at_most=0.0, confidence=0.5), paired(3, 2, both=5))
    assert passes(AccuracyDrop(at_most=0.0, confidence=0.5), paired(2, 2, both=5))


def test_a_gain_passes() -> None:
    assert passes(AccuracyDrop(at_most=0.0, confidence=0.5), paired(2, 50))


def test_the_reason_gives_figures_and_remedy() -> None:
    told = reason(AccuracyDrop(at_most=0.02), paired(20, 0, both=70, neither=10))
    assert told.startswith(
        "accuracy-drop: accuracy 0.7000 is 0.2000 below the champion's 0.9000 on the same 100 validation examples, "
        "more than the accepted 0.02 (p = 9.5e-07): "
    )
    assert "prune in smaller steps" in told


def test_without_a_champion_there_is_nothing_to_compare() -> None:
    verdict = judge([AccuracyDrop(at_most=0.0)], paired(5, 0, champion=None)).verdict
    assert verdict.passed and not verdict.reasons


# -- floors of accuracy ------------------------------------------------------------------------------------------------


def test_an_accuracy_floor_asks_for_the_exact_bound() -> None:
    """Seven of ten: the bound at 95 % is 0.9127, so 0.91 is within chance and 0.92 is not."""
    given = evidence(validation=share(7, 10))
    assert figures(AccuracyFloor(at_least=0.9), given)["upper_bound"] == pytest.approx(0.91273, abs=1e-5)
    assert passes(AccuracyFloor(at_least=0.91), given)
    assert not passes(AccuracyFloor(at_least=0.92), given)
    assert not passes(AccuracyFloor(at_least=0.9, confidence=0.5), given)


def test_an_accuracy_floor_of_one_lets_no_error_pass() -> None:
    assert passes(AccuracyFloor(at_least=1.0), evidence(validation=share(10, 10)))
    assert not passes(AccuracyFloor(at_least=1.0), evidence(validation=share(999, 1000)))


def test_an_accuracy_floor_explains_itself() -> None:
    told = reason(AccuracyFloor(at_least=0.95), evidence(validation=share(7, 10)))
    assert "accuracy 0.7000 on 10 validation examples is below the floor 0.95" in told
    assert "it is 0.9127 at most, with confidence 0.95. Train longer" in told


def test_a_class_floor_names_each_class_by_its_index() -> None:
    given = by_class((40, 50), (5, 50), (0, 0), (0, 20))
    found = figures(ClassFloor(at_least=0.5), given)
    assert (found["classes"], found["worst_class"], found["worst_accuracy"], found["below"]) == (3, 3, 0.0, [1, 3])
    told = reason(ClassFloor(at_least=0.5), given)
    assert "below the floor 0.5, and not by chance, in 2 of 3 classes: class 1 0.1000 (5 of 50 right, 0.1" in told
    assert "class 3 0.0000 (0 of 20 right, 0.1391 at most)" in told and "class 0" not in told


def test_a_class_floor_spares_a_class_of_few_examples() -> None:
    assert passes(ClassFloor(at_least=0.5), by_class((40, 50), (0, 4)))  # 0 of 4: up to 0.527
    assert not passes(ClassFloor(at_least=0.5), by_class((40, 50), (0, 5)))


def test_a_reason_names_eight_and_counts_the_rest() -> None:
    told = reason(ClassFloor(at_least=0.5), by_class(*[(0, 20)] * 11))
    assert "class 7" in told and "class 8" not in told and "and 3 more" in told
    assert figures(ClassFloor(at_least=0.5), by_class(*[(0, 20)] * 11))["below"] == list(range(11))


# -- forgetting --------------------------------------------------------------------------------------------------------


def retained(**right: int) -> dict[int, Retained]:
    return {int(name[1:]): Retained(count, 50) for name, count in right.items()}


def test_forgetting_compares_each_past_megabatch_with_its_best() -> None:
    history = History(best={1: 0.96, 2: 0.9, 9: 1.0})
    given = evidence(history=history, retained=retained(m1=30, m2=44, m9=10))
    found = figures(Forgetting(at_most=0.1), given)
    assert (found["megabatches"], found["worst_megabatch"], found["forgotten"]) == (2, 1, [1]), "9 is a new one"
    assert found["loss"] == pytest.approx(0.36)
    told = reason(Forgetting(at_most=0.1), given)
    assert "1 of 2 past megabatches are answered more than 0.1 worse than at their best: megabatch 1 0.6000" in told
    assert "0.9600 at its best (50 examples, p = " in told and "Replay more of them" in told


def test_forgetting_within_the_accepted_loss_passes() -> None:
    given = evidence(history=History(best={1: 1.0}), retained=retained(m1=45))
    assert passes(Forgetting(at_most=0.1), given), "0.1 is lost, as much as is accepted"
    assert not passes(Forgetting(at_most=0.09), given)


def test_forgetting_that_may_be_chance_passes() -> None:
    """Six of six before, four of six now: 5/22 by Fisher's test; two of six: 1/33."""
    best = History(best={1: 1.0})
    assert passes(Forgetting(), evidence(history=best, retained={1: Retained(4, 6)}))
    two = evidence(history=best, retained={1: Retained(2, 6)})
    assert figures(Forgetting(), two)["p_value"] == pytest.approx(1 / 33)
    assert not passes(Forgetting(), two)
    assert not passes(Forgetting(confidence=0.75), evidence(history=best, retained={1: Retained(4, 6)}))


def test_forgetting_allows_for_the_number_of_megabatches_asked() -> None:
    """Where one in 33 looks so by chance, one of ten does often."""
    best = History(best=dict.fromkeys(range(1, 11), 1.0))
    ten = {n: Retained(6, 6) for n in range(1, 11)} | {4: Retained(2, 6)}
    given = evidence(history=best, retained=ten, new=frozenset({11}))
    assert figures(Forgetting(), given)["p_value"] == pytest.approx(10 / 33)
    assert passes(Forgetting(), given)
    lost = evidence(history=best, retained=ten | {4: Retained(0, 6)}, new=frozenset({11}))
    assert figures(Forgetting(), lost)["p_value"] == pytest.approx(10 / 924)
    assert not passes(Forgetting(), lost)


# -- the others --------------------------------------------------------------------------------------------------------


def test_a_gap_is_between_training_and_validation() -> None:
    given = evidence(training=share(9, 10), validation=share(7, 10))
    assert passes(GeneralizationGap(at_most=0.2), given), "0.9 - 0.7 is 0.2, whatever floats say"
    assert not passes(GeneralizationGap(at_most=0.19), given)
    assert "0.9000 on the training examples and 0.7000 on 10 validation examples, a gap of 0.2000" in reason(
        GeneralizationGap(at_most=0.1), given
    )


@pytest.mark.parametrize(("last", "passed"), [(0.1, True), (2.0, True), (2.1, False)])
def test_divergence_compares_the_last_epochs_loss_with_the_firsts(last: float, passed: bool) -> None:
    given = evidence(losses=(1.0, last))
    assert passes(Divergence(factor=2.0), given) == passed
    assert passed or (
        "the training loss ended at 2.1, 2.1 times the first epoch's 1, more than the accepted 2 times: lower "
        "training.learning_rate" in reason(Divergence(factor=2.0), given)
    )


def test_divergence_from_a_loss_of_zero() -> None:
    assert passes(Divergence(), evidence(losses=(0.0, 0.0)))
    assert "ended at 0.5, and 0 in the first epoch" in reason(Divergence(), evidence(losses=(0.0, 0.5)))


def test_a_density_floor_looks_at_the_whole_network() -> None:
    assert passes(DensityFloor(at_least=0.14), evidence())
    assert "density 0.14 is below the floor 0.15 (14 of 100 weights are kept)" in reason(
        DensityFloor(at_least=0.15), evidence()
    )


def test_layer_collapse_looks_at_each_layer() -> None:
    assert passes(LayerCollapse(at_least=0.1), evidence())
    assert "b keeps 9 of 90, below the floor 0.11: little passes" in reason(LayerCollapse(at_least=0.11), evidence())
    assert figures(LayerCollapse(at_least=0.6), evidence())["layers_below"] == 2


def test_mask_agreement_looks_at_the_worst_step() -> None:
    assert passes(MaskAgreement(at_least=0.5), evidence(agreement=0.5))
    assert "both keep 0.4000, less than 0.5: what was pruned is largely chance" in reason(
        MaskAgreement(at_least=0.5), evidence(agreement=0.4)
    )


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (AccuracyDrop(), "no validation examples, so accuracy was not compared"),
        (AccuracyFloor(at_least=1.0), "no validation examples"),
        (ClassFloor(at_least=1.0), "no validation examples"),
        (GeneralizationGap(at_most=0.0), "no validation examples"),
        (Forgetting(), "no validation examples of past megabatches"),
        (MaskAgreement(at_least=1.0), "no pruning step of this cycle compared the masks of two samples"),
        (Divergence(), "no whole epoch was trained"),
    ],
)
def test_without_data_a_rule_passes_and_says_so(rule: object, words: str) -> None:
    judged = judge([rule], evidence(losses=(None, None)))
    assert judged.verdict.passed and not judged.breaches
    assert words in judged.verdict.reasons[0]


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_trips_come_first_then_breaches_then_what_was_not_judged_then_notes() -> None:
    rules = [
        Forgetting(),
        DensityFloor(at_least=0.9, trip_after=2),
        DensityFloor(at_least=0.1),
        LayerCollapse(at_least=0.2),
    ]
    judged = judge(rules, evidence(notes=("a note",)))
    assert not judged.verdict.passed
    assert [told.split(":")[0] for told in judged.verdict.reasons] == [
        "layer-collapse", "density-floor", "forgetting", "a note"
    ]  # fmt: skip
    assert [(rule["name"], rule["passed"], rule["tripped"], rule["breaches"]) for rule in judged.rules] == [
        ("forgetting", True, False, 0),
        ("density-floor", False, False, 1),
        ("density-floor#2", True, False, 0),
        ("layer-collapse", False, True, 1),
    ]


@pytest.mark.parametrize(
    ("asked", "action"),
    [
        (["withhold", "retry"], "retry"),
        (["retry", "hold", "withhold"], "hold"),
        (["restore", "hold"], "restore"),
        (["withhold"], "withhold"),
        ([], ""),
    ],
)
def test_the_strictest_action_wins_and_the_reasons_list_all(asked: list[str], action: str) -> None:
    judged = judge([DensityFloor(at_least=0.5, then=then) for then in asked], evidence())
    assert judged.verdict.action == action and judged.verdict.passed == (not asked)
    assert [trip.action for trip in judged.trips] == asked and len(judged.verdict.reasons) == len(asked)


def test_rules_of_the_same_name_count_for_themselves() -> None:
    rules = [AccuracyFloor(at_least=0.99, trip_after=3), AccuracyFloor(at_least=0.2, trip_after=2)]
    judged = judge(rules, evidence(validation=share(50, 100), history=History(breaches={"accuracy-floor": 1})))
    assert judged.breaches == {"accuracy-floor": 2}
    worse = judge(rules, evidence(validation=share(5, 100), history=History(breaches=judged.breaches)))
    assert worse.breaches == {"accuracy-floor": 3, "accuracy-floor#2": 1}
    assert [trip.rule for trip in worse.trips] == ["accuracy-floor"]


# -- hysteresis --------------------------------------------------------------------------------------------------------


def test_a_breach_that_has_not_tripped_is_told_and_publishes() -> None:
    floor = DensityFloor(at_least=0.5, trip_after=2)
    first = judge([floor], evidence())
    assert first.verdict.passed and first.verdict.action == "" and not first.trips
    assert first.verdict.reasons[0].endswith("(breached 1 of 2 times before it trips)")
    second = judge([floor], evidence(history=History(breaches=first.breaches)))
    assert not second.verdict.passed and second.trips[0].breaches == 2
    assert second.verdict.reasons[0].endswith("(breached 2 times in a row)")


def test_a_pass_ends_the_row() -> None:
    floor = AccuracyFloor(at_least=0.9, trip_after=2)
    passed = judge([floor], evidence(validation=share(95, 100), history=History(breaches={"accuracy-floor": 1})))
    assert passed.verdict.passed and passed.breaches == {}


@pytest.mark.parametrize("then", ["hold", "restore"])
def test_a_trip_holds_pruning_until_enough_versions_in_a_row_pass(then: str) -> None:
    floor = AccuracyFloor(at_least=0.9, then=then, trip_after=2, recover_after=2)  # type: ignore[arg-type]

    def after(right: int, holds: tuple[Hold, ...], breaches: int = 0) -> Judgement:
        before = History(holds=holds, breaches={"accuracy-floor": breaches} if breaches else {})
        return judge([floor], evidence(validation=share(right, 100), history=before))

    tripped = after(50, (), breaches=1)
    assert [(hold.rule, hold.passes, hold.needed) for hold in tripped.holds] == [("accuracy-floor", 0, 2)]
    assert str(tripped.holds[0]).startswith("held since accuracy-floor tripped (accuracy 0.5000 on 100")
    assert str(tripped.holds[0]).endswith("(breached 2 times in a row)): 0 of 2 passes")
    once = after(95, tripped.holds)
    assert [hold.passes for hold in once.holds] == [1]
    assert [hold.passes for hold in after(50, once.holds).holds] == [0], (
        "a breach, though it does not trip, counts anew"
    )
    assert after(95, once.holds).holds == ()


@pytest.mark.parametrize("then", ["withhold", "retry"])
def test_other_actions_hold_nothing(then: str) -> None:
    assert judge([DensityFloor(at_least=0.5, then=then)], evidence()).holds == ()  # type: ignore[arg-type]


def test_a_version_that_is_withheld_counts_for_no_recovery() -> None:
    held = Hold("accuracy-floor", "fell", 1, 2)
    given = evidence(validation=share(95, 100), history=History(holds=(held,)))
    floor = AccuracyFloor(at_least=0.9, then="hold")
    assert judge([floor], given).holds == ()
    assert judge([floor, DensityFloor(at_least=0.5)], given).holds == (held,)


def test_each_rule_recovers_by_itself() -> None:
    holds = (Hold("accuracy-floor", "fell", 1, 2), Hold("forgetting", "forgot", 0, 2))
    rules = [AccuracyFloor(at_least=0.9, then="hold"), Forgetting(then="hold", recover_after=3)]
    judged = judge(rules, evidence(validation=share(95, 100), history=History(holds=holds)))
    assert judged.holds == (Hold("forgetting", "forgot", 1, 3),), "as many as the recipe asks for now"
    assert judge(rules[:1], evidence(validation=share(95, 100), history=History(holds=holds))).holds == ()


def tries(floor: AccuracyFloor, accuracies: Sequence[float]) -> Iterator[Judgement]:
    """A lineage, as the service grows it: what trips is withheld, and its hold stays; the rest is published."""
    history = History()
    for accuracy in accuracies:
        judged = judge([floor], evidence(validation=share(round(accuracy * 1000), 1000), history=history))
        breaches = judged.breaches if judged.verdict.passed else history.breaches
        history = History(breaches=breaches, holds=judged.holds)
        yield judged


def counts(floor: AccuracyFloor, accuracies: Sequence[float]) -> tuple[int, int]:
    """How often a rule trips, and how often pruning is taken up or put down."""
    judged = list(tries(floor, accuracies))
    held = [bool(j.holds) for j in judged]
    return sum(bool(j.trips) for j in judged), sum(a != b for a, b in zip(held, held[1:], strict=False))


def test_noise_around_the_limit_does_not_flap() -> None:
    """Accuracy that wanders around the limit, with a real fall in the middle: without hysteresis every dip trips."""
    random = np.random.default_rng(4)
    level = np.concatenate([np.full(80, 0.92), np.full(20, 0.80), np.full(80, 0.92)])
    accuracies = (level + random.normal(0, 0.02, len(level))).tolist()
    nervous = AccuracyFloor(at_least=0.9, confidence=0.5, then="hold", trip_after=1, recover_after=1)
    calm = AccuracyFloor(at_least=0.9, confidence=0.5, then="hold", trip_after=3, recover_after=3)
    nervous_trips, nervous_turns = counts(nervous, accuracies)
    calm_trips, calm_turns = counts(calm, accuracies)
    steady = accuracies[:80]
    assert counts(nervous, steady)[0] >= 8 and counts(calm, steady)[0] == 0, "no dip lasts three versions"
    assert nervous_turns >= 20 and calm_turns <= 2
    assert nervous_trips > calm_trips >= 1, "the fall is real, and found"


# -- training that ended in infinities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "action"),
    [
        ([Divergence(then="retry")], "retry"),
        ([Divergence(then="hold", recover_after=3)], "hold"),
        ([Divergence(then="retry"), Divergence(then="hold")], "hold"),
        ([Divergence(then="withhold")], None),
        ([Divergence(then="restore")], None),
        ([AccuracyDrop(then="retry")], None),
    ],
)
def test_divergence_asks_for_another_attempt_where_the_recipe_says_so(rules: list[Any], action: str | None) -> None:
    trip = diverged(rules, "the loss became nan")
    assert (trip.action if trip else None) == action


def test_a_divergence_that_holds() -> None:
    trip = diverged([Divergence(then="hold", recover_after=3)], "the loss became nan")
    assert trip == Trip("divergence", "hold", 1, 3, "the loss became nan")
    assert hold_since(trip) == Hold("divergence", "the loss became nan", 0, 3)


# -- in a cycle --------------------------------------------------------------------------------------------------------


HELD = Hold("accuracy-floor", "it fell", 0, 2)


def held_cycle(**over: Any) -> CycleInput:
    """A second cycle that would prune, with a rule that it passes."""
    floor = {"name": "accuracy-floor", "at_least": 0.1, "then": "hold"}
    return replace(second_cycle(small_recipe(guardrails=[floor])), **over)


def with_history(given: CycleInput, history: History) -> CycleInput:
    assert given.parent is not None
    return replace(given, parent=replace(given.parent, history=history))


def told(result: CycleResult, kind: str) -> list[dict[str, Any]]:
    return [event.parameters for event in result.events if event.kind == kind]


def test_a_hold_in_the_parents_history_holds_the_density_and_counts_the_pass() -> None:
    given = with_history(held_cycle(), History(holds=(HELD,)))
    assert given.parent is not None
    result = run(given)
    assert (result.stage, result.kept) == (given.parent.stage, sum(int(m.sum()) for m in given.parent.masks.values()))
    (event,) = told(result, "mask.held")
    assert event["reason"] == "held since accuracy-floor tripped (it fell): 0 of 2 passes"
    assert result.history.holds == (replace(HELD, passes=1),)
    after = run(with_history(given, replace(result.history)))
    assert after.kept == result.kept and after.history.holds == ()
    assert run(with_history(given, after.history)).kept < result.kept


def test_holds_of_an_attempt_stand_for_those_of_the_lineage() -> None:
    lineage = History(holds=(replace(HELD, passes=1),), breaches={"accuracy-floor": 3}, best={1: 0.7})
    given = replace(with_history(held_cycle(), lineage), holds=(HELD,))
    assert given.history == replace(lineage, holds=(HELD,))
    assert run(given).history.holds == (replace(HELD, passes=1),)
    assert replace(held_cycle(), parent=None, holds=(HELD,)).history == History(holds=(HELD,)), "no parent: dense"


def test_a_hold_is_part_of_what_a_snapshot_belongs_to() -> None:
    given = held_cycle(holds=(HELD,))
    snapshot = stopped_at(given, 3)
    with pytest.raises(InvariantBroken, match="another cycle"):
        run(replace(given, holds=()), snapshot=snapshot)


def test_a_held_cycle_that_is_stopped_at_any_call_ends_with_the_same_bits() -> None:
    given = replace(held_cycle(holds=(HELD,)), attempt=1, scale=0.5)
    calls: list[Phase] = []
    whole = run(given, lambda progress, snapshot: calls.append(progress.phase))
    assert set(calls) == set(Phase) and whole.history.holds
    for n in range(len(calls)):
        assert same_result(run(given, snapshot=stopped_at(given, n)), whole), f"call {n}"


class Killed(Exception):
    """The worker is gone."""


def stopped_at(given: CycleInput, n: int) -> bytes:
    """The snapshot of the ``n``-th call."""
    taken: list[bytes] = []

    def observe(progress: Progress, snapshot: Snapshot) -> None:
        taken.append(snapshot() if len(taken) == n else b"")
        if len(taken) > n:
            raise Killed

    with pytest.raises(Killed):
        run(given, observe)
    return taken[-1]


def test_a_cycle_hands_breaches_and_trips_on() -> None:
    rules = [{"name": "accuracy-floor", "at_least": 1.0, "trip_after": 2}, {"name": "accuracy-floor", "at_least": 0.0}]
    first = first_cycle(small_recipe(guardrails=rules), clusters(1, noise=4.0))
    before = run(first)
    assert before.verdict.passed and before.history.breaches == {"accuracy-floor": 1} and before.trips == ()
    after = run(next_cycle(first, before, clusters(2, noise=4.0)))
    assert not after.verdict.passed and after.history.breaches == {"accuracy-floor": 2}
    assert [trip.rule for trip in after.trips] == ["accuracy-floor"]
    (judged,) = told(after, "cycle.judged")
    assert (judged["passed"], judged["action"]) == (False, "withhold")
    assert [(rule["name"], rule["tripped"]) for rule in judged["rules"]] == [
        ("accuracy-floor", True), ("accuracy-floor#2", False)
    ]  # fmt: skip


def test_an_error_takes_the_events_so_far_along() -> None:
    decay = {"name": "sgd", "weight_decay": 100.0}
    recipe = small_recipe(training={"epochs": 60, "learning_rate": 10.0, "optimizer": decay})
    with pytest.raises(TrainingDiverged) as failed:
        run(first_cycle(recipe))
    assert [event.kind for event in events_of(failed.value)] == ["mask.pruned"], "pruned at the start, then trained"
    with pytest.raises(NothingToTrain) as early:
        run(replace(first_cycle(recipe), new=frozenset(), untested=frozenset()))
    assert events_of(early.value) == ()


def test_a_broken_invariant_is_an_event() -> None:
    given = held_cycle()
    assert given.parent is not None
    masks = {name: np.zeros_like(mask) for name, mask in given.parent.masks.items()}
    with pytest.raises(InvariantBroken) as broken:
        run(replace(given, parent=replace(given.parent, masks=masks)))
    assert [(event.kind, event.parameters) for event in events_of(broken.value)] == [
        ("invariant.broken", {"message": "the parent's pruned weights are not zero"})
    ]


class Bursting(nn.Module):
    """A user's network whose bias becomes infinite in the very last optimizer step."""

    def __init__(self, shape: tuple[int, ...], classes: int, steps: int = 6) -> None:
        super().__init__()
        self.head, self.left = nn.Linear(shape[0], classes), steps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        self.left -= self.training
        if self.left == 0:
            with torch.no_grad():
                assert self.head.bias is not None
                self.head.bias.fill_(torch.inf)
        return out


def test_weights_that_burst_in_the_last_step_are_divergence_before_they_are_judged() -> None:
    steps: list[int] = []
    recipe = small_recipe(network={"name": "custom", "architecture": "mine"}, training={"select": "last"})
    given = first_cycle(recipe, architecture=lambda shape, classes: Bursting(shape, classes, steps=-1))
    run(given, lambda progress, snapshot: steps.append(progress.steps))
    burst = replace(given, architecture=lambda shape, classes: Bursting(shape, classes, steps[-1]))
    with pytest.raises(TrainingDiverged, match=r"head\.bias became infinite or NaN") as failed:
        run(burst)
    assert [event.kind for event in events_of(failed.value)] == ["mask.pruned"]
