from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from app.learning.latency import latency_of
from tests.learning.cases import first_cycle, run, small_recipe

CPU = torch.device("cpu")


class Sleeping(nn.Module):
    """Takes a millisecond for every tenth of its weights not at zero; this sleep is what is measured, no wait."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.only = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            time.sleep(0.01 * float((self.only.weight != 0).float().mean()))
        answer: Tensor = self.only(x)
        return answer


def test_it_is_measured_as_served_and_with_no_weight_at_zero() -> None:
    recipe = small_recipe(network={"name": "custom", "architecture": "sleeping"})
    given = first_cycle(recipe, architecture=lambda shape, classes: Sleeping(shape[0], classes))
    result = run(given)
    found = latency_of(given, {**result.arrays, "only.weight": 0 * result.arrays["only.weight"]}, {
        "only.weight": result.masks["only.weight"] & False
    }, CPU)  # fmt: skip
    assert 10 <= found.dense < 60 and found.served < found.dense - 5


def test_zeros_in_dense_kernels_save_nothing() -> None:
    given = first_cycle(small_recipe())
    result = run(given)
    before = {name: array.copy() for name, array in result.arrays.items()}
    found = latency_of(given, result.arrays, result.masks, CPU)
    assert 0.4 < found.served / found.dense < 2.5
    assert all((before[name] == array).all() for name, array in result.arrays.items())
