"""Array files: numpy arrays on disk, mapped into memory.

Knows: ``.npy`` headers, maps, what to tell the kernel. Must never know: which model an array belongs to, or how it is
used.

Laws:
    * Maps hold no file descriptor: the number of arrays is bounded by the kernel's maps alone (65,530 by default, two
      for each array that is mapped side by side).
    * Arrays that are mapped side by side lie at whole rows from one another, so that one gather may read them all.
    * The kernel reads what it is asked for and no more: it does not guess what comes next.
    * A map lives as long as any array that looks at it, also when its file is gone.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_PROT_NONE, _MAP_FIXED, _FAILED = 0, 0x10, ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Column:
    """An array in a file that is mapped whenever ``numpy.asarray`` looks at it; in between it costs nothing.

    Args:
        find: gives its file, checked; called at every look.
        length: how many values there are.
    """

    def __init__(self, find: Callable[[], Path], length: int) -> None:
        self._find, self._length = find, length

    def __len__(self) -> int:
        return self._length

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The array, read-only; unmapped when the last look at it is over."""
        (mapped,) = side_by_side([self._find], mmap.MADV_SEQUENTIAL)
        return mapped if dtype is None and not copy else np.array(mapped, dtype=dtype, copy=copy)


def side_by_side(finds: Sequence[Callable[[], Path]], advice: int = mmap.MADV_RANDOM) -> list[Array]:
    """Map arrays, alike in dtype and in the shape of a row, such that their first rows lie whole rows apart.

    The files begin at multiples of the least common multiple of page and row; what is skipped is address space alone.

    Args:
        finds: each gives an ``.npy`` file, rows one after the other; it is opened at once, twice.
        advice: for ``madvise``; without it the kernel reads megabytes around every row.

    Returns:
        The arrays, read-only, in the order of ``finds``.

    Raises:
        ValueError: a file holds no such array.
        OSError: the kernel has no room for so many maps: raise its ``vm.max_map_count``.
    """
    headers = [_header(find()) for find in finds]
    row = max((dtype.itemsize * math.prod(shape[1:]) for shape, dtype, _ in headers), default=1)
    unit = math.lcm(mmap.PAGESIZE, max(1, row))
    sizes = [offset + dtype.itemsize * math.prod(shape) for shape, dtype, offset in headers]
    places = np.cumsum([0, *(-(-size // unit) * unit for size in sizes)]).tolist()
    region = _Region(max(places[-1], mmap.PAGESIZE))
    for find, place, size in zip(finds, places, sizes, strict=False):
        region.put(find(), place, size, advice)
    return [
        np.ndarray(shape, dtype, region.bytes, place + offset)
        for (shape, dtype, offset), place in zip(headers, places, strict=False)
    ]


class _Region:
    """A stretch of address space that files are mapped into."""

    def __init__(self, size: int) -> None:
        self._address = _mapped(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        whole = (ctypes.c_char * size).from_address(self._address)
        weakref.finalize(whole, _libc.munmap, self._address, size).atexit = False  # arrays keep ``whole`` alive
        self.bytes = memoryview(whole).toreadonly()

    def put(self, path: Path, place: int, size: int, advice: int) -> None:
        """Map the first ``size`` bytes of a file at ``place``."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = _mapped(self._address + place, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor)
        finally:
            os.close(descriptor)
        _libc.madvise(at, size, advice)


def _mapped(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    found: int = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes ({os.strerror(number)}): raise vm.max_map_count")
    return found


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and where the values begin.

    Raises:
        ValueError: the file is cut short, or holds its columns one after the other.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = read(file)
        whole = file.tell() + dtype.itemsize * math.prod(shape)
        if (columns_first and len(shape) > 1) or dtype.hasobject or os.fstat(file.fileno()).st_size < whole:
            raise ValueError(f"{path} holds no whole array of plain values, rows one after the other")
        return shape, dtype, file.tell()
