"""Numbers, tables and bars for people.

Knows: rich, terminals, how a quantity is spelled. Must never know: the service, or what a command does.

Laws:
    * On a terminal: colours, bars that move, tables cut to its width. Elsewhere: plain lines, whole, for grep and logs.
    * Text that came from a service is printed as text: neither markup nor control characters in it have any effect.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

NONE = "-"
_LABEL = 11


def plain(text: object) -> str:
    """Text without control characters: what would move a cursor is shown as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def count(number: int) -> str:
    """``2,300``."""
    return f"{number:,}"


def size(octets: int) -> str:
    """``29 kB``, ``4.1 MB``: decimal units, two digits at least."""
    value, units = float(octets), iter(("kB", "MB", "GB", "TB"))
    if value < 1000:
        return f"{octets} B"
    unit = "B"
    while value >= 999.5 and (following := next(units, None)):
        value, unit = value / 1000, following
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def clock(seconds: float) -> str:
    """``0:09``, ``1:02:03``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def share(value: float | None) -> str:
    """``0.316``; a dash where there is none."""
    return NONE if value is None else f"{value:.3f}"


def when(time: datetime | None) -> str:
    """``2026-03-02 09:30:00Z``; a dash where there is none."""
    return NONE if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def plural(number: int, word: str, many: str | None = None) -> str:
    """``1 class``, ``6 classes``."""
    return f"{count(number)} {word if number == 1 else many or word + 's'}"


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under column names; columns of numbers are aligned to the right."""
    cells = [[plain(cell).replace("\n", " ") for cell in row] for row in rows]
    right = [bool(cells) and all(_numeric(row[index]) for row in cells) for index in range(len(columns))]
    if console.is_terminal:
        drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for name, to_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if to_right else "left")
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        line(console, "   ".join(padded).rstrip())


def pairs(console: Console, rows: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    for group in (True, False):  # indented names have a column of their own
        inner = {name: value for name, value in rows.items() if name.startswith(" ") != group}
        width = max(map(len, inner), default=0)
        for name, value in inner.items():
            line(console, f"{name:<{width}}   {value}")


def line(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(Text(plain(text)), soft_wrap=True)


class Stage:
    """One bar, or one plain line: something that takes time and ends with a note."""

    def __init__(self, bars: Bars, label: str) -> None:
        self._bars, self._label, self._said = bars, label, ""
        self._task: TaskID | None = None
        if bars.progress is not None:
            self._task = bars.progress.add_task(f"{label:<{_LABEL}}", total=None, note="")

    def at(self, done: float, total: float | None, note: str = "") -> None:
        """Move the bar; the note beside it changes as it moves."""
        if self._bars.progress is not None and self._task is not None:
            self._bars.progress.update(self._task, completed=done, total=total, note=plain(note))

    def say(self, text: str) -> None:
        """Where no bar can move, say what begins now (on stderr, so that results can be piped)."""
        if self._bars.progress is None and text != self._said and not self._bars.silent:
            line(self._bars.errors, f"{self._label:<{_LABEL}} {text}")
        self._said = text

    def done(self, note: str) -> None:
        """Fill the bar and leave a note beside it."""
        if self._bars.silent:
            return
        if self._bars.progress is None or self._task is None:
            line(self._bars.console, f"{self._label:<{_LABEL}} {note}")
            return
        self._bars.progress.update(self._task, completed=1, total=1, note=plain(note))


class Bars:
    """Bars below one another on a terminal, plain lines elsewhere, nothing when silent."""

    def __init__(self, console: Console, errors: Console, silent: bool) -> None:
        self.console, self.errors, self.silent = console, errors, silent
        self.progress: Progress | None = None
        if console.is_terminal and not silent:
            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=31),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )

    def stage(self, label: str) -> Stage:
        """A new bar below the others."""
        return Stage(self, label)


@contextmanager
def bars(console: Console, errors: Console, silent: bool) -> Iterator[Bars]:
    """Bars that stay on the screen when they are full."""
    drawn = Bars(console, errors, silent)
    if drawn.progress is None:
        yield drawn
        return
    with drawn.progress:
        yield drawn


def consoles() -> tuple[Console, Console]:
    """Standard output and standard error as they are now."""
    options: dict[str, Any] = {"highlight": False, "emoji": False, "markup": False}
    return Console(file=sys.stdout, **options), Console(file=sys.stderr, **options)


def _numeric(cell: str) -> bool:
    return cell == NONE or cell[:1].isdecimal()
