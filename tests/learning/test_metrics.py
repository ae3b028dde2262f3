from __future__ import annotations

import json

import numpy as np
import pytest

from app.learning.evaluation import Evaluation
from app.learning.flops import Flops
from app.learning.history import Ancestor, History, Hold
from app.learning.metrics import Arrival, Measured, Retained, figures, report
from tests.learning.cases import clusters, events_of, first_cycle, gradual, next_cycle, run


def answers(right: int, wrong: int, loss: float = 0.5) -> Evaluation:
    labels = np.zeros(right + wrong, dtype=np.int64)
    predicted = np.array([0] * right + [1] * wrong, dtype=np.int64)
    return Evaluation(loss, 3, labels, predicted, np.full(len(labels), 0.75, dtype=np.float32))


def measured(**over: object) -> Measured:
    given: dict[str, object] = {
        "training": answers(9, 1), "validation": answers(3, 1), "champion": None, "retained": {}, "new": frozenset({2}),
        "evaluation": None, "tested": {}, "flops": Flops(200, 100),
    }  # fmt: skip
    return Measured(**given | over)  # type: ignore[arg-type]


def test_figures_without_data_are_absent() -> None:
    assert set(figures(measured(validation=None), History())) == {
        "train_accuracy", "train_loss", "dense_flops", "sparse_flops"
    }  # fmt: skip


def test_the_gap_is_train_minus_validation() -> None:
    found = figures(measured(), History())
    assert found["generalization_gap"] == pytest.approx(0.9 - 0.75)
    assert found["validation_calibration_error"] == pytest.approx(0, abs=1e-6)


def test_prequential_figures_weigh_megabatches_by_their_examples() -> None:
    found = figures(measured(tested={2: Arrival(1.0, 0.1, 30), 3: Arrival(0.5, 0.5, 10)}), History())
    assert found["prequential_accuracy"] == pytest.approx(0.875)
    assert found["prequential_loss"] == pytest.approx(0.2)


def test_forgetting_is_the_best_ever_minus_the_present_of_past_megabatches_alone() -> None:
    given = measured(retained={1: Retained(6, 10), 2: Retained(1, 10), 3: Retained(9, 10)}, new=frozenset({2}))
    history = History(best={1: 0.8, 2: 0.1, 3: 0.9})
    found = figures(given, history)
    assert found["forgetting"] == pytest.approx((0.2 + 0.0) / 2) and found["worst_forgetting"] == pytest.approx(0.2)
    assert report(given, history)["megabatches"]["1"] == {
        "accuracy": 0.6, "examples": 10, "forgotten": pytest.approx(0.2)
    }  # fmt: skip


def test_anytime_accuracy_and_cumulative_errors_run_over_the_lineage() -> None:
    found = figures(measured(evaluation=answers(8, 2)), History(evaluation_errors=5, evaluation_examples=20))
    assert found["cumulative_evaluation_errors"] == 5 and found["anytime_accuracy"] == 0.75
    assert found["evaluation_accuracy"] == 0.8


def test_by_class_says_none_where_a_class_has_no_examples() -> None:
    found = report(measured(), History())
    assert found["validation_by_class"] == {"examples": [4, 0, 0], "accuracy": [0.75, None, None]}


def test_a_history_survives_its_document() -> None:
    history = History(
        7,
        (Ancestor(1, 0.5, 0.9, 30),),
        {12: 0.5, 3: 1.0},
        {"accuracy-drop": 1},
        (Hold("forgetting", "fell", 0, 2),),
        3,
        9,
    )
    assert History.from_document(json.loads(json.dumps(history.document()))) == history
    assert History.from_document(json.loads(json.dumps(History().document()))) == History()


def test_a_cycle_hands_its_history_on() -> None:
    recipe = gradual()
    first = first_cycle(recipe, evaluation=clusters(9, 30))
    before = run(first)
    after = run(next_cycle(first, before, clusters(2)))
    assert before.history.arrived == 60 and after.history.arrived == 120
    assert [a.density for a in after.history.ancestors] == [before.kept / before.total, after.kept / after.total]
    assert set(before.history.best) == {1} and set(after.history.best) == {1, 2}
    assert after.history.evaluation_examples == 60
    errors = sum(round((1 - r.metrics["evaluation_accuracy"]) * 30) for r in (before, after))
    assert after.metrics["cumulative_evaluation_errors"] == errors == after.history.evaluation_errors
    (judged,) = events_of(after, "cycle.judged")
    assert judged["metrics"] == after.metrics and judged["report"] == after.report
    assert after.metrics["sparse_flops"] / after.metrics["dense_flops"] == pytest.approx(after.kept / after.total)
