"""Mask: which weights are kept; and the exact top-k that makes the next one.

Knows: boolean tensors by name, counting, ranking by score. Must never know: where scores come from.

Laws:
    * ``top_k`` keeps exactly k weights; ties go to the lower flat index, in the order of names, then of elements.
    * The new mask is a subset of the old one: pruned weights rank below every kept one, whatever their score.
    * The result depends on scores alone, not on device, threads or chunk size: ranking is integer arithmetic on the
      scores' bits. Beside the scores and masks it needs a constant amount of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.domain import Digest, Layer
from app.errors import InvariantBroken, TrainingDiverged
from espalier.formats.checkpoint import mask_digest

_LOWEST = -(2**31)
"""Key of a pruned weight: below that of every float."""

_CHUNK = 1 << 20
"""Weights that are ranked at a time."""

_BINS = 1 << 16


class Mask(Mapping[str, Tensor]):
    """Which weights are kept: prunable tensor's name -> boolean tensor of its shape, in the network's order.

    Raises:
        InvariantBroken: when a tensor is not boolean.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        wrong = [name for name, tensor in kept.items() if tensor.dtype != torch.bool]
        if wrong:
            raise InvariantBroken(f"masks must be boolean: {', '.join(wrong)}")
        self._tensors = {name: tensor.detach().clone() for name, tensor in kept.items()}
        self.total = sum(tensor.numel() for tensor in kept.values())
        self.layers = tuple(_layer(name, tensor) for name, tensor in self._tensors.items())
        self.kept = sum(layer.kept for layer in self.layers)

    @classmethod
    def full(cls, parameters: Mapping[str, Tensor]) -> Mask:
        """Keep every weight of ``parameters``."""
        return cls({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in parameters.items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.bool_]], parameters: Mapping[str, Tensor]) -> Mask:
        """The mask of a checkpoint, for a network with these prunable ``parameters``.

        Raises:
            InvariantBroken: when names or shapes differ.
        """
        ours = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        theirs = {name: tuple(array.shape) for name, array in arrays.items()}
        if ours != theirs:
            differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise InvariantBroken(f"the parent's masks do not fit the network: {', '.join(differing)}")
        return cls(
            {name: torch.from_numpy(np.array(arrays[name])).to(ours_.device) for name, ours_ in parameters.items()}
        )

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def density(self) -> float:
        """Kept weights / all prunable weights."""
        return self.kept / self.total

    def arrays(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The same as numpy arrays."""
        return {name: tensor.cpu().numpy() for name, tensor in self.items()}

    def digest(self) -> Digest:
        """Digest over names, shapes and bits, as checkpoints bear it."""
        return mask_digest(self.arrays())

    def floats(self) -> list[Tensor]:
        """Each mask as float32 ones and zeros, for multiplying."""
        return [tensor.to(torch.float32) for tensor in self._tensors.values()]

    def is_subset_of(self, other: Mask) -> bool:
        """Whether every weight that is kept here is kept there."""
        return list(self) == list(other) and not any(
            bool((tensor & ~other[name]).any()) for name, tensor in self._tensors.items()
        )

    @torch.no_grad()
    def apply(self, parameters: Mapping[str, Tensor]) -> None:
        """Set pruned weights to zero, in place."""
        for name, tensor in self._tensors.items():
            parameters[name].masked_fill_(~tensor, 0)

    @torch.no_grad()
    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether all that is pruned is exactly zero in ``tensors`` (by name; absent ones count as zero)."""
        return not any(
            bool(((tensors[name] != 0) & ~tensor).any()) for name, tensor in self._tensors.items() if name in tensors
        )

    def intact(self) -> bool:
        """Whether the tensors still count what they counted when the mask was made."""
        return sum(int(tensor.sum()) for tensor in self._tensors.values()) == self.kept


@dataclass(frozen=True, eq=False)
class Selection:
    """The outcome of ``top_k``.

    Attributes:
        mask: the new mask.
        threshold: score of the last weight kept.
        quantiles: scores at 0, 1/4, 1/2, 3/4 and 1 of the ranking of the weights that were kept before (nearest rank).
    """

    mask: Mask
    threshold: float
    quantiles: tuple[float, float, float, float, float]


@torch.no_grad()
def top_k(scores: Mapping[str, Tensor], mask: Mask, k: int) -> Selection:
    """Keep the k highest-scoring weights among those that ``mask`` keeps, over all tensors together.

    Two passes count the scores' bit patterns, in 65,536 bins each: the first finds the upper half of the threshold's
    bits, the second the lower half. A third pass keeps what lies above, and of the ties the first ones.

    Args:
        scores: float tensors of the masks' shapes; scores of pruned weights are not looked at.
        mask: the mask so far.
        k: how many to keep, 1 <= k <= mask.kept.

    Raises:
        InvariantBroken: when k or the shapes do not fit.
        TrainingDiverged: when the score of a kept weight is not finite.
    """
    _check(scores, mask, k)
    flat = [(scores[name].detach().reshape(-1), mask[name].reshape(-1)) for name in mask]
    ranks = [mask.kept - 1 - round(q * (mask.kept - 1)) for q in (0, 0.25, 0.5, 0.75, 1)]  # rank 0 is the highest score
    found = _keys_at(flat, [k - 1, *ranks])
    (threshold, above), quantiles = found[0], [_score(key) for key, _ in found[1:]]
    kept = Mask(dict(zip(mask, _keep(flat, threshold, k - above, [mask[name].shape for name in mask]), strict=True)))
    if kept.kept != k or not kept.is_subset_of(mask):
        raise InvariantBroken(f"top-k kept {kept.kept} weights where {k} were planned, or left the former mask")
    lowest, low, middle, high, highest = quantiles
    return Selection(kept, _score(threshold), (lowest, low, middle, high, highest))


def _check(scores: Mapping[str, Tensor], mask: Mask, k: int) -> None:
    if not 1 <= k <= mask.kept:
        raise InvariantBroken(f"{k} weights are to be kept of {mask.kept}")
    for name in mask:
        if name not in scores or scores[name].shape != mask[name].shape:
            raise InvariantBroken(f"the scores of {name} do not have the shape of its mask")
        if not bool((torch.isfinite(scores[name]) | ~mask[name]).all()):
            raise TrainingDiverged(
                f"scores of {name} are infinite or NaN: lower training.learning_rate, or check the scale of the inputs"
            )


def _layer(name: str, tensor: Tensor) -> Layer:
    return Layer(name, tuple(tensor.shape), int(tensor.sum()), tensor.numel())


def _keys(scores: Tensor, kept: Tensor) -> Tensor:
    """int32 keys that order as the scores do; pruned weights get the lowest key of all."""
    bits = (scores.to(torch.float32) + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the same as 0.0
    return torch.where(kept, torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits), _LOWEST)


def _score(key: int) -> float:
    """The score that a key stands for."""
    bits = key ^ 0x7FFFFFFF if key < 0 else key
    return float(np.array(bits, dtype=np.int32).view(np.float32))


def _chunks(flat: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    for scores, kept in flat:
        for start in range(0, scores.numel(), _CHUNK):
            yield _keys(scores[start : start + _CHUNK], kept[start : start + _CHUNK])


def _keys_at(flat: Sequence[tuple[Tensor, Tensor]], ranks: Sequence[int]) -> list[tuple[int, int]]:
    """For each rank (0 is the highest) its key, and how many keys lie above that key."""
    upper: Any = np.zeros(_BINS, dtype=np.int64)
    for chunk in _chunks(flat):
        upper += _histogram((chunk >> 16) + 2**15)
    coarse = [_descend(upper, rank) for rank in ranks]
    lower: dict[int, Any] = {high: np.zeros(_BINS, dtype=np.int64) for high, _ in coarse}
    for chunk in _chunks(flat):
        halves = (chunk >> 16) + 2**15
        for high, counts in lower.items():
            within = chunk[halves == high]
            if within.numel():
                counts += _histogram(within & 0xFFFF)
    found = []
    for rank, (high, above) in zip(ranks, coarse, strict=True):
        low, nearer = _descend(lower[high], rank - above)
        found.append((((high - 2**15) << 16) | low, above + nearer))
    return found


def _histogram(halves: Tensor) -> npt.NDArray[np.int64]:
    """How often each value of 0 .. 65,535 occurs."""
    return np.asarray(torch.bincount(halves, minlength=_BINS).cpu().numpy())


def _descend(counts: npt.NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the ``rank``-th highest key, and how many keys lie in the bins above it."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank, side="right"))
    return len(counts) - 1 - position, int(from_top[position - 1]) if position else 0


def _keep(
    flat: Sequence[tuple[Tensor, Tensor]], threshold: int, ties: int, shapes: Sequence[torch.Size]
) -> Iterator[Tensor]:
    """Everything above the threshold, and the first ``ties`` that equal it."""
    for (scores, kept), shape in zip(flat, shapes, strict=True):
        chosen = torch.empty_like(kept)
        for start in range(0, scores.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            keys = _keys(scores[part], kept[part])
            equal = keys == threshold
            count = int(equal.sum())
            if count > ties:
                equal &= torch.cumsum(equal, 0) <= ties
            chosen[part] = (keys > threshold) | equal
            ties -= min(count, ties)
        yield chosen.reshape(shape)
