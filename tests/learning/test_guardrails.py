from __future__ import annotations

from math import comb

import numpy as np
import pytest

from app.domain import Layer
from app.learning.guardrails import Evidence, judge, mcnemar
from app.learning.recipe import AccuracyDrop, DensityFloor

LAYERS = (Layer("a", (10,), 5, 10), Layer("b", (90,), 9, 90))


def evidence(lost: int, won: int, both: int = 0, neither: int = 0, **over: object) -> Evidence:
    """Answers by how often only the champion, only the candidate, both or neither are right."""
    champion = np.repeat([True, False, True, False], [lost, won, both, neither])
    candidate = np.repeat([False, True, True, False], [lost, won, both, neither])
    given = {"candidate": candidate, "champion": champion, "layers": LAYERS} | over
    return Evidence(**given)  # type: ignore[arg-type]


def passes(rule: object, given: Evidence) -> bool:
    return judge([rule], given).verdict.passed


def test_mcnemar_is_a_binomial_tail() -> None:
    assert mcnemar(0, 0) == mcnemar(0, 5) == 1
    assert mcnemar(5, 0) == 1 / 32
    assert mcnemar(8, 2) == sum(comb(10, i) for i in (8, 9, 10)) / 1024
    assert mcnemar(3, 2) == 0.5


@pytest.mark.parametrize(("lost", "won"), [(560, 450), (505, 506), (450, 560), (0, 1001), (1001, 0), (2600, 2500)])
def test_mcnemar_beyond_a_thousand_is_the_same_tail(lost: int, won: int) -> None:
    n = lost + won
    exact = sum(comb(n, i) for i in range(lost, n + 1)) / (1 << n)
    assert mcnemar(lost, won) == pytest.approx(exact, rel=1e-8)


def test_a_drop_within_the_accepted_one_passes() -> None:
    assert passes(AccuracyDrop(at_most=0.1), evidence(10, 0, both=90))
    assert not passes(AccuracyDrop(at_most=0.1), evidence(11, 0, both=89))


def test_a_drop_that_may_be_chance_passes() -> None:
    few = evidence(4, 0, both=6)  # p = 1/16
    assert passes(AccuracyDrop(at_most=0.1, confidence=0.95), few)
    assert not passes(AccuracyDrop(at_most=0.1, confidence=0.9), few)


def test_half_confidence_ignores_all_but_the_drop() -> None:
    assert not passes(AccuracyDrop(at_most=0.0, confidence=0.5), evidence(3, 2, both=5))
    assert passes(AccuracyDrop(at_most=0.0, confidence=0.5), evidence(2, 2, both=5))


def test_a_gain_passes() -> None:
    assert passes(AccuracyDrop(at_most=0.0, confidence=0.5), evidence(2, 50))


def test_the_reason_gives_the_figures() -> None:
    verdict = judge([AccuracyDrop(at_most=0.02)], evidence(20, 0, both=70, neither=10)).verdict
    assert not verdict.passed
    (reason,) = verdict.reasons
    assert "accuracy 0.7000 is 0.2000 below the champion's 0.9000 on the same 100 validation examples" in reason


def test_without_a_champion_there_is_nothing_to_compare() -> None:
    verdict = judge([AccuracyDrop(at_most=0.0)], evidence(5, 0, champion=None)).verdict
    assert verdict.passed and not verdict.reasons


def test_without_examples_the_verdict_says_so() -> None:
    verdict = judge([AccuracyDrop(at_most=0.0)], evidence(0, 0)).verdict
    assert verdict.passed and "no validation examples" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (DensityFloor(whole=0.15), "density 0.14 is below the floor 0.15"),
        (DensityFloor(layer=0.11), "b keeps 9 of 90, below the floor 0.11"),
        (DensityFloor(whole=0.14, layer=0.1), None),
    ],
)
def test_density_floors(rule: DensityFloor, words: str | None) -> None:
    verdict = judge([rule], evidence(0, 0)).verdict
    assert verdict.passed == (words is None)
    assert words is None or words in verdict.reasons[0]


def test_failures_come_first_and_notes_last_and_every_rule_is_recorded() -> None:
    rules = [DensityFloor(), AccuracyDrop(at_most=0), DensityFloor(layer=0.2)]
    judged = judge(rules, evidence(0, 0, notes=("a note",)))
    assert not judged.verdict.passed
    assert [reason.split(":")[0] for reason in judged.verdict.reasons] == ["density-floor", "accuracy-drop", "a note"]
    assert [(rule["name"], rule["passed"]) for rule in judged.rules] == [
        ("density-floor", True),
        ("accuracy-drop", True),
        ("density-floor", False),
    ]
