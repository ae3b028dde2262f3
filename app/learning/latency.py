"""Latency: how long a network takes to answer one example, as it is served and as it would be dense, measured.

Knows: clocks, and the device that the worker computes on. Must never know: what is counted (`flops`), verdicts, the
store: a time is never a reason for a decision, since the next machine measures another.

Zeros in dense kernels save no time; that is what this says, by a figure, until something is served that saves some.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.learning.normalisation import network_shape
from app.learning.plan import CycleInput, starting_network

_WARM, _ROUNDS, _SECONDS = 3, 51, 0.25
"""Passes before any is timed; timed at most, of each of the two; and when to stop before that."""


class Latency(NamedTuple):
    """Milliseconds for one example, medians of passes that took turns: a busy machine slows both."""

    served: float
    dense: float


def latency_of(
    given: CycleInput,
    arrays: Mapping[str, npt.NDArray[Any]],
    masks: Mapping[str, npt.NDArray[np.bool_]],
    device: torch.device,
) -> Latency:
    """Time the network with these arrays, and with numbers where they are pruned.

    Args:
        given: the cycle's, for the network and the shape of an example.
        arrays: every tensor of the network's ``state_dict``, +0.0 where pruned.
        masks: boolean, of the prunable tensors.
        device: where to compute; as many threads as torch has now.
    """
    assert given.input.shape is not None
    random = np.random.default_rng(0)
    filled = {
        name: np.where(mask, arrays[name], random.normal(scale=0.01, size=mask.shape)).astype(arrays[name].dtype)
        for name, mask in masks.items()
    }
    served, dense = (
        starting_network(replace(given, parent=None, initial=weights), 0, device).eval()
        for weights in (dict(arrays), {**arrays, **filled})
    )
    shape = network_shape(given.input.shape, given.recipe.network)
    example = torch.from_numpy(random.normal(size=(1, *shape)).astype(np.float32)).to(device)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + _SECONDS
    with torch.inference_mode():
        for turn in range(-_WARM, _ROUNDS):
            taken = [_timed(network, example) for network in (served, dense)]
            if turn >= 0:
                for kept, one in zip(times, taken, strict=True):
                    kept.append(one)
                if time.monotonic() > end:
                    break
    return Latency(*(1000 * median(kept) for kept in times))


def _timed(network: nn.Module, example: Tensor) -> float:
    started = time.perf_counter()
    network(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - started
