"""Running scores: what the ordinary gradients of training say about each weight, step by step.

Knows: weights and their gradients. Must never know: masks, or what the scores are used for.

Laws:
    * Even and odd optimizer steps are kept apart, so that two disjoint samples can be compared.
    * Nothing of an update is Python per layer; it costs three passes over the prunable weights.
    * Two floats are kept for each prunable weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class RunningScores:
    """Running means of |w * dL/dw| (Molchanov et al., arXiv 1611.06440), one of even steps and one of odd ones.

    Batch normalisation is in train mode: the gradients are those of training itself.

    Args:
        parameters: the prunable ones, by name.
        decay: of the running mean, per optimizer step.

    Attributes:
        updates: optimizer steps taken in.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._names = list(parameters)
        self._weights: list[Tensor] = list(parameters.values())
        self._keep = decay**2  # each half sees every other step
        self._halves = [[torch.zeros_like(weight) for weight in self._weights] for _ in range(2)]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the gradients that the last backward pass left; a weight without one counts as zero."""
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._weights]
        found = list(torch._foreach_mul(self._weights, gradients))
        torch._foreach_abs_(found)
        torch._foreach_lerp_(self._halves[self.updates % 2], found, 1 - self._keep)
        self.updates += 1

    def halves(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The means of even steps and of odd ones, by name: float32, the weights' shapes; zero before the first."""
        first, second = (
            dict(zip(self._names, torch._foreach_div(self._halves[i], self._weight(i) or 1.0), strict=True))
            for i in (0, 1)
        )
        return first, second

    def scores(self) -> dict[str, Tensor]:
        """The mean of all steps, by name: that of both halves, each as heavy as the steps that it has seen."""
        both = list(torch._foreach_add(self._halves[0], self._halves[1]))
        torch._foreach_div_(both, self._weight(0) + self._weight(1) or 1.0)
        return dict(zip(self._names, both, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that ``restore`` needs."""
        tensors = {f"{i}/{name}": t for i in (0, 1) for name, t in zip(self._names, self._halves[i], strict=True)}
        return tensors | {"updates": torch.tensor(self.updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        self.updates = int(tensors["updates"])
        for i in (0, 1):
            _copy(self._halves[i], [tensors[f"{i}/{name}"] for name in self._names])

    def _weight(self, half: int) -> float:
        """What the weights of a half's steps add up to so far: it began at zero (as in Kingma and Ba 2015)."""
        return 1 - self._keep ** ((self.updates + 1 - half) // 2)


@torch.no_grad()
def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
