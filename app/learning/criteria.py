"""Criteria: how weights are ranked.

Knows: networks, parameters, minibatches, scores. Must never know: how many weights are to be kept.

Laws:
    * Scores are taken on the weights as they are: a criterion changes neither weights, gradients, buffers nor mode.
    * Batch normalisation and dropout are in eval mode while a separate sample is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import TrainingDiverged
from app.learning.recipe import Magnitude, Random, Snip
from app.learning.registry import Registry
from app.learning.seeds import generator

Minibatches = Iterable[tuple[Tensor, Tensor]]


class Criterion(Protocol):
    """One way to rank weights; ``options`` is the recipe's value of the registered type."""

    def __call__(
        self, options: Any, network: nn.Module, parameters: Mapping[str, nn.Parameter], sample: Minibatches, seed: int
    ) -> dict[str, Tensor]:
        """Scores of the ``parameters``, by name: float32, same shapes, higher is kept longer.

        Args:
            options: the recipe's options.
            network: in eval mode, on its device; not to be changed.
            parameters: the prunable ones, in order.
            sample: minibatches of (input, labels) to score on.
            seed: for criteria that draw.
        """
        ...


CRITERIA: Registry[Criterion] = Registry("criterion")


def score(
    options: object, network: nn.Module, parameters: Mapping[str, nn.Parameter], sample: Minibatches, seed: int
) -> dict[str, Tensor]:
    """Score ``parameters`` of ``network`` by a criterion of the recipe; see ``Criterion``."""
    training = network.training
    network.eval()
    try:
        return CRITERIA[options](options, network, parameters, sample, seed)
    finally:
        network.train(training)


@CRITERIA.register(Snip)
def snip(
    options: Snip, network: nn.Module, parameters: Mapping[str, nn.Parameter], sample: Minibatches, seed: int
) -> dict[str, Tensor]:
    """SNIP (Lee et al. 2019, arXiv 1810.02340): |w * dL/dw|, L the mean cross entropy over the whole sample.

    The gradient is summed over minibatches with its sign before the absolute value is taken, as published; each example
    weighs the same, so the scores do not depend on how the sample falls into minibatches.
    """
    weights = list(parameters.values())
    gradients = [torch.zeros_like(weight) for weight in weights]
    examples = 0
    for x, y in sample:
        loss = functional.cross_entropy(network(x), y, reduction="sum")
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(gradients, list(found))
        examples += len(y)
    if examples:
        torch._foreach_div_(gradients, examples)
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise TrainingDiverged(
            "the gradients to be scored are infinite or NaN: lower training.learning_rate, or check the inputs' scale"
        )
    scores = [(weight.detach() * gradient).abs() for weight, gradient in zip(weights, gradients, strict=True)]
    return dict(zip(parameters, scores, strict=True))


@CRITERIA.register(Magnitude)
def magnitude(
    options: Magnitude, network: nn.Module, parameters: Mapping[str, nn.Parameter], sample: Minibatches, seed: int
) -> dict[str, Tensor]:
    """|w|; needs no sample."""
    return {name: weight.detach().abs() for name, weight in parameters.items()}


@CRITERIA.register(Random)
def random(
    options: Random, network: nn.Module, parameters: Mapping[str, nn.Parameter], sample: Minibatches, seed: int
) -> dict[str, Tensor]:
    """Uniform on [0, 1), drawn on the CPU so that they do not depend on the device; needs no sample."""
    source = generator(seed)
    return {name: torch.rand(weight.shape, generator=source).to(weight.device) for name, weight in parameters.items()}
