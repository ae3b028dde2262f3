"""A megabatch's page: what is known of it, its classes and drift, and some of its examples.

Knows: examples, in words and drawings. Must never know: HTTP, or how they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from app.api.web.drawing import Columns, columns
from app.api.web.megabatches_page import Row, class_name, row_of
from app.api.web.pictures import MOST, Layout, layout_of
from app.api.web.speech import MINUS, NOTHING, Speech
from app.domain import Megabatch
from app.service.overview import MegabatchView
from app.service.peeks import Peek, Range, range_of

_VALUES = 6
"""Values of an example that are written out."""

_BARS = 64
"""Columns that an example's values are drawn as, at most; of more, each stands for the mean of some."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class and its examples: how many, and which share of all."""

    label: int
    name: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A statistic that was compared with the past."""

    name: str
    statistic: str
    effect: str
    p: str
    examples: int
    reference: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where the pictures of the examples are, one below the other, and how each is shown.

    Attributes:
        query: of the sheet's address.
        width, height: of a picture in the sheet.
        scale: how many times as large it is shown: a whole number, so that pixels stay squares.
    """

    query: str
    width: int
    height: int
    scale: int


@dataclass(frozen=True, slots=True)
class Example:
    """An example. ``values``, ``bars``: of one that is no image: the first ones in digits, and all of them drawn."""

    row: int
    id: str
    name: str
    values: Sequence[str] = ()
    bars: Columns | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """A page of examples.

    Attributes:
        pictures: None where they are no images.
        heads: names of the values that are written out; ``more`` are not.
        next: query of the next page; None on the last.
    """

    items: Sequence[Example]
    pictures: Pictures | None
    heads: Sequence[str]
    more: int
    next: str | None


@dataclass(frozen=True, slots=True)
class MegabatchPage:
    """Everything that the page shows.

    Attributes:
        label: the class that alone is shown; ``chosen`` its name.
        query: of this page.
        erased: when single examples went, and how many.
        examples: None for those who may not see them, and where there are none to see.
    """

    model: str
    row: Row
    bytes: int
    classes: Sequence[ClassRow]
    drift: Sequence[Drift]
    versions: Sequence[int]
    more_versions: bool
    erased_at: datetime | None
    erased: Sequence[tuple[datetime, int]]
    label: int | None
    chosen: str
    after: int | None
    query: str
    examples: Examples | None


def shown(view: MegabatchView, found: Peek | None, t: Speech, *, label: int | None, after: int | None) -> MegabatchPage:
    """A megabatch, ready for its template.

    Args:
        view: what is known of it.
        found: examples that are shown; None: none.
        t: the language.
        label: the class that alone is shown, if one was chosen.
        after: the row after which examples are shown; None: from the first on.
    """
    megabatch, names = view.megabatch, view.model.input.classes or ()
    known = view.champion.report.get("megabatches", {}) if view.champion else {}
    return MegabatchPage(
        model=view.model.name,
        row=row_of(megabatch, view.model.input, known, t),
        bytes=megabatch.bytes,
        classes=_classes(megabatch, names),
        drift=_drift(megabatch, t),
        versions=view.versions,
        more_versions=view.more_versions,
        erased_at=megabatch.erased_at,
        erased=[(each.at, sum(last - first + 1 for first, last in each.removed)) for each in megabatch.erasures],
        label=label,
        chosen="" if label is None else class_name(names, label),
        after=after,
        query=_query(label, after),
        examples=None if found is None else _examples(found, names, label, after),
    )


def _query(label: int | None, after: int | None, **more: str) -> str:
    given = {**more, "class": label, "after": after}
    return urlencode({name: value for name, value in given.items() if value is not None})


def _classes(megabatch: Megabatch, names: Sequence[str]) -> list[ClassRow]:
    total = sum(megabatch.histogram) or 1
    return [
        ClassRow(label, class_name(names, label), count, count / total)
        for label, count in enumerate(megabatch.histogram)
    ]


def _drift(megabatch: Megabatch, t: Speech) -> list[Drift]:
    watched = (megabatch.prequential.drift if megabatch.prequential else None) or {}
    return [_shift(t(f"drift.{name}"), shift, t) for name, shift in watched.items() if shift]


def _shift(name: str, shift: Mapping[str, float], t: Speech) -> Drift:
    return Drift(
        name=name,
        statistic=t.number(shift["statistic"], 3),
        effect=t.number(shift["effect"], 2),
        p=t.p_value(shift["p_value"]),
        examples=int(shift["examples"]),
        reference=int(shift["reference"]),
        alarm=bool(shift["alarm"]),
    )


# -- examples ----------------------------------------------------------------------------------------------------------


def _examples(found: Peek, names: Sequence[str], label: int | None, after: int | None) -> Examples:
    shape = found.values.shape[1:]
    layout = layout_of(shape)
    following = _query(label, int(found.rows[-1])) if found.further else None
    told = [
        (int(row), str(id), class_name(names, int(of)))
        for row, id, of in zip(found.rows, found.ids, found.labels, strict=True)
    ]
    if layout is not None:
        pictures = _pictures(layout, _query(label, after, of=found.megabatch.x))
        return Examples([Example(*each) for each in told], pictures, (), 0, following)
    size = int(np.prod(shape, dtype=np.int64))
    features = found.spec.features or ()
    heads = [features[place] if len(features) == size else str(place) for place in range(min(_VALUES, size))]
    limits = range_of(found.values) if told else None
    items = [Example(*each, *_drawn(found.values[each[0]], limits)) for each in told if limits is not None]
    return Examples(items, None, heads, size - len(heads), following)


def _pictures(layout: Layout, query: str) -> Pictures:
    width, height = layout.size
    return Pictures(query, width, height, max(1, MOST // max(width, height)))


def _drawn(example: npt.NDArray[np.generic], limits: Range) -> tuple[list[str], Columns]:
    """The first values in digits, and all of them as columns: as high as each is within its own range."""
    values = example.ravel().astype(np.float64)
    low, high = (limit.ravel() for limit in limits)
    span = np.where(high > low, high - low, 1.0)
    shares = np.where(np.isfinite(values), np.clip((values - low) / span, 0, 1), 0)
    bars = [float(part.mean()) for part in np.array_split(shares, min(_BARS, max(1, len(shares)))) if len(part)]
    return [_digits(value) for value in values[:_VALUES].tolist()], columns(bars, most=1.0, width=128)


def _digits(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS) if np.isfinite(value) else NOTHING
