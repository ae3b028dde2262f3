"""Drawing: small pictures that are made on the server, as coordinates for SVG.

Knows: geometry. Must never know: colours (style sheets do), words, or what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log


@dataclass(frozen=True, slots=True)
class Spark:
    """A line without axes in a box of ``width`` by ``height``: its points, and where it ends."""

    points: str
    end: tuple[float, float]
    width: int
    height: int


def spark(values: Sequence[float | None], *, width: int = 96, height: int = 24, pad: float = 3.0) -> Spark | None:
    """A sparkline from its least to its greatest value; None where there is nothing to draw.

    Args:
        values: from the oldest to the newest; None: there was none.
        width: of the box.
        height: of the box.
        pad: room around the line.
    """
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if not known:
        return None
    low, high = min(v for _, v in known), max(v for _, v in known)
    across = (width - 2 * pad) / max(1, len(values) - 1)
    span = (high - low) or 1.0
    rise = (height - 2 * pad) / span
    flat = height / 2 if high == low else None
    at = [
        (round(pad + place * across, 1), round(height - pad - (value - low) * rise if flat is None else flat, 1))
        for place, value in known
    ]
    if len(at) == 1:
        at = [(pad, at[0][1]), (width - pad, at[0][1])]
    return Spark(" ".join(f"{x},{y}" for x, y in at), at[-1], width, height)


@dataclass(frozen=True, slots=True)
class Columns:
    """Counts side by side, as high as they are: left edge, top, width and height of each."""

    boxes: Sequence[tuple[float, float, float, float]]
    width: int
    height: int


def columns(counts: Sequence[float], *, most: float | None = None, width: int = 96, height: int = 24) -> Columns:
    """Columns for counts. One that is not 0 is seen, however small it is.

    Args:
        counts: 0 or more each.
        most: what is as high as the box; None: the greatest of them.
        width: of the box.
        height: of the box.
    """
    each, most = width / max(1, len(counts)), most or max(counts, default=0) or 1
    highs = [max(1.0, height * count / most) if count else 0.0 for count in counts]
    gap = 1.0 if each > 3 else 0.0
    boxes = [
        (round(place * each, 2), round(height - high, 1), round(each - gap, 2), round(high, 1))
        for place, high in enumerate(highs)
    ]
    return Columns(boxes, width, height)


@dataclass(frozen=True, slots=True)
class Stairs:
    """Values that hold until the next one, on a log scale, and a level to compare them with."""

    points: str
    first: tuple[float, float]
    last: tuple[float, float]
    level: float
    width: int
    height: int


def stairs(values: Sequence[float], level: float, *, width: int = 480, height: int = 150, pad: float = 12.0) -> Stairs:
    """Stairs from the first value to the last, each of the same width.

    Args:
        values: above 0, at least one.
        level: above 0.
        width: of the box.
        height: of the box.
        pad: room around the drawing.
    """
    low, high = min(*values, level), max(*values, level)
    rise = (height - 2 * pad) / (log(high / low) or 1.0)
    across = (width - 2 * pad) / len(values)

    def at(value: float) -> float:
        return round(height - pad - log(value / low) * rise, 1)

    edges = [round(pad + place * across, 1) for place in range(len(values) + 1)]
    corners = [(x, at(v)) for place, v in enumerate(values) for x in edges[place : place + 2]]
    return Stairs(" ".join(f"{x},{y}" for x, y in corners), corners[0], corners[-1], at(level), width, height)


@dataclass(frozen=True, slots=True)
class Knot:
    """A version in a drawn family: its row and lane, and those of its parent, where that is drawn too."""

    number: int
    row: int
    lane: int
    parent: tuple[int, int] | None
    cut: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """A family, the newest at the top; ``lanes`` is how wide it is."""

    knots: Sequence[Knot]
    lanes: int


def tree(parents: Sequence[tuple[int, int | None]]) -> Tree:
    """Lay a family out in lanes: a version stays in its parent's lane unless a newer heir has that.

    Args:
        parents: (number, number of the parent or None), the newest first.
    """
    drawn = {number for number, _ in parents}
    lane_of: dict[int, int] = {}
    busy: list[int | None] = []  # what each lane is waiting for: the number of a version further down
    rows = {number: row for row, (number, _) in enumerate(parents)}
    for number, parent in parents:
        mine = [lane for lane, wanted in enumerate(busy) if wanted == number]
        lane = mine[0] if mine else _free(busy)
        lane_of[number] = lane
        for each in mine:
            busy[each] = None
        if parent in drawn:
            busy[lane] = parent
    return Tree([_knot(n, p, rows, lane_of) for n, p in parents], max(lane_of.values(), default=0) + 1)


def _free(busy: list[int | None]) -> int:
    for lane, wanted in enumerate(busy):
        if wanted is None:
            return lane
    busy.append(None)
    return len(busy) - 1


def _knot(number: int, parent: int | None, rows: Mapping[int, int], lanes: Mapping[int, int]) -> Knot:
    at = (rows[parent], lanes[parent]) if parent is not None and parent in rows else None
    return Knot(number, rows[number], lanes[number], at, cut=parent is not None and at is None)
