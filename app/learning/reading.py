"""Reading: rows of several stored arrays as one, gathered in a given order, a span ahead of their use.

Knows: which row of which array lies at a position, how rows are gathered, which memory to have fetched in advance. Must
never know: files, what a row means, or why the order is what it is.

Laws:
    * What comes out depends on the positions alone: neither on what was read ahead, nor on where arrays lie.
    * No Python per row. Arrays that lie at whole rows from one another, as ``app.store.array_files`` maps them, are one
      table: a minibatch is one vectorised gather, however many megabatches it is from.
    * Nothing of the arrays is copied but the rows that are asked for.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

SPAN_BYTES = 32 * 2**20
"""Rows that are fetched together, as stored: the next span is fetched while one is used."""

GAP_BYTES = 64 * 2**10
"""Rows that lie nearer to each other are fetched in one run: a disk reads that much faster than it seeks."""

_PIECE = 512 * 2**10
"""Bytes that are asked for at a time: the kernel cuts short what is longer than a device's request."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Stored:
    """Chosen rows of several arrays, by position: 0 .. len - 1, in order of array and row.

    Args:
        arrays: alike in dtype and in the shape of a row; they may be memory-mapped.
        rows: of each array, ascending.
    """

    def __init__(self, arrays: Sequence[Array], rows: Sequence[npt.NDArray[np.int64]]) -> None:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        self._shape = arrays[0].shape[1:] if arrays else ()
        self._dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
        self._kind = torch.from_numpy(np.empty(0, self._dtype)).dtype
        self._tables, self._firsts = _tables(arrays, self.row_bytes)
        self._ends = np.cumsum([len(part) for part in rows], dtype=np.int64)
        slots = [first + part for first, part in zip(self._firsts, rows, strict=True)]
        narrow = np.int32 if all(not len(part) or part[-1] < 2**31 for part in slots) else np.int64
        self._slot = np.concatenate([np.empty(0, narrow), *(part.astype(narrow) for part in slots)])
        self._kept = arrays  # the memory that tables look at
        self._there, self._faults = False, 0

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def width(self) -> int:
        """Values of one row."""
        return int(np.prod(self._shape))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self._dtype.itemsize

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Where the rows of each array begin and end: (arrays, 2) positions."""
        return np.stack([self._ends - np.diff(self._ends, prepend=0), self._ends], axis=1)

    @property
    def source(self) -> Positions:
        """Which of the arrays each row is from: (n,)."""
        return np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))

    @property
    def row(self) -> Positions:
        """Its row there: (n,)."""
        return np.asarray(self._slot - np.repeat(self._firsts, np.diff(self._ends, prepend=0)), dtype=np.int64)

    def rows_of(self, index: int) -> Positions:
        """The chosen rows of one array, ascending."""
        first, last = self.bounds[index]
        return np.asarray(self._slot[first:last] - self._firsts[index], dtype=np.int64)

    def gather(self, positions: Positions) -> Tensor:
        """The rows at ``positions`` ((m,)), in their order: (m, *shape), memory of its own on the CPU."""
        if len(self._tables) == 1:
            return self._taken(self._tables[0], self._slot.take(positions))
        order = np.argsort(positions)
        ordered = positions[order]
        parts = [self._taken(table, self._slot[ordered[part]]) for table, part in self._parts(ordered)]
        together = torch.cat([self._taken(self._tables[0], self._slot[:0]), *parts])
        return together.index_select(0, torch.from_numpy(np.argsort(order)))

    def read(self, minibatches: Iterable[Positions]) -> Iterator[Tensor]:
        """The rows of each minibatch, in turn; while a span of them is used, a thread has the next one fetched.

        Args:
            minibatches: positions ((m,) each), as ``gather`` takes them.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            before: list[Positions] = []
            for span in self._spans(minibatches):
                fetched = thread.submit(self._fetch, span)
                yield from map(self.gather, before)
                fetched.result()
                before = span
            yield from map(self.gather, before)

    def _spans(self, minibatches: Iterable[Positions]) -> Iterator[list[Positions]]:
        most = max(1, SPAN_BYTES // max(1, self.row_bytes))
        span, size = list[Positions](), 0
        for positions in minibatches:
            if span and size + len(positions) > most:
                yield span
                span, size = [], 0
            span.append(positions)
            size += len(positions)
        if span:
            yield span

    def _fetch(self, span: Sequence[Positions]) -> None:
        """Ask for the memory of a span's rows, where they lie close enough together; does not wait for it.

        Once nothing had to be read for a span, none is asked for again until a page turns out not to be there.
        """
        before = getrusage(RUSAGE_SELF)
        if self._there and before.ru_majflt == self._faults:
            return
        self._ask_for(span)
        after = getrusage(RUSAGE_SELF)
        self._there, self._faults = after.ru_inblock == before.ru_inblock, after.ru_majflt

    def _ask_for(self, span: Sequence[Positions]) -> None:
        ordered = np.sort(np.concatenate(span))
        for table, part in self._parts(ordered):
            start, row = table.__array_interface__["data"][0], self.row_bytes
            for first, last in _runs(self._slot[ordered[part]], max(1, GAP_BYTES // max(1, row))).tolist():
                _will_need(start + first * row, (last - first) * row)

    def _parts(self, ordered: Positions) -> Iterator[tuple[Array, slice]]:
        """The tables that ascending positions lie in, each with its part of them."""
        if len(self._tables) == 1:
            yield self._tables[0], slice(0, len(ordered))
            return
        sources = np.searchsorted(self._ends, ordered, side="right")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(sources)) + 1, [len(ordered)]]).tolist()
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            if first < last:
                yield self._tables[sources[first]], slice(first, last)

    def _taken(self, table: Array, rows: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Rows of one table, in memory as torch aligns it: what is computed must not depend on where numpy puts it."""
        taken = torch.empty((len(rows), *self._shape), dtype=self._kind)
        table.take(rows, 0, taken.numpy(), "clip")  # rows are in range; with "raise" the output would be buffered
        return taken


def _tables(arrays: Sequence[Array], row_bytes: int) -> tuple[list[Array], npt.NDArray[np.int64]]:
    """One table that all arrays are rows of, and where each begins in it; else every array by itself."""
    filled = [array for array in arrays if array.size]
    starts = [array.__array_interface__["data"][0] for array in filled]
    apart = [start - min(starts) for start in starts]
    if not filled or any(distance % row_bytes for distance in apart):
        return list(arrays), np.zeros(len(arrays), dtype=np.int64)
    lowest, rows = (
        filled[int(np.argmin(starts))],
        max(d // row_bytes + len(a) for d, a in zip(apart, filled, strict=True)),
    )
    # What lies between the arrays is never touched.
    table = np.lib.stride_tricks.as_strided(lowest, (rows, *lowest.shape[1:]), lowest.strides, writeable=False)
    firsts = iter(distance // row_bytes for distance in apart)
    return [table], np.array([next(firsts) if array.size else 0 for array in arrays], dtype=np.int64)


def _runs(rows: npt.NDArray[np.integer[Any]], gap: int) -> npt.NDArray[np.int64]:
    """Ascending ``rows`` as runs [first, last) of rows at most ``gap`` apart; none where most rows lie alone."""
    cuts = np.flatnonzero(np.diff(rows) > gap)
    if len(cuts) > len(rows) // 4:
        return np.empty((0, 2), dtype=np.int64)
    firsts, lasts = rows[np.concatenate([[0], cuts + 1])], rows[np.concatenate([cuts, [len(rows) - 1]])]
    return np.stack([firsts, lasts + 1], axis=1).astype(np.int64)


def _will_need(address: int, length: int) -> None:
    """Have mapped memory fetched, without waiting. Advice only: what cannot be fetched is found out when it is read."""
    start, end = address - address % mmap.PAGESIZE, address + length
    for piece in range(start, end, _PIECE):
        _libc.madvise(piece, min(_PIECE, end - piece), mmap.MADV_WILLNEED)
