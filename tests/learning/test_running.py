from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from app.learning.running import RunningScores
from app.learning.seeds import generator

STEPS = 7


def parameters() -> dict[str, nn.Parameter]:
    source = generator(4)
    return {
        name: nn.Parameter(torch.randn(shape, generator=source)) for name, shape in {"a": (3, 2), "b": (4,)}.items()
    }


def steps(weights: dict[str, nn.Parameter], count: int = STEPS) -> list[dict[str, Tensor]]:
    """Gradients of some optimizer steps."""
    source = generator(5)
    return [
        {name: torch.randn(weight.shape, generator=source) for name, weight in weights.items()} for _ in range(count)
    ]


def taken_in(decay: float, count: int = STEPS) -> tuple[RunningScores, list[dict[str, Tensor]]]:
    """Running scores after some steps, and |w * gradient| of each, the oldest first."""
    weights = parameters()
    running, seen = RunningScores(weights, decay), []
    for gradients in steps(weights, count):
        for name, weight in weights.items():
            weight.grad = gradients[name]
        running.update()
        seen.append({name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()})
        with torch.no_grad():
            for weight in weights.values():
                weight.sub_(0.1 * weight.grad)  # type: ignore[operator]
    return running, seen


def weighted(seen: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    return {name: sum(w * each[name] for w, each in zip(weights, seen, strict=True)) / sum(weights) for name in seen[0]}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_scores_are_weighted_means_of_weight_times_gradient(decay: float, count: int) -> None:
    """Two steps weigh the same, the two before them decay ** 2 as much, and so on."""
    running, seen = taken_in(decay, count)
    newest = [0.0] * count
    for half in (0, 1):
        for age, step in enumerate(reversed(range(half, count, 2))):
            newest[step] = decay ** (2 * age)
    for name, value in running.scores().items():
        torch.testing.assert_close(value, weighted(seen, newest)[name])
    for half, found in zip((0, 1), running.halves(), strict=True):
        if count > half:
            expected = weighted(seen[half::2], newest[half::2])
            for name, value in found.items():
                torch.testing.assert_close(value, expected[name])
    assert running.updates == count


def test_over_many_steps_it_is_the_usual_running_mean() -> None:
    decay, count = 0.9, 200
    running, seen = taken_in(decay, count)
    usual = weighted(seen, [decay ** (count - 1 - step) for step in range(count)])
    for name, value in running.scores().items():
        assert bool(((value - usual[name]).abs() < 0.1 * usual[name] + 1e-3).all())


def test_halves_share_no_step() -> None:
    """What odd steps see leaves the even half as it is."""
    weights = parameters()
    running, evens = RunningScores(weights, 0.9), []
    for step in range(6):
        for weight in weights.values():
            weight.grad = torch.full_like(weight, float("nan") if step % 2 else 1.0)
        running.update()
        evens.append(running.halves()[0]["a"])
    assert all(bool(torch.isfinite(even).all()) for even in evens)
    assert all(torch.equal(before, after) for before, after in list(pairwise(evens))[::2])
    assert bool(torch.isnan(running.halves()[1]["a"]).all())


def test_before_the_first_step_all_is_zero() -> None:
    running = RunningScores(parameters(), 0.9)
    found = (running.scores(), *running.halves())
    assert not any(value.any() for scores in found for value in scores.values())


def test_a_weight_without_a_gradient_counts_as_zero() -> None:
    weights = parameters()
    running = RunningScores(weights, 0.9)
    weights["a"].grad = torch.ones_like(weights["a"])
    running.update()
    assert running.scores()["a"].all() and not running.scores()["b"].any()


def test_it_goes_on_with_the_same_bits_from_its_state() -> None:
    weights = parameters()
    whole, first, second = (RunningScores(weights, 0.98) for _ in range(3))
    for step, gradients in enumerate(steps(weights)):
        for name, weight in weights.items():
            weight.grad = gradients[name]
        whole.update()
        (first if step < 3 else second).update()
        if step == 2:
            second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert all(torch.equal(value, second.state()[name]) for name, value in whole.state().items())
    assert all(torch.equal(value, second.scores()[name]) for name, value in whole.scores().items())


def test_two_floats_are_kept_for_a_weight_and_gradients_are_left_alone() -> None:
    running, _ = taken_in(0.98)
    assert sum(tensor.numel() for tensor in running.state().values()) == 2 * 10 + 1
    weights = parameters()
    weights["a"].grad = torch.ones_like(weights["a"])
    before = weights["a"].detach().clone()
    RunningScores(weights, 0.5).update()
    assert torch.equal(weights["a"], before) and bool((weights["a"].grad == 1).all())
