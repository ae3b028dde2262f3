from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from app.learning.optimizers import minibatch_bounds, optimizer_for, rate_at
from app.learning.recipe import Training


def options(rate: dict[str, Any], peak: float = 1.0, **over: Any) -> Training:
    return Training.model_validate({"learning_rate": peak, "rate": rate} | over)


def rates(chosen: Training, steps: int) -> list[float]:
    return [rate_at(chosen, step, steps) for step in range(steps)]


def of_torch(scheduler: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate, momentum=0.5)


# -- learning rates ----------------------------------------------------------------------------------------------------


def test_cosine_rises_over_the_warmup_then_falls_to_nothing() -> None:
    found = rates(options({"name": "cosine", "warmup": 0.1}, 2.0), 100)
    np.testing.assert_allclose(found[:11], [0.2 * (step + 1) for step in range(10)] + [2.0])
    assert all(b < a for a, b in pairwise(found[10:]))
    assert found[55] == pytest.approx(1.0) and found[-1] < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 7, 120])
def test_cosine_is_that_of_torch(steps: int) -> None:
    theirs = of_torch(CosineAnnealingLR(optimizer(0.3), T_max=steps), steps)
    np.testing.assert_allclose(rates(options({"name": "cosine"}, 0.3), steps), theirs, rtol=1e-9, atol=1e-12)


def test_multistep_rates_fall_at_shares_of_the_steps() -> None:
    chosen = options({"name": "multistep", "milestones": [0.4, 0.8], "factor": 0.1})
    np.testing.assert_allclose(rates(chosen, 50), [1.0] * 20 + [0.1] * 20 + [0.01] * 10)


def test_multistep_is_that_of_torch() -> None:
    chosen = options({"name": "multistep", "milestones": [0.3, 0.5, 0.9], "factor": 0.5}, 0.2)
    theirs = of_torch(MultiStepLR(optimizer(0.2), [30, 50, 90], 0.5), 100)
    np.testing.assert_allclose(rates(chosen, 100), theirs)


def test_multistep_warms_up_and_counts_its_milestones_from_the_start() -> None:
    chosen = options({"name": "multistep", "warmup": 0.2, "milestones": [0.5], "factor": 0.1})
    np.testing.assert_allclose(rates(chosen, 10), [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("steps", [10, 37, 1000])
@pytest.mark.parametrize(("rise", "start", "end"), [(0.3, 0.04, 1e-4), (0.5, 0.5, 0.1), (0.9, 0.04, 1e-4)])
def test_one_cycle_is_that_of_torch(steps: int, rise: float, start: float, end: float) -> None:
    chosen = options({"name": "one-cycle", "rise": rise, "start": start, "end": end}, 0.7)
    theirs = OneCycleLR(
        optimizer(1), 0.7, total_steps=steps, pct_start=rise, div_factor=1 / start, final_div_factor=1 / end
    )
    np.testing.assert_allclose(rates(chosen, steps), [*of_torch(theirs, steps - 1), 0.7 * start * end], rtol=1e-6)


def test_one_cycle_starts_peaks_and_ends_where_it_says() -> None:
    found = rates(options({"name": "one-cycle", "rise": 0.3, "start": 0.04, "end": 0.01}, 2.0), 100)
    assert (found[0], found[29], found[-1]) == pytest.approx((0.08, 2.0, 0.0008))
    assert max(found) == found[29]
    assert found[29 // 2] < 1.04 < found[29 // 2 + 1], "half way up in half of the steps"


@pytest.mark.parametrize(
    "rate",
    [
        {"name": "cosine", "warmup": 0.99},
        {"name": "multistep", "warmup": 0.01},
        {"name": "one-cycle", "rise": 0.01},
        {"name": "one-cycle", "rise": 0.99, "end": 0.0},
    ],
)
def test_every_length_of_cycle_has_rates_up_to_the_peak(rate: dict[str, Any]) -> None:
    chosen = options(rate, 0.5)
    for steps in range(1, 30):
        assert all(0 <= found <= 0.5 for found in rates(chosen, steps))
        assert rate_at(chosen, 0, steps) > 0


# -- minibatches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size", "bounds"),
    [
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
        (9, 4, [(0, 4), (4, 9)]),
        (8, 4, [(0, 4), (4, 8)]),
        (3, 8, [(0, 3)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_minibatches_cover_all_and_leave_none_alone(n: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert minibatch_bounds(n, size) == bounds


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_sgd_has_its_options() -> None:
    chosen = options({"name": "cosine"}, optimizer={"name": "sgd", "momentum": 0.8, "weight_decay": 0.03})
    made = optimizer_for(chosen, [nn.Parameter(torch.zeros(2))])
    (group,) = made.param_groups
    assert isinstance(made, torch.optim.SGD)
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["fused"]) == (0.8, 0.03, False, True)


def test_adamw_has_its_options() -> None:
    given = {"name": "adamw", "beta1": 0.8, "beta2": 0.99, "weight_decay": 0.03}
    made = optimizer_for(options({"name": "cosine"}, optimizer=given), [nn.Parameter(torch.zeros(2))])
    (group,) = made.param_groups
    assert isinstance(made, torch.optim.AdamW)
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.8, 0.99), 0.03, True)
