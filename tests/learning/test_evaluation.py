from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.learning.architectures import build
from app.learning.evaluation import Evaluation, evaluate
from app.learning.normalisation import Preparation
from app.learning.recipe import Cnn
from app.learning.rows import Rows
from tests.learning.cases import CPU, images, spec_of


def answers(labels: list[int], predicted: list[int], confidence: list[float] | None = None) -> Evaluation:
    sure = confidence or [1.0] * len(labels)
    return Evaluation(0.0, 3, np.array(labels), np.array(predicted), np.array(sure, dtype=np.float32))


def test_accuracy_by_class_and_balanced() -> None:
    found = answers([0, 0, 0, 1], [0, 0, 1, 0])
    assert found.accuracy == 0.5 and found.errors == 2
    right, examples = found.by_class
    assert right.tolist() == [2, 0, 0] and examples.tolist() == [3, 1, 0]
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 0) / 2), "classes that do not occur do not count"


@pytest.mark.parametrize(
    ("predicted", "confidence", "error"),
    [
        ([0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0], 0.0),
        ([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], 0.0),
        ([1, 1, 1, 1], [1.0, 1.0, 1.0, 1.0], 1.0),
        ([0, 0, 0, 1], [0.9, 0.9, 0.4, 0.4], (2 * 0.1 + 2 * 0.1) / 4),
    ],
)
def test_calibration_error_is_the_gap_of_accuracy_and_confidence_by_bin(
    predicted: list[int], confidence: list[float], error: float
) -> None:
    assert answers([0, 0, 0, 0], predicted, confidence).calibration_error == pytest.approx(error, abs=1e-6)


def test_a_network_is_evaluated_in_float32_and_eval_mode_and_left_as_it_was() -> None:
    examples = images(1, 30)
    network = build(Cnn(channels=(4,)), (1, 8, 8), 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    prepare = Preparation(spec_of(examples), None, Cnn(), CPU)
    rows = Rows([examples], [np.ones(30, bool)], prepare, device=CPU, classes=3)
    found = evaluate(network, rows)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        logits = network.eval()(prepare(examples.x))
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, torch.from_numpy(examples.y))), rel=1e-5)
    np.testing.assert_array_equal(found.predicted, logits.argmax(1))
    np.testing.assert_allclose(found.confidence, logits.softmax(1).max(1).values, rtol=1e-6)


def test_a_pulse_may_stop_it_and_the_mode_is_put_back() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    examples = images(1, 30)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).train()
    rows = Rows(
        [examples], [np.ones(30, bool)], Preparation(spec_of(examples), None, Cnn(), CPU), device=CPU, classes=3
    )  # fmt: skip
    with pytest.raises(Stop):
        evaluate(network, rows, stop)
    assert network.training
