"""An npy file that is written row by row, and whose length is known when it ends.

Knows: npy files. Must never know: what the rows mean.

Law: the file is that of ``np.save``, bit by bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_PIECE = 1 << 20


class NpyFile:
    """An npy file that grows by rows; its header is patched at the end, which numpy leaves room for."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.dtype: np.dtype[Any] = np.dtype(np.int64)
        self.count = self.bytes = self._begin = 0
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Append C-contiguous rows of the first ones' dtype and shape; returns them."""
        if not self.count:
            self.dtype, self._shape = rows.dtype, rows.shape[1:]
            self._begin = self._header()
        rest = rows.reshape(-1).view(np.uint8).data
        while rest:
            rest = rest[self._file.write(rest) :]
        self.count += len(rows)
        self.bytes += rows.nbytes
        return rows

    def finish(self) -> tuple[int, ...]:
        """Write how many rows there are; returns the shape of one."""
        if self._header() != self._begin:
            raise AssertionError("the npy header changed its length")
        return self._shape

    def sync(self) -> None:
        """Make durable what was written so far: what is left to do in the end is little, then."""
        os.fdatasync(self._file.fileno())

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """All values again, as (offset in the file, bytes)."""
        end = self._begin + self.bytes
        for at in range(self._begin, end, _PIECE):
            self._file.seek(at)
            yield at, self._file.read(min(_PIECE, end - at))

    def replace(self, at: int, values: npt.NDArray[Any]) -> None:
        """Overwrite values at an offset in the file."""
        self._file.seek(at)
        self._file.write(values.data)

    def _header(self) -> int:
        self._file.seek(0)
        shape = (self.count, *self._shape)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()
