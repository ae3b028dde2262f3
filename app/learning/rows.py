"""Rows: some examples of some megabatches, in one order, as minibatches on the device.

Knows: which rows, how to gather them from (memory-mapped) arrays, and how much may be held at once. Must never know:
files, digests of blobs, or what is done with a minibatch.

Laws:
    * A gather is vectorised: no Python per example.
    * What is held is bounded: a set above ``HELD_BYTES`` is gathered minibatch by minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.errors import InvalidMegabatch
from app.learning.normalisation import Preparation

HELD_BYTES = 256 * 2**20
"""Up to this size (as float32) prepared examples are held as one tensor on the device."""

CHUNK_BYTES = 4 * 2**20
"""Size of a chunk (as float32) where examples are only passed through."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One megabatch as arrays; ``x`` and ``y`` may be memory-mapped.

    Attributes:
        number: the megabatch's number.
        x: (n, *shape) float32 or uint8.
        y: (n,) int64 labels.
        ids: (n,) uint64 example ids; duplicates share one.
    """

    number: int
    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.y)


class Rows:
    """The rows of ``megabatches`` where ``chosen`` holds, in order of megabatch and row.

    Args:
        megabatches: where the rows lie.
        chosen: one boolean array (n,) per megabatch.
        prepare: turns stored rows into network input.
        device: where minibatches are wanted.
        classes: labels must lie in [0, classes).
        hold: whether the prepared set may be held as one tensor, if it is small enough.

    Attributes:
        held: whether the prepared set is one tensor on the device.
        ids, labels: (n,) uint64 and (n,) int64, in order.
        source, row: (n,) int64: which of the megabatches each row is from, by position, and its row there.
        chunk: rows that ``chunks`` gives at a time.

    Raises:
        InvalidMegabatch: when a label is out of range.
    """

    def __init__(
        self,
        megabatches: Sequence[Examples],
        chosen: Sequence[npt.NDArray[np.bool_]],
        prepare: Preparation,
        *,
        device: torch.device,
        classes: int,
        hold: bool = True,
    ) -> None:
        rows = [np.flatnonzero(mask) for mask in chosen]
        self._arrays = [examples.x for examples in megabatches]
        self.source = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        self.row = _joined(rows, np.int64)
        self.ids: npt.NDArray[np.uint64] = _joined(
            [examples.ids[part] for examples, part in zip(megabatches, rows, strict=True)], np.uint64
        )
        self.labels: npt.NDArray[np.int64] = _joined(
            [examples.y[part] for examples, part in zip(megabatches, rows, strict=True)], np.int64
        )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise InvalidMegabatch("label-out-of-range", f"labels must lie in 0..{classes - 1}")
        self._prepare, self.device, self.classes = prepare, device, classes
        self._y = torch.from_numpy(self.labels).to(device)
        width = math.prod(self._arrays[0].shape[1:]) if self._arrays else 0
        self.chunk = min(4096, max(64, CHUNK_BYTES // max(4 * width, 1)))
        self.held = hold and len(self) * width * 4 <= HELD_BYTES

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def _whole(self) -> Tensor:
        """All rows, prepared, as one tensor on the device; made when first needed."""
        parts = (self._prepare(rows) for rows in self.stored())
        first = next(parts)
        whole = torch.empty((len(self), *first.shape[1:]), dtype=first.dtype, device=self.device)
        whole[: len(first)] = first
        filled = len(first)
        for part in parts:
            whole[filled : filled + len(part)] = part
            filled += len(part)
        return whole

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Input and labels at ``positions`` ((m,) int64, 0 .. len - 1): one vectorised gather per megabatch touched."""
        at = positions.to(self.device)
        if self.held:
            return self._whole.index_select(0, at), self._y.index_select(0, at)
        return self._prepare(self._stored(positions.cpu().numpy())), self._y.index_select(0, at)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored."""
        return self._arrays[0][:1].nbytes if self._arrays else 0

    def by_megabatch(self, kept: npt.NDArray[np.bool_], numbers: Sequence[int]) -> dict[int, npt.NDArray[np.bool_]]:
        """Rows of ``kept`` ((len,) bool) as rows of each megabatch, by number; those without any are left out.

        Args:
            kept: which of these rows.
            numbers: of the megabatches that these rows were taken from, in their order.
        """
        found = {}
        for index, number in enumerate(numbers):
            here = self.source == index
            if kept[here].any():
                found[number] = np.zeros(len(self._arrays[index]), dtype=np.bool_)
                found[number][self.row[here & kept]] = True
        return found

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows in order, ``chunk`` at a time."""
        for start in range(0, len(self), self.chunk):
            part = slice(start, min(start + self.chunk, len(self)))
            if self.held:
                yield self._whole[part], self._y[part]
            else:
                yield self._prepare(self._stored(np.arange(part.start, part.stop))), self._y[part]

    def stored(self) -> Iterator[npt.NDArray[Any]]:
        """All rows in order as they are stored, ``chunk`` at a time."""
        for start in range(0, len(self), self.chunk):
            yield self._stored(np.arange(start, min(start + self.chunk, len(self))))

    def _stored(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        source, row = self.source[positions], self.row[positions]
        first = self._arrays[0]
        taken = np.empty((len(positions), *first.shape[1:]), dtype=first.dtype)
        for index in np.unique(source):
            here = source == index
            taken[here] = self._arrays[index][row[here]]
        return taken


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.asarray(part, dtype=dtype) for part in parts]) if parts else np.empty(0, dtype=dtype)
