"""Examples and labels, block by block -> a megabatch's three files on disk, validated.

Knows: what a megabatch must be, whatever format it came in; and what a model's input says about reading one. Must never
know: a format, SQL, torch, or that it runs in a sandbox.

Laws:
    * Memory stays bounded by one block and the distinct labels, however many rows come; how many may be unknown.
    * A running count refuses what goes over the limit before it is written.
    * What is written is exact, or refused: nothing becomes infinite, and no integer is rounded.
    * The files are those of ``np.save``, bit by bit, so equal arrays have equal blobs, however they came.

Reasons of refusal, stable words for programs:

    an array      dtype, shape, empty, too-large, length-mismatch
    its values    not-finite, overflow, inexact
    its labels    those of ``app.intake.classes``
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from app.intake.aside import Aside
from app.intake.classes import Labels, LabelWriter
from app.intake.npy import NpyFile
from app.intake.reading import MIB, Limits, Reading, Resize, refuse, refuse_size
from espalier.formats.megabatch import array_preamble, example_ids

__all__ = [
    "BLOCK",
    "LARGEST_EXAMPLE",
    "MIB",
    "DecodedFiles",
    "Labels",
    "Limits",
    "Reading",
    "Resize",
    "check_example",
    "exactly",
    "refuse",
    "refuse_size",
    "stored_dtype",
    "write",
]

BLOCK = MIB
"""Bytes of examples that a decoder should give at a time: small enough to stay in the processor's cache."""

LARGEST_EXAMPLE = 64 * MIB
MOST_AXES = 8
_SYNC = 8 * MIB


@dataclass(frozen=True, slots=True)
class DecodedFiles:
    """A decoded megabatch: three ``.npy`` files, C order and native byte order, to be memory-mapped; and their content.

    Attributes:
        x, y, ids: (n, *shape) float32 or uint8; (n,) int64; (n,) uint64.
        digest: ``espalier.formats.megabatch.arrays_digest`` of x and y.
        examples, shape, dtype: n; the shape of one example; ``float32`` or ``uint8``.
        labels: (label, count) pairs, by label.
        largest: the largest ``|x|``.
        bytes: of x and y together.
        classes: names that the labels are indices of, where labels came as names; None where they came as numbers.
        features: names of the columns that became the features, in order; None where there were no columns.
        format: the name of the upload's format.
    """

    x: Path
    y: Path
    ids: Path
    digest: str
    examples: int
    shape: tuple[int, ...]
    dtype: str
    labels: tuple[tuple[int, int], ...]
    largest: float
    bytes: int
    classes: tuple[str, ...] | None
    features: tuple[str, ...] | None
    format: str


def write(
    blocks: Iterable[tuple[npt.NDArray[Any], Labels]],
    work: Path,
    limits: Limits,
    reading: Reading,
    *,
    format: str,
    features: Sequence[str] | None = None,
    examples: int | None = None,
    numeric_names: bool = False,
) -> DecodedFiles:
    """Write ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``.

    float16, float32 and float64 become float32 (what overflows is refused), uint8 stays, other integers become float32
    where that is exact; labels become int64.

    Args:
        blocks: (x, y) pairs in the order of the rows; x is (m, *shape), of one dtype and shape throughout; y holds m
            class numbers, or m class names, and never both in turn. ``BLOCK`` bytes of x at a time are a good measure.
        work: a folder; on a refusal it may hold partial files.
        reading: ``classes`` and ``extend`` say how names become labels; the rest is the decoder's.
        format: the name of the format.
        features: names of the columns, where x is (m, columns) and came from some: for messages, and for the answer.
        examples: how many rows will come, where that is known: it spares reading x again for the digest.
        numeric_names: the format cannot tell numbers from names: names that all are whole numbers are class numbers.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    with (
        _Examples(work, limits, features, examples) as x,
        NpyFile(work / "y.npy") as y,
        NpyFile(work / "ids.npy") as ids,
    ):
        labels = LabelWriter(y, reading, numeric_names)
        for values, names in blocks:
            if len(values) != len(names):
                refuse(
                    "length-mismatch", f"{len(values)} examples, but {len(names)} labels: send one label per example"
                )
            if len(values):
                x.check_room(values, limits)
                labels.add(names)
                ids.add(example_ids(x.add(values)))
        if not x.count:
            refuse("empty", "there is no example in the upload: send at least one example with one feature")
        counts, classes = labels.finish()
        ids.finish()
        shape, dtype, digest = x.finish(), x.dtype, _digest(x, y)
    return DecodedFiles(
        x=work / "x.npy",
        y=work / "y.npy",
        ids=work / "ids.npy",
        digest=digest,
        examples=x.count,
        shape=shape,
        dtype=dtype.name,
        labels=tuple(sorted(counts.items())),
        largest=x.largest,
        bytes=x.bytes + 8 * x.count,
        classes=classes,
        features=None if features is None else tuple(features),
        format=format,
    )


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What values of a dtype are stored as: uint8 stays, all other numbers become float32.

    Raises:
        InvalidMegabatch: ``dtype``, no numbers that can be kept.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        refuse("dtype", f"the examples hold {dtype.name}, not numbers that can be kept: send float32 or uint8")
    return np.dtype(np.uint8) if dtype == np.uint8 else np.dtype(np.float32)


def check_example(shape: tuple[int, ...], itemsize: int) -> None:
    """Check the shape of one example, and the bytes that it takes.

    Raises:
        InvalidMegabatch: ``shape``, ``empty`` or ``too-large``.
    """
    if not 1 <= len(shape) < MOST_AXES:
        refuse("shape", f"x has {len(shape) + 1} axes: send (n, features), or images as (n, height, width, channels)")
    if 0 in shape:
        refuse("empty", f"an example has the shape {shape}, so nothing is in it: send at least one feature")
    if (size := math.prod(shape) * itemsize) > LARGEST_EXAMPLE:
        refuse("too-large", f"one example takes {size} bytes, over {LARGEST_EXAMPLE}: send smaller examples")


class _Examples(NpyFile):
    """x.npy: checks and converts what is added, and hashes it on the way where the number of rows is known."""

    def __init__(self, work: Path, limits: Limits, features: Sequence[str] | None, examples: int | None) -> None:
        super().__init__(work / "x.npy")
        self._limits, self._features, self._expected = limits, features, examples
        self._given: np.dtype[Any] | None = None
        self._row: tuple[int, ...] = ()
        self._state: Any = None
        self._hashing, self._syncing, self._synced = Aside(), Aside(), 0
        self.largest = 0.0

    def check_room(self, values: npt.NDArray[Any], limits: Limits) -> None:
        """Check a block before it is converted: that it is like the ones before, and that there is room for it."""
        if self._given is None:
            self._given, self._row = values.dtype, values.shape[1:]
            self.dtype = stored_dtype(values.dtype)
            check_example(self._row, self.dtype.itemsize)
        if values.shape[1:] != self._row or values.dtype != self._given:
            refuse(
                "shape",
                f"example {self.count} has the shape {values.shape[1:]} and holds {values.dtype.name}, but those "
                f"before it have {self._row} and {self._given.name}: send examples of one shape and type",
            )
        size = self.bytes + values.size * self.dtype.itemsize + 8 * (self.count + len(values))
        if size > limits.max_bytes:
            refuse_size("the megabatch", size, limits)

    def add(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert, check and append a block; returns it as it was written."""
        stored = np.ascontiguousarray(self._converted(rows))
        if self._expected is not None:
            state = self._state = self._state or self._new_state(self._expected)
            self._hashing.do(lambda: state.update(stored.data))
        super().add(stored)
        if self.bytes - self._synced >= _SYNC and self._syncing.idle:
            self._synced = self.bytes
            self._syncing.do(self.sync)
        return stored

    def finish(self) -> tuple[int, ...]:
        """Wait for what goes on beside, too."""
        self._hashing.wait()
        self._syncing.wait()
        return super().finish()

    def __exit__(self, *error: object) -> None:
        self._hashing.__exit__(*error)
        self._syncing.__exit__(*error)
        super().__exit__(*error)

    def digest_state(self) -> Any:
        """SHA-256 of dtype, shape and bytes."""
        if self._state is not None and self._expected == self.count:
            return self._state
        state = self._new_state(self.count)
        for _, piece in self.blocks():
            state.update(piece)
        return state

    def _new_state(self, rows: int) -> Any:
        return hashlib.sha256(array_preamble(self.dtype, (rows, *self._row)))

    def _converted(self, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The block as it is stored. A minimum or maximum is NaN or infinite exactly where some value is."""
        if block.dtype == self.dtype:
            converted = block
        else:
            with np.errstate(over="ignore"):
                converted = block.astype(self.dtype)
        low, high = float(converted.min()), float(converted.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self._refuse_value(block, converted)
        if block.dtype.kind in "iu" and converted.dtype.kind == "f" and not exactly(converted, block):
            where = self._where(converted.astype(np.float64) != block)
            refuse("inexact", f"{where} holds an integer that float32 would round: send float32 if that is fine")
        self.largest = max(self.largest, high, -low)
        return converted

    def _refuse_value(self, block: npt.NDArray[Any], converted: npt.NDArray[Any]) -> NoReturn:
        bad = ~np.isfinite(converted)
        where = self._where(bad)
        if np.isfinite(block[bad]).all():
            refuse("overflow", f"{where} holds a value that float32 cannot hold: scale such values before sending")
        refuse("not-finite", f"{where} holds NaN or infinity: fill or drop such values before sending")

    def _where(self, bad: npt.NDArray[np.bool_]) -> str:
        """The first bad value's place, in words."""
        at = np.argwhere(bad)[0] if bad.any() else np.zeros(bad.ndim, np.int64)
        row = self.count + int(at[0])
        if self._features is None:
            return f"x, example {row},"
        column = self._features[int(at[1])] if len(self._features) > 1 else self._features[0]
        return f"column {column!r}, row {row},"


def exactly(converted: npt.NDArray[Any], block: npt.NDArray[Any]) -> bool:
    """Whether float32 holds these integers without rounding; values beyond the integer type would not convert back."""
    if block.dtype.itemsize <= 2:
        return True
    fits = converted < np.float32(2.0 ** (8 * block.dtype.itemsize - (block.dtype.kind == "i")))
    return bool(fits.all() and (converted.astype(block.dtype) == block).all())


def _digest(x: _Examples, y: NpyFile) -> str:
    state = x.digest_state()
    state.update(array_preamble(y.dtype, (y.count,)))
    for _, piece in y.blocks():
        state.update(piece)
    return "sha256:" + str(state.hexdigest())
