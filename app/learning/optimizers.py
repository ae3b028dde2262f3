"""Optimizers, learning rates, minibatches: how one optimizer step is made.

Knows: the training options of a recipe. Must never know: masks, epochs done so far, or what is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from app.learning.recipe import AdamW, Cosine, Multistep, OneCycle, Sgd, Training


def rate_at(options: Training, step: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (0 .. steps - 1) of a cycle of ``steps``.

    With r = round(warmup * steps) steps of warm-up, step i < r has (i + 1) / r of the peak. Then come, with the names
    of torch's own: ``cosine`` as CosineAnnealingLR with T_max = steps - r, so that step ``steps`` would have rate 0;
    ``multistep`` as MultiStepLR, its milestones counted from the start; ``one-cycle`` as OneCycleLR, whose first phase
    is its warm-up.
    """
    peak = options.learning_rate
    match options.rate:
        case Cosine(warmup=warmup):
            rising = round(warmup * steps)
            if step < rising:
                return peak * (step + 1) / rising
            return peak * _cosine(1.0, 0.0, (step - rising) / (steps - rising))
        case Multistep(warmup=warmup, milestones=milestones, factor=factor):
            rising = round(warmup * steps)
            if step < rising:
                return peak * (step + 1) / rising
            return peak * factor ** sum(step / steps >= milestone for milestone in milestones)
        case OneCycle(rise=rise, start=start, end=end):
            top, last = max(rise * steps - 1, 0.0), steps - 1
            if step < top:
                return peak * _cosine(start, 1.0, step / top)
            return peak * _cosine(1.0, start * end, (step - top) / (last - top or 1.0))


def _cosine(first: float, last: float, progress: float) -> float:
    """From ``first`` to ``last`` along a half cosine; progress in [0, 1]."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def minibatch_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Where the minibatches of an epoch begin and end.

    A single left-over example joins the minibatch before it: batch normalisation cannot take one alone.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1 and size > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))


def optimizer_for(options: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer, with fused or multi-tensor steps."""
    match options.optimizer:
        case Sgd(momentum=momentum, weight_decay=decay):
            return torch.optim.SGD(
                parameters, options.learning_rate, momentum=momentum, weight_decay=decay, **_fast(parameters)
            )
        case AdamW(beta1=beta1, beta2=beta2, weight_decay=decay):
            return torch.optim.AdamW(
                parameters, options.learning_rate, betas=(beta1, beta2), weight_decay=decay, **_fast(parameters)
            )


def _fast(parameters: Sequence[nn.Parameter]) -> dict[str, bool]:
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
