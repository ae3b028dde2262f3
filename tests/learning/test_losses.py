from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning.losses import Loss, Targets, class_weights
from app.learning.recipe import Training
from tests.learning.cases import CPU

LABELS = np.array([0] * 6 + [1] * 3 + [3])


def options(**over: Any) -> Training:
    return Training.model_validate(over)


def weights(given: Any, labels: np.ndarray = LABELS, classes: int = 4) -> np.ndarray:
    found = class_weights(options(class_weights=given), labels, classes)
    assert found is not None
    return found


def logits(n: int, classes: int = 4) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(n))


# -- weights of classes ------------------------------------------------------------------------------------------------


def test_balanced_weights_let_all_classes_that_occur_count_alike() -> None:
    found = weights("balanced")
    counts = np.bincount(LABELS, minlength=4)
    np.testing.assert_allclose((found * counts)[[0, 1, 3]], 10 / 3, rtol=1e-6)
    assert found[2] == 0, "a class without an example, finite"


@pytest.mark.parametrize("given", ["balanced", (1, 2, 3, 4), (1e-3, 5, 1e9, 1)])
def test_weights_have_mean_1_over_the_examples(given: Any) -> None:
    assert weights(given)[LABELS].mean() == pytest.approx(1)


def test_given_weights_keep_their_ratios_whatever_their_scale() -> None:
    found = weights((2, 4, 9, 8))
    assert found[1] / found[0] == pytest.approx(2) and found[3] / found[0] == pytest.approx(4)
    np.testing.assert_array_equal(found, weights((4, 8, 18, 16)))
    np.testing.assert_array_equal(weights((1e300, 1e300, 1e-300, 1e300))[[0, 1, 3]], 1)


def test_equal_weights_are_none() -> None:
    y = torch.from_numpy(LABELS)
    weighed = Loss(options(class_weights=[5, 5, 5, 5]), LABELS, 4, CPU)(logits(10), Targets(y))
    torch.testing.assert_close(weighed, Loss(options(), LABELS, 4, CPU)(logits(10), Targets(y)))


@pytest.mark.parametrize("given", [(1.0,), (1.0,) * 5, ()])
def test_as_many_weights_as_classes_are_wanted(given: tuple[float, ...]) -> None:
    message = f"training.class_weights has {len(given)} weights for 4 classes: give one for each, or balanced"
    with pytest.raises(InvalidRecipe, match=message) as refused:
        Loss(options(class_weights=given), LABELS, 4, CPU)
    assert refused.value.errors == (("/training/class_weights", message),)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_it_is_torchs(smoothing: float) -> None:
    y = torch.from_numpy(LABELS)
    found = Loss(options(label_smoothing=smoothing), LABELS, 4, CPU)(logits(10), Targets(y))
    assert torch.equal(found, functional.cross_entropy(logits(10), y, label_smoothing=smoothing))


def test_a_weight_is_as_many_examples() -> None:
    """Classes 0 and 1, weighed 3 to 1, are a training set that has each example of class 0 three times."""
    once, y = logits(4, 2), torch.tensor([0, 0, 1, 1])
    often = torch.cat([once[:2]] * 3 + [once[2:]])
    plain = Loss(options(), y.numpy(), 2, CPU)(often, Targets(torch.tensor([0] * 6 + [1] * 2)))
    weighed = Loss(options(class_weights=[3, 1]), y.numpy(), 2, CPU)(once, Targets(y))
    torch.testing.assert_close(weighed, plain)


def test_rare_classes_do_not_attract_the_smoothing_of_others() -> None:
    """At the optimum an example of the frequent class is still answered with it, by a wide margin."""
    labels = np.array([0] * 999 + [1])
    loss, found = Loss(options(class_weights="balanced"), labels, 2, CPU), torch.zeros(1, 2, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(found, Targets(torch.tensor([0]))), found)
        found = (found - 20 * gradient).detach().requires_grad_()
    assert found.softmax(1)[0, 0].item() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_examples_loss_is_that_of_its_mixed_labels(smoothing: float) -> None:
    own, partners = torch.tensor([0, 1, 3]), torch.tensor([1, 1, 0])
    found = Loss(options(label_smoothing=smoothing), LABELS, 4, CPU)(logits(3), Targets(own, partners, 0.3))
    soft = 0.3 * functional.one_hot(own, 4) + 0.7 * functional.one_hot(partners, 4)
    torch.testing.assert_close(found, functional.cross_entropy(logits(3), soft, label_smoothing=smoothing))


def test_a_mixed_example_weighs_as_its_parts_do() -> None:
    own, partners = torch.tensor([0, 1, 3]), torch.tensor([1, 1, 0])
    loss, by_class = Loss(options(class_weights="balanced"), LABELS, 4, CPU), torch.from_numpy(weights("balanced"))
    parts = [
        share * by_class[y] * functional.cross_entropy(logits(3), y, label_smoothing=0.1, reduction="none")
        for share, y in ((0.3, own), (0.7, partners))
    ]
    torch.testing.assert_close(loss(logits(3), Targets(own, partners, 0.3)), (parts[0] + parts[1]).mean())
