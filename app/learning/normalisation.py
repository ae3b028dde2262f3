"""Normalisation: stored examples -> what the network sees.

Knows: signed log, standardisation, clipping, and the layout that a network expects. Must never know: labels, or where
examples come from. ``espalier.formats.checkpoint`` does the same in numpy for clients.

Laws:
    * Statistics come from training rows alone: of the first megabatch, frozen from then on (``first-megabatch``), or of
      all that the lineage has taken in (``running``).
    * Bounded memory: statistics are taken in chunks, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.domain import InputSpec, Normalisation
from app.errors import InvalidInputSpec
from app.learning.moments import Moments
from app.learning.recipe import Mlp, Network

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NormalisationState:
    """Statistics that a version carries, as its checkpoint does.

    Attributes:
        mean, std: float32; (features,) for flat inputs, (channels,) for channels-last images, (1,) for images without
            a channel axis. ``std`` is 1 where a feature is constant.
    """

    mean: FloatArray
    std: FloatArray


def is_running(spec: InputSpec) -> bool:
    """Whether statistics go on with every megabatch."""
    return _rule(spec).name == "running"


def moments_of(spec: InputSpec, rows: Callable[[], Iterable[npt.NDArray[Any] | Tensor]]) -> Moments:
    """Moments of rows per feature, or per channel of images, after the signed log where there is one.

    Args:
        spec: a complete input specification.
        rows: gives them, at least one, in chunks of (m, *shape); each call starts anew.
    """
    signed_log = _rule(spec).signed_log

    def columns() -> Iterable[npt.NDArray[np.float64]]:
        for chunk in rows():
            values = np.asarray(chunk).astype(np.float32)
            if signed_log:
                values = np.sign(values) * np.log1p(np.abs(values))
            width = values.shape[-1] if values.ndim != 3 else 1
            yield values.astype(np.float64).reshape(-1, width)

    return Moments.of(columns)


def state_of(moments: Moments) -> NormalisationState:
    """The statistics that follow from moments."""
    std = moments.std.astype(np.float32)
    return NormalisationState(moments.mean.astype(np.float32), np.where(std > 0, std, np.float32(1)))


def initial_state(
    spec: InputSpec, first: Callable[[], Iterable[npt.NDArray[Any] | Tensor]]
) -> NormalisationState | None:
    """The statistics of a model that has none yet.

    Args:
        spec: a complete input specification.
        first: gives the training rows of the first megabatch, in chunks of (m, *shape); each call starts anew.

    Raises:
        InvalidInputSpec: when fixed statistics do not fit the shape.
    """
    if _rule(spec).name in ("first-megabatch", "running"):
        return state_of(moments_of(spec, first))
    return fixed_state(spec)


def fixed_state(spec: InputSpec) -> NormalisationState | None:
    """The statistics that the specification itself gives: those of ``fixed``, else None.

    Raises:
        InvalidInputSpec: when they do not fit the shape.
    """
    how, width = _rule(spec), _width(spec)
    if how.name != "fixed" or not (how.mean or how.std):
        return None
    mean = np.asarray(how.mean or (0.0,) * width, dtype=np.float32)
    std = np.asarray(how.std or (1.0,) * width, dtype=np.float32)
    if mean.shape != (width,) or std.shape != (width,) or not (std > 0).all():
        message = f"normalisation needs {width} means and {width} positive standard deviations for shape {spec.shape}"
        raise InvalidInputSpec(message, [("/input/normalisation", message)])
    return NormalisationState(mean, std)


class Preparation:
    """Turns stored rows into network input: normalise, then lay out; (m, *shape) array -> float32 tensor on a device.

    Flat inputs stay (m, features). Images, stored channels last, become (m, channels, height, width), or, for the
    recipe's ``mlp``, (m, values) in channels-last order.
    """

    def __init__(
        self, spec: InputSpec, state: NormalisationState | None, network: Network, device: torch.device
    ) -> None:
        how = _rule(spec)
        self._signed_log, self._clip, self._flat = how.signed_log, how.clip, isinstance(network, Mlp)
        self._device = device
        self._statistics = None if state is None else (_tensor(state.mean, device), _tensor(state.std, device))

    def __call__(self, rows: npt.NDArray[Any] | Tensor) -> Tensor:
        """Prepare rows, on whichever device; an array must be writable memory, not a view of a memory map."""
        x = (rows if isinstance(rows, Tensor) else torch.from_numpy(rows)).to(self._device).to(torch.float32)
        if self._signed_log:
            x = torch.log1p(torch.abs(x)).mul_(torch.sign(x))
        if self._statistics is not None:
            mean, std = self._statistics
            x = torch.sub(x, mean).div_(std)
        if self._clip is not None:
            x = torch.clamp(x, -self._clip, self._clip)
        return x.flatten(1) if self._flat else _channels_first(x)


def network_shape(shape: tuple[int, ...], network: Network) -> tuple[int, ...]:
    """Shape of one example as the network's ``forward`` gets it: (features,) or (channels, height, width)."""
    if isinstance(network, Mlp):
        return (int(np.prod(shape)),)
    match shape:
        case (_,):
            return shape
        case (height, width):
            return (1, height, width)
        case _:
            return (shape[-1], *shape[:-1])


def _channels_first(x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x
    return x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1).contiguous()


def _rule(spec: InputSpec) -> Normalisation:
    if spec.normalisation is None or spec.shape is None:
        raise InvalidInputSpec("the input is not complete: shape and normalisation must be known before a cycle")
    return spec.normalisation


def _width(spec: InputSpec) -> int:
    assert spec.shape is not None
    return 1 if len(spec.shape) == 2 else spec.shape[-1]


def _tensor(values: FloatArray, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)
