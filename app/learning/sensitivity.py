"""Sensitivity: derivatives by each weight, of the loss, of its gradient's norm, of the flow through a network.

Knows: networks, weights, minibatches. Must never know: recipes, masks, or what a derivative is used for.

Laws:
    * A network is as it was afterwards, to the bit: weights, gradients, buffers, the mode of every module.
    * Batch normalisation and dropout are in eval mode.
    * Losses are summed over examples, so that a derivative does not depend on how they fall into minibatches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from app.errors import TrainingDiverged

Minibatches = Iterable[tuple[Tensor, Tensor]]
"""(input, labels) of each minibatch."""


def loss_gradients(
    network: nn.Module,
    weights: Sequence[Tensor],
    sample: Minibatches,
    *,
    temperature: float = 1.0,
    absolute: bool = False,
) -> tuple[list[Tensor], int]:
    """Gradient by ``weights`` of the cross entropy, summed over the examples of ``sample``; and their number.

    Args:
        network: gives logits.
        weights: of the network; one that takes no part has gradient zero.
        sample: gone through once.
        temperature: logits are divided by it.
        absolute: take the absolute value of each minibatch's gradient before it is added.

    Raises:
        TrainingDiverged: when a gradient is not finite.
    """
    sums, examples = [torch.zeros_like(weight) for weight in weights], 0
    with _undisturbed(network):
        for x, y in sample:
            loss = functional.cross_entropy(network(x) / temperature, y, reduction="sum")
            found = _by_each([loss], weights)
            torch._foreach_add_(sums, torch._foreach_abs(found) if absolute else found)
            examples += len(y)
    _require_finite(sums)
    return sums, examples


def hessian_products(
    network: nn.Module, weights: Sequence[Tensor], sample: Minibatches, direction: Sequence[Tensor], temperature: float
) -> list[Tensor]:
    """H d, by double backward: H the Hessian of the loss of ``loss_gradients`` by ``weights``, d the ``direction``.

    Raises:
        TrainingDiverged: when a product is not finite.
    """
    sums = [torch.zeros_like(weight) for weight in weights]
    with _undisturbed(network):
        for x, y in sample:
            loss = functional.cross_entropy(network(x) / temperature, y, reduction="sum")
            gradients = _by_each([loss], weights, create_graph=True)
            torch._foreach_add_(sums, _by_each(gradients, weights, direction))
    _require_finite(sums)
    return sums


def synaptic_flow(network: nn.Module, parameters: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
    """Share of the flow through the network that passes through each weight: |w| * dR/d|w| / R, in [0, 1].

    R is the sum of the outputs for one input of ones, of the network of absolute weights (Tanaka et al. 2020, arXiv
    2006.05467, R_SF): biases and running means are zero in it, so it is linear in each layer and nothing in it is
    negative, and normalisation only scales. In a plain chain of layers the shares of each layer add up to 1. Float32
    is tried first, float64 where R or a derivative leaves its range.

    Args:
        network: left as it is; the copy shares its modules, not its tensors.
        parameters: the weights to share the flow among, by name.
        shape: of one example.

    Raises:
        TrainingDiverged: when float64 overflows too.
    """
    for dtype in (torch.float32, torch.float64):
        flow, shares = _flow(network, parameters, shape, dtype)
        finite = _finite(shares)
        if finite and flow > torch.finfo(dtype).tiny:
            found = zip(parameters.items(), shares, strict=True)
            return {name: share.to(weight.dtype) for (name, weight), share in found}
    if not finite:
        raise TrainingDiverged("the flow through the network of absolute weights overflows: take another criterion")
    return {name: torch.zeros_like(weight) for name, weight in parameters.items()}  # nothing flows any more


def _flow(
    network: nn.Module, parameters: Mapping[str, Tensor], shape: Sequence[int], dtype: torch.dtype
) -> tuple[float, list[Tensor]]:
    """R, and each weight's share of it."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    copies = {name: _positive(name, tensor.detach(), dtype) for name, tensor in tensors.items()}
    weights = [copies[name].requires_grad_() for name in parameters]
    ones = torch.ones(1, *shape, dtype=dtype, device=weights[0].device)
    with _undisturbed(network):
        flow = functional_call(network, copies, (ones,)).sum()
        found = _by_each([flow], weights)
    total = flow.item()
    with torch.no_grad():
        torch._foreach_mul_(found, weights)
        torch._foreach_div_(found, total or 1.0)
    return total, found


def _positive(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    if name.endswith(("bias", "running_mean")):
        return torch.zeros_like(tensor, dtype=dtype)
    return tensor.to(dtype, copy=True).abs_()


def _by_each(
    values: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    """Derivative of sum(value * factor) by each weight; zero where a weight takes no part."""
    taking_part = [i for i, value in enumerate(values) if value.requires_grad]
    if not taking_part:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(
        [values[i] for i in taking_part],
        weights,
        [factors[i] for i in taking_part] if factors is not None else None,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


def _require_finite(sums: list[Tensor]) -> None:
    if not _finite(sums):
        raise TrainingDiverged(
            "the gradients to be scored are infinite or NaN: lower training.learning_rate, or check the inputs' scale"
        )


def _finite(tensors: list[Tensor]) -> bool:
    """Whether all is finite; the device is waited for once."""
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all())


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Eval mode and gradients within; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
