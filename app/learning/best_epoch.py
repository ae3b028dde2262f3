"""The best epoch: whose weights are published where epochs are selected, and when no better one is waited for.

Knows: validation figures of epochs, a network's tensors. Must never know: optimizers, masks, data.

Laws:
    * Epochs under a larger mask than the present one are no candidates.
    * Patience is counted once the mask is the final one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Best:
    """The best epoch so far: highest validation accuracy; then lowest validation loss; then the earliest."""

    epoch: int
    accuracy: float
    loss: float

    def beats(self, other: Best | None) -> bool:
        """Whether this epoch, a later one, is strictly better."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class BestEpoch:
    """Keeps the weights of the best epoch.

    Args:
        patience: epochs without a better one after which none is waited for; None waits to the end.

    Attributes:
        best: so far; None before there was a candidate.
        tensors: the network's at the end of it, by name.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._settled: int | None = None
        self.best: Best | None = None
        self.tensors: dict[str, Tensor] = {}

    def offer(self, candidate: Best, network: nn.Module) -> None:
        """Take the network's weights over, if the epoch that just ended is better."""
        if candidate.beats(self.best):
            self.best = candidate
            self.tensors = {name: value.detach().clone() for name, value in tensors_of(network).items()}

    def restart(self) -> None:
        """Forget all candidates."""
        self.best, self.tensors = None, {}

    def settle(self, epoch: int) -> None:
        """Count patience from here on: the mask under which ``epoch`` (0, 1, ...) ends is the final one."""
        self._settled = epoch

    def given_up(self, epochs: int) -> bool:
        """Whether patience has run out after so many epochs."""
        if self._patience is None or self._settled is None or self.best is None:
            return False
        return epochs - max(self._settled, self.best.epoch + 1) >= self._patience

    def apply(self, network: nn.Module) -> None:
        """Let the network hold the best epoch's weights, if there was a candidate."""
        if self.tensors:
            copy_into(network, self.tensors)

    def facts(self) -> dict[str, Any]:
        """What ``restore`` needs beside ``tensors``: plain values."""
        return {"best": asdict(self.best) if self.best else None, "settled": self._settled}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from another's ``tensors`` and ``facts``."""
        self.tensors = dict(tensors)
        self.best = Best(**facts["best"]) if facts["best"] else None
        self._settled = facts["settled"]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, persistent or not, by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def copy_into(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set every parameter and buffer of the network."""
    for name, tensor in tensors_of(network).items():
        tensor.copy_(values[name])
