"""Rows: some examples of some megabatches, in one order, as minibatches on the device.

Knows: which rows, their labels and ids, and how much may be held at once. Must never know: files, digests of blobs, or
what is done with a minibatch.

Laws:
    * A gather is vectorised: no Python per example.
    * What is held is bounded: of a set whose prepared rows take more than ``HELD_BYTES`` no values are held, and its
      minibatches are gathered where they are stored, a span ahead of their use. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import tee
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.errors import InvalidMegabatch
from app.learning.normalisation import Preparation
from app.learning.reading import Stored
from app.learning.transfer import Transfer

HELD_BYTES = 64 * 2**20
"""Up to this size (as float32) prepared examples are held as one tensor on the device."""

CHUNK_BYTES = 4 * 2**20
"""Size of a chunk (as float32) where examples are only passed through."""


class Column(Protocol):
    """One value an example, (n,), that need not be in memory: ``numpy.asarray`` fetches it."""

    def __len__(self) -> int: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """As an array."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """One megabatch as arrays, which may be memory-mapped.

    Attributes:
        number: the megabatch's number.
        x: (n, *shape) float32 or uint8.
        y: (n,) int64 labels.
        ids: (n,) uint64 example ids; duplicates share one.
    """

    number: int
    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64] | Column
    ids: npt.NDArray[np.uint64] | Column

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
        labels: (n,) int64, in order.
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
        self._megabatches, self._prepare, self.device, self.classes = megabatches, prepare, device, classes
        self._stored = Stored([examples.x for examples in megabatches], rows)
        self.labels: npt.NDArray[np.int64] = _joined(
            [np.asarray(examples.y)[part] for examples, part in zip(megabatches, rows, strict=True)], np.int64
        )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise InvalidMegabatch("label-out-of-range", f"labels must lie in 0..{classes - 1}")
        self._y = torch.from_numpy(self.labels).to(device)
        width = 4 * self._stored.width
        self.chunk = min(4096, max(64, CHUNK_BYTES // max(width, 1)))
        self.held = hold and len(self) * width <= HELD_BYTES

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def source(self) -> npt.NDArray[np.int64]:
        """Which of the megabatches each row is from, by position: (n,)."""
        return self._stored.source

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """Its row there: (n,)."""
        return self._stored.row

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Where the rows of each megabatch begin and end: (megabatches, 2) positions."""
        return self._stored.bounds

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """The example id of each row: (n,), read anew each time."""
        parts = enumerate(self._megabatches)
        return _joined([np.asarray(examples.ids)[self._stored.rows_of(index)] for index, examples in parts], np.uint64)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored."""
        return self._stored.row_bytes

    @cached_property
    def _whole(self) -> Tensor:
        """All rows, prepared, as one tensor on the device; made when first needed."""
        first = self._prepare(self._stored.gather(np.zeros(1, dtype=np.int64)))
        whole = torch.empty((len(self), *first.shape[1:]), dtype=first.dtype, device=self.device)
        filled = 0
        for rows in Transfer(self.device).carried(self.stored()):
            whole[filled : filled + len(rows)] = self._prepare(rows)
            filled += len(rows)
        return whole

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Input and labels at ``positions`` ((m,) int64, 0 .. len - 1)."""
        at = positions.to(self.device)
        x = self._whole.index_select(0, at) if self.held else self._prepare(self._stored.gather(_indices(positions)))
        return x, self._y.index_select(0, at)

    def minibatches(self, positions: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What ``gather`` gives for one minibatch after the other, read ahead of its use.

        Args:
            positions: of each minibatch: (m,) int64, 0 .. len - 1. They are taken a while before they are needed.
        """
        if self.held:
            yield from map(self.gather, positions)
            return
        wanted, labelled = tee(positions)
        stored = self._stored.read(map(_indices, wanted))
        for rows, here in zip(Transfer(self.device).carried(stored), labelled, strict=True):
            yield self._prepare(rows), self._y.index_select(0, here.to(self.device))

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows in order, ``chunk`` at a time."""
        carried = () if self.held else Transfer(self.device).carried(self.stored())
        inputs = (self._whole[part] for part in self._parts) if self.held else map(self._prepare, carried)
        for part, x in zip(self._parts, inputs, strict=True):
            yield x, self._y[part]

    def stored(self) -> Iterator[Tensor]:
        """All rows in order as they are stored, ``chunk`` at a time, on the CPU."""
        return self._stored.read(np.arange(part.start, part.stop) for part in self._parts)

    @property
    def _parts(self) -> list[slice]:
        return [slice(start, min(start + self.chunk, len(self))) for start in range(0, len(self), self.chunk)]

    def by_megabatch(self, kept: npt.NDArray[np.bool_], numbers: Sequence[int]) -> dict[int, npt.NDArray[np.bool_]]:
        """Rows of ``kept`` ((len,) bool) as rows of each megabatch, by number; those without any are left out.

        Args:
            kept: which of these rows.
            numbers: of the megabatches that these rows were taken from, in their order.
        """
        found = {}
        for index, (number, (first, last)) in enumerate(zip(numbers, self._stored.bounds.tolist(), strict=True)):
            if kept[first:last].any():
                found[number] = np.zeros(len(self._megabatches[index]), dtype=np.bool_)
                found[number][self._stored.rows_of(index)[kept[first:last]]] = True
        return found


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def _indices(positions: Tensor) -> npt.NDArray[np.int64]:
    indices: npt.NDArray[np.int64] = positions.cpu().numpy()
    return indices
