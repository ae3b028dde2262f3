"""Criteria: how weights are ranked.

Knows: networks, parameters, minibatches, scores. Must never know: how many weights are to be kept.

Laws:
    * Scores are taken on the weights as they are: a criterion changes neither weights, gradients, buffers nor mode.
    * Batch normalisation and dropout are in eval mode while a separate sample is scored.
    * What disjoint samples say adds up: a sample is gone through once, whatever is then scored of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from app.errors import InvariantBroken, LearningFailed
from app.learning.recipe import Grasp, Magnitude, Random, Snip, SnipAbsolute, SynFlow, Taylor
from app.learning.registry import Registry
from app.learning.seeds import generator
from app.learning.sensitivity import Minibatches, hessian_products, loss_gradients, synaptic_flow

Parameters = Mapping[str, nn.Parameter]
Scores = dict[str, Tensor]
"""By name: the parameters' shapes and types; higher is kept longer."""


class Tally(Protocol):
    """What a criterion gathered from some examples."""

    def __add__(self, other: Self, /) -> Self:
        """The tally of the examples of both, which must be disjoint."""
        ...

    def scores(self) -> Scores:
        """The scores that follow."""
        ...


class Criterion(Protocol):
    """One way to rank weights; ``options`` is the recipe's value of the registered type."""

    def __call__(
        self, options: Any, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int
    ) -> Tally | Scores:
        """Gather what ``sample`` says about the ``parameters``; or score them at once, where no sample has a say.

        Args:
            options: the recipe's options.
            network: on its device; not to be changed.
            parameters: the prunable ones, in order.
            sample: minibatches of (input, labels) to score on; can be gone through more than once.
            seed: for criteria that draw.
        """
        ...


CRITERIA: Registry[Criterion] = Registry("criterion")


def tally(options: object, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Tally:
    """Gather by a criterion of the recipe; see ``Criterion``.

    Raises:
        TrainingDiverged: when gradients are not finite.
        LearningFailed: when the criterion cannot score a sample.
    """
    found = CRITERIA[options](options, network, parameters, sample, seed)
    return Settled(found) if isinstance(found, dict) else found


def score(options: object, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Scores:
    """Score by a criterion of the recipe; see ``tally``."""
    return tally(options, network, parameters, sample, seed).scores()


# -- on a sample -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the loss, summed over examples; the score is |w * mean gradient|."""

    parameters: Parameters
    sums: list[Tensor]
    examples: int

    def __add__(self, other: Gradients) -> Gradients:
        sums = torch._foreach_add(self.sums, other.sums)
        return Gradients(self.parameters, list(sums), self.examples + other.examples)

    @torch.no_grad()
    def scores(self) -> Scores:
        """|w * sum / examples|."""
        found = list(torch._foreach_div(self.sums, max(self.examples, 1)))
        torch._foreach_mul_(found, list(self.parameters.values()))
        torch._foreach_abs_(found)
        return dict(zip(self.parameters, found, strict=True))


@CRITERIA.register(Snip)
def snip(options: Snip, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Gradients:
    """SNIP (Lee et al. 2019, arXiv 1810.02340): |w * dL/dw|, L the mean cross entropy over the whole sample.

    The gradient is summed over minibatches with its sign before the absolute value is taken, as published; each example
    weighs the same, so the scores do not depend on how the sample falls into minibatches.
    """
    return Gradients(parameters, *loss_gradients(network, list(parameters.values()), sample))


@CRITERIA.register(SnipAbsolute)
def snip_absolute(
    options: SnipAbsolute, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int
) -> Gradients:
    """Sum over minibatches of |w * dL/dw| / examples, L the sum of a minibatch's cross entropies.

    Gradients of opposite sign do not cancel, except within a minibatch; so it depends on how the sample falls into
    minibatches. Each example weighs the same, in a minibatch of whatever size.
    """
    return Gradients(parameters, *loss_gradients(network, list(parameters.values()), sample, absolute=True))


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Gradients of a loss, summed over examples, and the examples themselves; the score is w * H g."""

    network: nn.Module
    parameters: Parameters
    temperature: float
    samples: tuple[Minibatches, ...]
    sums: list[Tensor]
    examples: int

    def __add__(self, other: GradientFlow) -> GradientFlow:
        sums, samples = list(torch._foreach_add(self.sums, other.sums)), (*self.samples, *other.samples)
        examples = self.examples + other.examples
        return GradientFlow(self.network, self.parameters, self.temperature, samples, sums, examples)

    def scores(self) -> Scores:
        """The scores; they take another pass over the examples. g is taken by the weights that are not zero."""
        weights = [weight.detach() for weight in self.parameters.values()]
        squared = max(self.examples, 1) ** 2
        direction = [total * (weight != 0) / squared for total, weight in zip(self.sums, weights, strict=True)]
        sample = chain.from_iterable(self.samples)
        parameters = list(self.parameters.values())
        found = hessian_products(self.network, parameters, sample, direction, self.temperature)
        torch._foreach_mul_(found, weights)
        return dict(zip(self.parameters, found, strict=True))


@CRITERIA.register(Grasp)
def grasp(options: Grasp, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> GradientFlow:
    """GraSP (Wang et al. 2020, arXiv 2002.07376): w * H g, g and H gradient and Hessian of the mean loss of the sample.

    The loss is the cross entropy of logits / temperature. To first order the removal of a weight changes the squared
    norm of g by -2 * w * H g; the paper prunes where -w * H g is highest, so weights are kept whose removal lowers the
    norm most. Scores have signs. The norm is taken over the weights that are not zero: those that train. Both factors
    are summed over the whole sample, so the scores do not depend on how it falls into minibatches.

    Raises:
        InvariantBroken: when the sample can be gone through only once.
    """
    if isinstance(sample, Iterator):
        raise InvariantBroken("grasp goes through its sample twice: give it one that can be, such as a list")
    weights = list(parameters.values())
    found = loss_gradients(network, weights, sample, temperature=options.temperature)
    return GradientFlow(network, parameters, options.temperature, (sample,), *found)


# -- on the weights alone ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Settled:
    """Scores that no example changes."""

    found: Scores

    def __add__(self, other: Settled) -> Settled:
        return self

    def scores(self) -> Scores:
        """As they were found."""
        return self.found


@CRITERIA.register(SynFlow)
def synflow(options: SynFlow, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Scores:
    """SynFlow (Tanaka et al. 2020, arXiv 2006.05467): |w * dR/dw| / R; see ``synaptic_flow``.

    Of the sample the shape of one example is looked at, nothing else.

    Raises:
        LearningFailed: when the sample is empty.
    """
    for x, _ in sample:
        return synaptic_flow(network, parameters, x.shape[1:])
    raise LearningFailed("criterion synflow needs one example, for the shape of the input")


@CRITERIA.register(Magnitude)
def magnitude(options: Magnitude, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Scores:
    """|w|; needs no sample."""
    return {name: weight.detach().abs() for name, weight in parameters.items()}


@CRITERIA.register(Random)
def random(options: Random, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Scores:
    """Uniform on [0, 1), drawn on the CPU so that they do not depend on the device; needs no sample."""
    source = generator(seed)
    return {name: torch.rand(weight.shape, generator=source).to(weight.device) for name, weight in parameters.items()}


# -- on training itself ------------------------------------------------------------------------------------------------


@CRITERIA.register(Taylor)
def taylor(options: Taylor, network: nn.Module, parameters: Parameters, sample: Minibatches, seed: int) -> Tally:
    """Never on a sample.

    Raises:
        LearningFailed: always.
    """
    raise LearningFailed(
        "criterion taylor takes its scores from the gradients of training (running.RunningScores), not from a sample: "
        "set pace to ramp, or criterion to snip"
    )
