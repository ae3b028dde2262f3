"""Screen: what the demo shows, live on a terminal, as plain lines anywhere else.

Knows: columns and colours. Must never know: where a figure comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from espalier.records import Cycle, Version

_COLUMNS = (
    ("version", 8),
    ("density", 9),
    ("test", 8),
    ("on arrival", 12),
    ("gap", 8),
    ("checkpoint", 21),
    ("verdict", 0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One version as the table shows it. Accuracies are shares of 1, or None where there is no such thing."""

    version: Version
    test: float
    on_arrival: float | None


class Screen:
    """The console. On a terminal a running cycle is one live line; elsewhere each phase is a line."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """A paragraph, as it is."""
        self._console.print(escape(text))

    def title(self, text: str) -> None:
        """What comes next."""
        self._console.print(f"\n[bold]{escape(text)}[/bold]")

    def checked(self, text: str) -> None:
        """Something that was compared and holds."""
        self._console.print(f"  [green]ok[/green]  {escape(text)}")

    def failed(self, text: str) -> None:
        """Something that does not hold, or could not be done."""
        self._console.print(f"\n[bold red]failed[/bold red]  {escape(text)}")

    def head(self) -> None:
        """The table's head."""
        self._console.print("[bold]" + "".join(f"{name:<{width}}" for name, width in _COLUMNS).rstrip() + "[/bold]")

    def row(self, row: Row, champion: bool) -> None:
        """One version."""
        version = row.version
        size, dense = version.checkpoint.bytes, version.checkpoint.dense_bytes
        verdict = version.verdict
        reasons = "; ".join(verdict.reasons) if verdict else ""
        cells = (
            str(version.number),
            f"{version.density:.3f}",
            _percent(row.test),
            _percent(row.on_arrival),
            _points(version.metrics.get("generalization_gap")),
            f"{size / 1000:.1f} of {dense / 1000:.1f} kB",
            ("passed, champion" if champion else "passed") if verdict and verdict.passed else f"withheld: {reasons}",
        )
        widths = (width for _, width in _COLUMNS)
        self._console.print(escape("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))))

    @contextmanager
    def cycle(self, what: str) -> Iterator[Callable[[Cycle], None]]:
        """Shows a cycle while it runs; gives the function to call at every look."""
        if not self._console.is_terminal:
            yield _Lines(self, what)
            return
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[where]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=None, where="waiting for the worker")

            def look(cycle: Cycle) -> None:
                progress = cycle.progress
                if progress is not None:
                    bar.update(task, total=progress.steps or None, completed=progress.step, where=_where(cycle))
                elif cycle.state == "running":
                    bar.update(task, where="begins")

            yield look


class _Lines:
    """A running cycle as plain lines: one for each phase that was seen."""

    def __init__(self, screen: Screen, what: str) -> None:
        self._screen = screen
        self._what = what
        self._seen = ""

    def __call__(self, cycle: Cycle) -> None:
        phase = cycle.progress.phase if cycle.progress and cycle.open else self._seen
        if phase != self._seen:
            self._seen = phase
            self._screen.say(f"        {self._what}: {_where(cycle)}")


def _where(cycle: Cycle) -> str:
    progress = cycle.progress
    if progress is None:
        return cycle.state
    parts = [progress.phase]
    if progress.epochs:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    return "  ".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"
