"""Labels, block by block -> class numbers.

Knows: class numbers, class names, and how names get numbers. Must never know: a format, or what the examples are.

Laws:
    * A name has the number that the model gave it, or is refused; where names may be new, they get numbers in
      alphabetical order, so that the same upload always means the same.
    * Numbers and names are never mixed.

Reasons of refusal, stable words for programs: label-not-integer, label-out-of-range, too-many-labels, unknown-class,
label-name, mixed-labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.intake.npy import NpyFile
from app.intake.reading import Reading, refuse

Labels = npt.NDArray[np.integer[Any]] | Sequence[str]
"""Class numbers, or class names; one an example."""

MOST_LABELS = 100_000
LONGEST_NAME = 200
"""Characters of a class name."""

_LABELS = 2**31
_NAMED = 20
_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_FRACTION = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?")
"""Whole numbers count, too: what is one of these may yet turn out to be a class number."""


class LabelWriter:
    """y.npy: class numbers as they are; class names by the number that each has, or gets."""

    def __init__(self, rows: NpyFile, reading: Reading, numeric_names: bool) -> None:
        self._rows, self._reading, self._numeric_names = rows, reading, numeric_names
        self._numbers = {name: number for number, name in enumerate(reading.classes or ())}
        self._known = len(self._numbers)
        self._named: bool | None = None
        self._counts: Counter[int] = Counter()

    def add(self, labels: Labels) -> None:
        """Check and append the labels of one block."""
        named = not isinstance(labels, np.ndarray)
        if self._named not in (None, named):
            refuse("mixed-labels", "some labels are numbers and some are names: send all of them as one or the other")
        self._named = named
        numbers = self._looked_up(labels) if not isinstance(labels, np.ndarray) else self._checked(labels)
        self._rows.add(numbers)
        found, counts = np.unique(numbers, return_counts=True)
        self._counts.update(dict(zip(found.tolist()[: MOST_LABELS + 1], counts.tolist(), strict=False)))
        if len(self._counts) > MOST_LABELS:
            refuse("too-many-labels", f"y holds over {MOST_LABELS} different labels: send class numbers")

    def finish(self) -> tuple[dict[int, int], tuple[str, ...] | None]:
        """Put new names in order; returns the counts by label, and the names."""
        self._rows.finish()
        if not self._named:
            return dict(self._counts), None
        names = list(self._numbers)
        found = [names[number] for number in self._counts]
        if self._numeric_names and all(map(_WHOLE.fullmatch, found)):
            final, classes = {name: self._number(name) for name in found}, None
        else:
            self._check_found(found)
            classes = (*names[: self._known], *sorted(names[self._known :]))
            final = {name: number for number, name in enumerate(classes)}
        moved = np.array([final.get(name, 0) for name in names], np.int64)
        if (moved != np.arange(len(names))).any():
            for at, piece in self._rows.blocks():
                self._rows.replace(at, moved[np.frombuffer(piece, np.int64)])
        counts: Counter[int] = Counter()
        for number, count in self._counts.items():
            counts[int(moved[number])] += count
        return counts, classes

    def _number(self, name: str) -> int:
        if not 0 <= (number := int(name)) < _LABELS:
            refuse("label-out-of-range", f"label {name} is not a class number: number the classes from 0")
        return number

    def _check_found(self, names: Sequence[str]) -> None:
        """What could only be judged when all names were there."""
        if self._numeric_names and all(map(_FRACTION.fullmatch, names)):
            refuse("label-not-integer", f"the labels are fractions, such as {names[0]!r}: write whole numbers or names")
        for name in names:
            if self._numbers[name] >= self._known:
                self._check_known(name, "")

    def _checked(self, labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        bad = (labels < 0) | (labels > labels.dtype.type(min(_LABELS - 1, np.iinfo(labels.dtype).max)))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            refuse(
                "label-out-of-range",
                f"label {int(labels[at])} of example {self._rows.count + at} is not a class number: number the classes "
                "from 0",
            )
        return np.ascontiguousarray(labels, dtype=np.int64)

    def _looked_up(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        for name in dict.fromkeys(names):
            if name not in self._numbers:
                self._check_new(name, names)
                self._numbers[name] = len(self._numbers)
        return np.fromiter(map(self._numbers.__getitem__, names), np.int64, len(names))

    def _check_new(self, name: str, names: Sequence[str]) -> None:
        where = f" of example {self._rows.count + list(names).index(name)}"
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            refuse("label-name", f"the label{where} is no name of 1 to {LONGEST_NAME} printable characters: rename it")
        if len(self._numbers) >= MOST_LABELS:
            refuse("too-many-labels", f"there are over {MOST_LABELS} different labels: is this the label column?")
        if not (self._numeric_names and _FRACTION.fullmatch(name)):
            self._check_known(name, where)

    def _check_known(self, name: str, where: str) -> None:
        if self._reading.classes is not None and not self._reading.extend:
            known = ", ".join(map(repr, self._reading.classes[:_NAMED]))
            more = "" if self._known <= _NAMED else f" and {self._known - _NAMED} more"
            refuse(
                "unknown-class",
                f"the label {name!r}{where} is not one of the model's classes, {known}{more}: correct it; or create a "
                'model that declares it in input.classes, or one whose classes grow (input.unseen_classes: "extend")',
            )
