"""FLOPs: what one example costs in multiplications and additions, dense and under a mask.

Knows: layers and the sizes of their outputs. Must never know: how long anything takes: masks of single weights make
files small, and networks no faster.

Law: the network's mode, weights and buffers are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.learning.mask import Mask

Hook = Callable[[nn.Module, Any, Any], None]


class Flops(NamedTuple):
    """Multiplications and additions of one example in prunable layers: of all weights, and of those kept."""

    dense: int
    sparse: int


def flops_of(network: nn.Module, prunable: Mapping[str, nn.Parameter], mask: Mask, example: Tensor) -> Flops:
    """Count 2 x weights x output positions over the prunable layers, biases and normalisation left out.

    Args:
        network: on the example's device.
        prunable: its prunable parameters, by name.
        mask: which of them are kept.
        example: (1, *network_shape) float32.
    """
    names = {id(parameter): name for name, parameter in prunable.items()}
    positions: dict[str, int] = {}
    hooks = []
    for module in network.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None:
            hooks.append(module.register_forward_hook(_counting(name, positions)))
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            network(example)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    used = [layer for layer in mask.layers if layer.name in positions]
    return Flops(
        sum(2 * layer.total * positions[layer.name] for layer in used),
        sum(2 * layer.kept * positions[layer.name] for layer in used),
    )


def _counting(name: str, positions: dict[str, int]) -> Hook:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels = output.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else output.shape[-1]
        positions[name] = positions.get(name, 0) + output.numel() // channels

    return count
