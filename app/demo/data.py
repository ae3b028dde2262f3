"""Data: a stream of megabatches, and a test set that never enters the service.

Knows: scikit-learn's digits, and ``.npz`` files of one's own. Must never know: the service.

Law: no held-out example's bytes occur in any megabatch.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from espalier.formats.megabatch import example_ids

Array = npt.NDArray[Any]
DIGITS_HELD_OUT = 500
MEGABATCHES = 8


class UnusableData(Exception):
    """The data cannot be shown; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs (n, ...) and labels (n,)."""

    x: Array
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Examples:
        """These rows."""
        return Examples(self.x[rows], self.y[rows])


@dataclass(frozen=True, slots=True)
class Stream:
    """What the demo uploads, and what it keeps to itself.

    Attributes:
        name: a name for the model.
        megabatches: uploaded one after the other.
        later: uploaded after the rollback.
        held_out: the test set.
        classes: their names, or how many.
        origin, split: one sentence each: what this is, and how it was divided.
    """

    name: str
    megabatches: tuple[Examples, ...]
    later: Examples
    held_out: Examples
    classes: tuple[str, ...] | int
    origin: str
    split: str


def digits(megabatches: int, seed: int) -> Stream:
    """Scikit-learn's handwritten digits: 1,797 images of 8 x 8, 0 to 16.

    Read from the installed package's own file: importing scikit-learn takes longer than the demo's first cycle.
    """
    spec = find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "datasets" / "data" / "digits.csv.gz" if places else None
    if path is None or not path.is_file():
        raise UnusableData(
            "scikit-learn's digits are not installed: pip install scikit-learn, or give a file with --data"
        )
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(seed).permutation(len(table))
    whole = Examples(table[order, :-1].astype(np.uint8), table[order, -1].astype(np.int64))
    held_out, stream = whole.take(np.arange(DIGITS_HELD_OUT)), whole.take(np.arange(DIGITS_HELD_OUT, len(whole)))
    parts = _cut(stream, megabatches + 1)
    return Stream(
        name="digits",
        megabatches=parts[:-1],
        later=parts[-1],
        held_out=held_out,
        classes=tuple(str(digit) for digit in range(10)),
        origin=f"scikit-learn's handwritten digits, {len(whole):,} images of 8 x 8 pixels, 10 classes",
        split=f"shuffled; {len(held_out)} of them never enter the service and are the test set",
    )


def from_file(path: Path, megabatches: int | None, seed: int) -> Stream:
    """A file of one's own.

    Args:
        path: ``.npz`` with ``x`` (n, features) or images (n, height, width[, channels]); ``y`` (n,) integers from 0;
            optionally ``batch`` (n,), whose distinct values name the megabatches in order, and ``class_names``. Other
            members are left alone.
        megabatches: how many before the rollback; by default 8, or all but the last of ``batch``.
        seed: of the held-out split.
    """
    members = _read(path)
    whole = _examples(members, path)
    parts, how = _divided(whole, members.get("batch"), megabatches)
    rng = np.random.default_rng(seed)
    held, kept = zip(*(_hold_out(part, rng) for part in parts), strict=True)
    held_out, twins = _without_twins(_join(held), kept)
    classes = _classes(members, whole)
    count = classes if isinstance(classes, int) else len(classes)
    dropped = f"; {twins:,} of them, of which the stream holds a copy, are left out of it" if twins else ""
    return Stream(
        name=re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40] or "mine",
        megabatches=tuple(kept[:-1]),
        later=kept[-1],
        held_out=held_out,
        classes=classes,
        origin=f"{path.name}, {len(whole):,} examples of shape {whole.x.shape[1:]}, {count} classes",
        split=f"{how}; a random tenth of each, class by class, never enters the service: these {len(held_out):,} "
        f"examples, from all megabatches, are the test set{dropped}",
    )


def _read(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in ("x", "y", "batch", "class_names")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UnusableData(f"cannot read {path} as an .npz file of plain arrays: {error}") from error


def _examples(members: dict[str, Array], path: Path) -> Examples:
    missing = [name for name in ("x", "y") if name not in members]
    if missing:
        raise UnusableData(f"{path} has no member {' and no member '.join(missing)}: np.savez({str(path)!r}, x=x, y=y)")
    x, y = members["x"], members["y"]
    if x.ndim < 2 or y.shape != (len(x),):
        raise UnusableData(f"x must be (n, ...) and y (n,), but x is {x.shape} and y is {y.shape}")
    if y.dtype.kind not in "iu" or (len(y) and int(y.min()) < 0):
        raise UnusableData(
            f"y must be integer labels from 0, but is {y.dtype}: y = np.unique(y, return_inverse=True)[1]"
        )
    return Examples(x, y.astype(np.int64))


def _classes(members: dict[str, Array], whole: Examples) -> tuple[str, ...] | int:
    needed = int(whole.y.max()) + 1
    names = members.get("class_names")
    if names is None or names.ndim != 1 or len(names) < needed:
        return needed
    return tuple(str(name) for name in names)


def _divided(whole: Examples, batch: Array | None, megabatches: int | None) -> tuple[tuple[Examples, ...], str]:
    """The megabatches with the later one at the end, and how they were made."""
    if batch is not None and batch.shape == whole.y.shape:
        values, first = np.unique(batch, return_index=True)
        if batch.dtype.kind not in "iuf":
            values = values[np.argsort(first)]  # names have no order of their own: the file's
        values = values if megabatches is None else values[: megabatches + 1]
        if len(values) < 2:
            raise UnusableData(
                "batch names one megabatch only; at least two are needed: one before the rollback, one after it"
            )
        return tuple(
            whole.take(batch == value) for value in values
        ), f"one megabatch for each of {len(values)} batches, in order"
    count = (megabatches or MEGABATCHES) + 1
    if np.all(np.diff(whole.y) >= 0):
        mixed = whole.take(np.random.default_rng(0).permutation(len(whole)))
        return _cut(mixed, count), f"shuffled (the file is sorted by label) and cut into {count} megabatches"
    return _cut(whole, count), f"cut into {count} megabatches in the file's order"


def _cut(whole: Examples, parts: int) -> tuple[Examples, ...]:
    if len(whole) < 20 * parts:
        raise UnusableData(f"{len(whole)} examples are too few for {parts} megabatches: give fewer with --megabatches")
    return tuple(whole.take(rows) for rows in np.array_split(np.arange(len(whole)), parts))


def _hold_out(part: Examples, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """Every tenth row of a random order sorted by class: about a tenth of each class."""
    order = rng.permutation(len(part))
    order = order[np.argsort(part.y[order], kind="stable")]
    held = np.zeros(len(part), dtype=np.bool_)
    held[order[int(rng.integers(min(10, len(part)))) :: 10]] = True
    if held.all():
        raise UnusableData("a megabatch of one example cannot give one to the test set: join it with its neighbour")
    return part.take(held), part.take(~held)


def _without_twins(held_out: Examples, kept: Sequence[Examples]) -> tuple[Examples, int]:
    """The test set without the examples that the stream holds too, and how many those were."""
    inside = np.concatenate([example_ids(np.ascontiguousarray(part.x)) for part in kept])
    twin = np.isin(example_ids(np.ascontiguousarray(held_out.x)), inside)
    if twin.all():
        raise UnusableData("every held-out example occurs in the stream as well: are the rows all alike?")
    return held_out.take(~twin), int(twin.sum())


def _join(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))
