"""Charts: lines with error bands, as small SVG files that say the same every time.

Knows: points, panels, colours. Must never know: what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

Point = tuple[float, float, float]
"""x, y, standard error of y."""

WIDTH, HEIGHT, GUTTER, LEGEND, TOP, BOTTOM, LEFT = 330, 230, 26, 200, 34, 40, 48


@dataclass(frozen=True)
class Line:
    """One line; a point that is None is a gap."""

    label: str
    colour: str
    points: Sequence[Point | None]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], x_label: str, y_label: str, zero: bool = False) -> str:
    """Panels side by side with one y axis and one legend, as SVG.

    Args:
        panels: at least one, with at least one point.
        x_label, y_label: of the axes.
        zero: whether the y axis begins at 0.
    """
    points = [point for panel in panels for line in panel.lines for point in line.points if point]
    low = 0.0 if zero else min(y - error for _, y, error in points)
    ticks = nice(low, max(y + error for _, y, error in points))
    bottom, top = ticks[0], ticks[-1]
    width = LEFT + len(panels) * (WIDTH + GUTTER) + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + BOTTOM}" '
        f'width="{width}" height="{TOP + HEIGHT + BOTTOM}" font-family="Helvetica, Arial, sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for index, panel in enumerate(panels):
        left = LEFT + index * (WIDTH + GUTTER)
        parts += _panel(panel, left, ticks, lambda y: TOP + HEIGHT * (top - y) / (top - bottom), x_label, index == 0)
    middle = TOP + HEIGHT / 2
    parts.append(_text(12, middle, y_label, "middle", f' transform="rotate(-90 12 {middle:g})"'))
    parts += _legend(panels, width - LEGEND + 6)
    return "\n".join([*parts, "</svg>", ""])


def nice(low: float, high: float, about: int = 5) -> list[float]:
    """Round ticks that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power * about >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def _panel(panel: Panel, left: float, ticks: list[float], at_y, x_label: str, first: bool) -> list[str]:
    xs = [point[0] for line in panel.lines for point in line.points if point]
    start, end = min(xs, default=0.0), max(xs, default=1.0)

    def at_x(x: float) -> float:
        return left + 6 + (WIDTH - 12) * ((x - start) / (end - start) if end > start else 0.5)

    parts = [_text(left + WIDTH / 2, TOP - 14, panel.title, "middle", ' font-weight="bold"')]
    for tick in ticks:
        parts.append(f'<path d="M{left} {at_y(tick):.1f}h{WIDTH}" stroke="#ddd"/>')
        if first:
            parts.append(_text(left - 5, at_y(tick) + 4, f"{tick:g}", "end"))
    for tick in _whole(start, end):
        parts.append(f'<path d="M{at_x(tick):.1f} {TOP + HEIGHT}v4" stroke="#777"/>')
        parts.append(_text(at_x(tick), TOP + HEIGHT + 16, f"{tick:g}", "middle"))
    parts.append(f'<path d="M{left} {TOP + HEIGHT}h{WIDTH}" stroke="#777"/>')
    parts.append(_text(left + WIDTH / 2, TOP + HEIGHT + 32, x_label, "middle"))
    for line in panel.lines:
        parts += _line(line, at_x, at_y)
    return parts


def _whole(start: float, end: float) -> list[float]:
    """Ticks at whole numbers: all of few, else the ends and round ones between."""
    if end - start <= 10:
        return [start + i for i in range(int(end - start) + 1)]
    inner = nice(start, end)
    near = 0.6 * (inner[1] - inner[0])
    return [start, *(tick for tick in inner if tick - start > near and end - tick > near), end]


def _line(line: Line, at_x, at_y) -> list[str]:
    parts = []
    dash = ' stroke-dasharray="5 3"' if line.dashed else ""
    for known, run in groupby(line.points, key=lambda point: point is not None):
        points = [point for point in run if point]
        if not known:
            continue
        if len(points) > 1 and any(error for _, _, error in points):
            upper = [f"{at_x(x):.1f} {at_y(y + error):.1f}" for x, y, error in points]
            lower = [f"{at_x(x):.1f} {at_y(y - error):.1f}" for x, y, error in reversed(points)]
            parts.append(f'<path d="M{"L".join(upper + lower)}Z" fill="{line.colour}" fill-opacity="0.12"/>')
        path = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y, _ in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dash}/>')
        if len(points) == 1:
            parts.append(
                f'<circle cx="{at_x(points[0][0]):.1f}" cy="{at_y(points[0][1]):.1f}" r="2" fill="{line.colour}"/>'
            )
    return parts


def _legend(panels: Sequence[Panel], left: float) -> list[str]:
    """Labels, in the order in which lines end in the last panel that has them."""
    ends: dict[str, tuple[float, Line]] = {}
    for panel in panels:
        for line in panel.lines:
            known = [point for point in line.points if point]
            if known:
                ends[line.label] = (known[-1][1], line)
    parts = []
    for index, (_, line) in enumerate(sorted(ends.values(), key=lambda end: -end[0])):
        y = TOP + 10 + 17 * index
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(f'<path d="M{left:g} {y}h18" stroke="{line.colour}" stroke-width="2.4"{dash}/>')
        parts.append(_text(left + 24, y + 4, line.label))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#333"{more}>{escape(text)}</text>'
