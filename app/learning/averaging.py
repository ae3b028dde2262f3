"""Averaging: the mean of the weights along the way, and statistics of normalisation layers that fit it.

Knows: a network's parameters and normalisation layers. Must never know: optimizers, data beyond minibatches of input,
or whether the mean is published.

Laws:
    * A mean is of weights under one mask: it starts anew when the mask shrinks. So what is pruned is zero in it.
    * Weights before the first step are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from app.learning.recipe import Averaging, ExponentialAveraging, TailAveraging


class Average:
    """A running mean of the parameters that are trained; none at all with the option ``none``.

    Args:
        options: the recipe's.
        network: whose parameters.
        epochs: that are planned.

    Attributes:
        mean: by name; empty before anything was taken in.
        taken: how many times weights were taken in since it started anew.
    """

    def __init__(self, options: Averaging, network: nn.Module, epochs: int) -> None:
        self._options = options
        self._first = epochs - max(1, round(options.share * epochs)) if isinstance(options, TailAveraging) else epochs
        self._weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.mean: dict[str, Tensor] = {}
        self.taken = 0

    def after_step(self) -> None:
        """Take in the weights after an optimizer step, if each step counts.

        The mean of steps 1 .. t weighs step i by decay ** (t - i), over the sum of these weights.
        """
        if isinstance(self._options, ExponentialAveraging):
            decay = self._options.decay
            self._take((1 - decay) / (1 - decay ** (self.taken + 1)))

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights at the end of an epoch (0, 1, ...), if it is one of the last that count."""
        if epoch >= self._first:
            self._take(1 / (self.taken + 1))

    def restart(self) -> None:
        """Forget what was taken in."""
        self.mean, self.taken = {}, 0

    def restore(self, mean: Mapping[str, Tensor], taken: int) -> None:
        """Go on from another's ``mean`` and ``taken``."""
        self.mean = {name: mean[name].to(weight.device) for name, weight in self._weights.items()} if mean else {}
        self.taken = taken

    @torch.no_grad()
    def apply(self) -> None:
        """Set the network's parameters to the mean, if there is one."""
        for name, value in self.mean.items():
            self._weights[name].copy_(value)

    @torch.no_grad()
    def _take(self, share: float) -> None:
        self.taken += 1
        if self.mean:
            torch._foreach_lerp_(list(self.mean.values()), list(self._weights.values()), share)
        else:
            self.mean = {name: weight.detach().clone() for name, weight in self._weights.items()}


@torch.no_grad()
def retake_statistics(network: nn.Module, minibatches: Iterable[Tensor]) -> None:
    """Take the running statistics of normalisation layers anew: their mean over all examples of ``minibatches``.

    All other layers answer as they do in evaluation (no dropout), so the statistics are those of the network that is
    used; other buffers, and the modes of all layers but those, stay as they are. A network without such layers is not
    run. Done again after it was broken off, it gives the same bits.

    Args:
        network: in training mode; its layers that are not, stay as they are.
        minibatches: input, in order.
    """
    norms = [m for m in network.modules() if isinstance(m, _NormBase) and m.training and m.running_mean is not None]
    if not norms:
        return
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
        seen = 0
        for x in minibatches:
            seen += len(x)
            for norm in norms:
                norm.momentum = len(x) / seen
            network(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
