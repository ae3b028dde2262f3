"""Mask: which weights are kept; and the exact top-k that makes the next one.

Knows: boolean tensors by name, counting, ranking by score. Must never know: where scores come from.

Laws:
    * ``top_k`` keeps exactly k weights; ties go to the lower flat index, in the order of names, then of elements.
    * The new mask is a subset of the old one: pruned weights are no candidates, whatever their score.
    * The result depends on scores alone, not on device, threads or chunk size: scores are counted and compared, nothing
      is rounded. Beside the scores and masks it needs a constant amount of memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.domain import Digest, Layer
from app.errors import InvariantBroken, TrainingDiverged
from espalier.formats.checkpoint import mask_digest

_CHUNK = 1 << 18
"""Weights that are looked at together. So few are ranked by a partition, more by counting."""

_BINS = 1 << 16
"""Values of a digit: a score's bits are counted 16 at a time."""

_LEADING = np.r_[_BINS // 2 - 1 : -1 : -1, _BINS // 2 : _BINS]
"""First digits of floats (sign and magnitude), from those of the highest numbers to those of the lowest."""

_FOLLOWING = range(_BINS)[::-1], range(_BINS)
"""The same of further digits: behind a sign bit of 0, and of 1."""


class Mask(Mapping[str, Tensor]):
    """Which weights are kept: prunable tensor's name -> boolean tensor of its shape, in the network's order.

    Args:
        kept: the tensors.
        copy: guard against their being changed from outside; False when nobody else holds them.

    Raises:
        InvariantBroken: when a tensor is not boolean.
    """

    def __init__(self, kept: Mapping[str, Tensor], *, copy: bool = True) -> None:
        wrong = [name for name, tensor in kept.items() if tensor.dtype != torch.bool]
        if wrong:
            raise InvariantBroken(f"masks must be boolean: {', '.join(wrong)}")
        self._tensors = {name: tensor.detach().clone() if copy else tensor for name, tensor in kept.items()}
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
            _count(tensor > other[name]) for name, tensor in self._tensors.items()
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
        return sum(_count(tensor) for tensor in self._tensors.values()) == self.kept


@dataclass(frozen=True, eq=False)
class Selection:
    """The outcome of ``top_k``.

    Attributes:
        mask: the new mask.
        threshold: the lowest score that is kept.
        quantiles: scores at 0, 1/4, 1/2, 3/4 and 1 of the ranking of the weights that were kept before (nearest rank).
    """

    mask: Mask
    threshold: float
    quantiles: tuple[float, float, float, float, float]


@torch.no_grad()
def top_k(scores: Mapping[str, Tensor], mask: Mask, k: int, *, least: Mapping[str, int] | None = None) -> Selection:
    """Keep the k highest-scoring weights among those that ``mask`` keeps, over all tensors together.

    With ``least``, so many of each named tensor's own highest-scoring weights come first; what is left of k goes to the
    highest-scoring of all others. A ``least`` that adds up to k is an exact budget for every tensor.

    Args:
        scores: float tensors of the masks' shapes; scores of pruned weights are not looked at.
        mask: the mask so far.
        k: how many to keep, 1 <= k <= mask.kept.
        least: how many to keep at least, by name; none more than ``mask`` keeps there, and together <= k.

    Raises:
        InvariantBroken: when k, ``least`` or the shapes do not fit.
        TrainingDiverged: when the score of a kept weight is not finite.
    """
    floors = {name: count for name, count in (least or {}).items() if count}
    _check(scores, mask, k, floors)
    ranks = [mask.kept - 1 - round(q * (mask.kept - 1)) for q in (0, 0.25, 0.5, 0.75, 1)]  # rank 0 is the highest score
    threshold, lowest, low, middle, high, highest = _scores_at([k - 1, *ranks], scores, mask)
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise TrainingDiverged(_not_finite(scores, mask))
    kept = Mask(_choose(scores, mask, k, threshold), copy=False)
    if any(layer.kept < floors.get(layer.name, 0) for layer in kept.layers):
        del kept  # its memory is needed
        chosen, threshold = _above_floors(scores, mask, k, floors)
        kept = Mask(chosen, copy=False)
    if kept.kept != k or not kept.is_subset_of(mask):
        raise InvariantBroken(f"top-k kept {kept.kept} weights where {k} were planned, or left the former mask")
    return Selection(kept, threshold, (lowest, low, middle, high, highest))


def _check(scores: Mapping[str, Tensor], mask: Mask, k: int, floors: Mapping[str, int]) -> None:
    if not 1 <= k <= mask.kept:
        raise InvariantBroken(f"{k} weights are to be kept of {mask.kept}")
    for name in mask:
        if name not in scores or scores[name].shape != mask[name].shape:
            raise InvariantBroken(f"the scores of {name} do not have the shape of its mask")
    kept = {layer.name: layer.kept for layer in mask.layers}
    for name, count in floors.items():
        if not 0 <= count <= kept.get(name, 0):
            raise InvariantBroken(f"at least {count} weights of {name} are to be kept of {kept.get(name, 0)}")
    if sum(floors.values()) > k:
        raise InvariantBroken(f"at least {sum(floors.values())} weights are to be kept where {k} are planned")


def _not_finite(scores: Mapping[str, Tensor], mask: Mask) -> str:
    names = ", ".join(name for name in mask if _count(~torch.isfinite(scores[name]) & mask[name]))
    return f"scores of {names} are infinite or NaN: lower training.learning_rate, or check the scale of the inputs"


def _layer(name: str, tensor: Tensor) -> Layer:
    return Layer(name, tuple(tensor.shape), _count(tensor), tensor.numel())


def _count(tensor: Tensor) -> int:
    """How many are true; on a CPU numpy takes a sixth of torch's time."""
    return int(np.count_nonzero(tensor.numpy()) if tensor.device.type == "cpu" else torch.count_nonzero(tensor))


# -- choosing ----------------------------------------------------------------------------------------------------------


def _choose(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], k: int, threshold: float) -> dict[str, Tensor]:
    """Of those kept, all above ``threshold``, the score at rank k - 1, and the first of those that equal it."""
    chosen = {name: torch.empty(tensor.shape, dtype=torch.bool) for name, tensor in kept.items()}
    for values, candidates, out in _pieces(scores, kept, chosen):
        np.greater_equal(values, threshold, out=out)
        out &= candidates
    surplus = sum(map(_count, chosen.values())) - k
    for values, out in _pieces(scores, chosen, backwards=True):
        if not surplus:  # as a rule from the start: hardly any scores are equal
            break
        ties = np.flatnonzero(out & (values == threshold))[-surplus:]
        out[ties] = False
        surplus -= len(ties)
    return {name: tensor.to(kept[name].device) for name, tensor in chosen.items()}


def _above_floors(
    scores: Mapping[str, Tensor], mask: Mask, k: int, floors: Mapping[str, int]
) -> tuple[dict[str, Tensor], float]:
    """Each floor's weights, then the highest-scoring of all others, k together; and the lowest score among them."""
    others, thresholds = dict(mask), []
    for name, count in floors.items():
        own = {name: mask[name]}
        thresholds += _scores_at([count - 1], scores, own)
        others[name] = mask[name] ^ _choose(scores, own, count, thresholds[-1])[name]
    if left := k - sum(floors.values()):
        thresholds += _scores_at([left - 1], scores, others)
        chosen = _choose(scores, others, left, thresholds[-1])
    else:
        chosen = {name: torch.zeros_like(tensor) for name, tensor in mask.items()}
    for name in floors:
        chosen[name] |= mask[name] ^ others[name]
    return chosen, min(thresholds)


# -- ranking -----------------------------------------------------------------------------------------------------------


def _scores_at(ranks: Sequence[int], scores: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> list[float]:
    """The scores at these ranks among those kept; rank 0 is the highest."""
    candidates = sum(map(_count, kept.values()))
    if candidates <= _CHUNK:
        places = [candidates - 1 - rank for rank in ranks]
        few = np.concatenate([values[chosen] for values, chosen in _pieces(scores, kept)])
        found = np.partition(few, places)[places]
    else:
        found = _counted(ranks, scores, kept, sum(tensor.numel() for tensor in kept.values()) - candidates)
    return [float(score) + 0.0 for score in found]  # + 0.0 makes -0.0 the same as 0.0


def _counted(
    ranks: Sequence[int], scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], pruned: int
) -> npt.NDArray[Any]:
    """The same by a radix descent, ``pruned`` weights not being kept.

    A first pass counts the first digits of all scores and so finds those of the scores at ``ranks``; each further pass
    counts the next digits of the scores that begin alike.
    """
    width = 8 * _common(scores, kept).itemsize
    first = np.zeros(_BINS, np.int64)
    for values, candidates in _pieces(scores, kept):
        digits = _bits(values) >> (width - 16)
        if not candidates.all():  # the pruned ones count as 0.0, and are taken off below: leaving them out costs more
            digits *= candidates
        _add(first, digits)
    first[0] -= pruned
    from_top = np.cumsum(first[_LEADING])
    found = [_descend(0, rank, from_top, _LEADING) for rank in ranks]
    for shift in range(width - 32, -1, -16):
        counts = {prefix: np.zeros(_BINS, np.int64) for prefix, _ in found}
        for bits in _batches(_alike(scores, kept, counts, shift + 16)):
            for prefix in counts:
                _add(counts[prefix], bits[bits >> (shift + 16) == prefix] >> shift & (_BINS - 1))
        orders = {prefix: _FOLLOWING[prefix >> (width - shift - 17)] for prefix in counts}
        passed = {prefix: np.cumsum(counts[prefix][:: order.step]) for prefix, order in orders.items()}
        found = [_descend(prefix, rank, passed[prefix], orders[prefix]) for prefix, rank in found]
    return np.array([pattern for pattern, _ in found], f"u{width // 8}").view(f"f{width // 8}")


def _alike(
    scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], prefixes: Iterable[int], shift: int
) -> Iterator[npt.NDArray[Any]]:
    """Bits of those kept which, without the last ``shift``, are among ``prefixes``."""
    for values, candidates in _pieces(scores, kept):
        bits, alike = _bits(values), np.zeros(len(values), bool)
        beginnings = (bits >> shift).astype(np.min_scalar_type((1 << 8 * bits.itemsize - shift) - 1))
        for prefix in prefixes:
            alike |= beginnings == prefix
        yield bits[np.flatnonzero(alike & candidates)]  # for few, faster than by the mask


def _batches(arrays: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """The same in fewer arrays, since counting costs a pass over the bins: each of some ``_CHUNK`` elements."""
    pending: list[npt.NDArray[Any]] = []
    size = 0
    for array in arrays:
        pending.append(array)
        size += len(array)
        if size >= _CHUNK:
            yield np.concatenate(pending)
            pending, size = [], 0
    if pending:
        yield np.concatenate(pending)


def _add(counts: npt.NDArray[np.int64], digits: npt.NDArray[Any]) -> None:
    """Count how often each digit occurs; torch does it without numpy's copy of eight bytes a digit."""
    found = torch.bincount(torch.from_numpy(digits.view(f"i{digits.itemsize}"))).numpy()
    counts[: len(found)] += found


def _descend(prefix: int, rank: int, passed: npt.NDArray[np.int64], order: Any) -> tuple[int, int]:
    """The prefix longer by the digit on which the rank falls, and the rank among the scores that begin so.

    Args:
        passed: how many scores have one of the first digits in ``order``; of one, of two, and so on.
    """
    position = int(np.searchsorted(passed, rank, side="right"))
    return prefix << 16 | int(order[position]), rank - (int(passed[position - 1]) if position else 0)


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.view(f"u{values.itemsize}")


def _pieces(
    scores: Mapping[str, Tensor], *masks: Mapping[str, Tensor], backwards: bool = False
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Scores, all of one type, and masks of the same weights, up to ``_CHUNK`` of them, flat, in the masks' order."""
    common, step = _common(scores, masks[0]), -1 if backwards else 1
    for name in list(masks[0])[::step]:
        flat = [torch.split(tensors[name].detach().reshape(-1), _CHUNK)[::step] for tensors in (scores, *masks)]
        for values, *kept in zip(*flat, strict=True):
            yield values.to(common).cpu().numpy(), *(each.cpu().numpy() for each in kept)


def _common(scores: Mapping[str, Tensor], names: Iterable[str]) -> torch.dtype:
    """The float type that holds every score: numpy's, so float32 for bfloat16."""
    return functools.reduce(torch.promote_types, (scores[name].dtype for name in names), torch.float32)
