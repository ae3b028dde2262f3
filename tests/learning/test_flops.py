from __future__ import annotations

import torch
from torch import nn

from app.learning.architectures import build, prunable_parameters
from app.learning.flops import flops_of
from app.learning.mask import Mask
from app.learning.recipe import Cnn, Mlp


def halved(parameters: dict[str, nn.Parameter]) -> Mask:
    """Every other weight."""
    return Mask({name: (torch.arange(p.numel()) % 2 == 0).reshape(p.shape) for name, p in parameters.items()})


def test_linear_layers_cost_two_operations_a_weight() -> None:
    network = build(Mlp(hidden=(6,)), (8,), 4)
    found = flops_of(network, prunable_parameters(network), halved(prunable_parameters(network)), torch.zeros(1, 8))
    assert found == (2 * (8 * 6 + 6 * 4), 8 * 6 + 6 * 4)


def test_convolutions_cost_them_at_every_position_and_nothing_is_left_behind() -> None:
    network = build(Cnn(channels=(4, 6)), (1, 8, 8), 3).train()
    found = flops_of(
        network, prunable_parameters(network), halved(prunable_parameters(network)), torch.zeros(1, 1, 8, 8)
    )
    dense = 2 * (4 * 9 * 64 + 4 * 6 * 9 * 16 + 6 * 4 * 3)
    assert found == (dense, dense // 2)
    assert network.training and not any(module._forward_hooks for module in network.modules())
