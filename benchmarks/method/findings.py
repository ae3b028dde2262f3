"""Findings: figures of many runs, by stream and row, with their means, errors and paired differences.

Knows: seeds and statistics. Must never know: files, or what is good.

Law: a difference is taken seed by seed, over the seeds that both rows have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

from benchmarks.method.runs import Figures
from benchmarks.method.tasks import Task


class Estimate(NamedTuple):
    """A mean over seeds, its standard error (0 for one seed), and how many seeds."""

    mean: float
    error: float
    n: int

    @property
    def sure(self) -> float:
        """Half the width of the 95 % interval (Student's t); infinite for one seed."""
        return float(stdtrit(self.n - 1, 0.975)) * self.error if self.n > 1 else float("inf")


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and standard error; None of nothing."""
    found = list(values)
    if not found:
        return None
    return Estimate(fmean(found), stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0, len(found))


def gaps(run: Figures) -> list[float | None]:
    """Training minus validation accuracy after each megabatch, in points; None where nothing was validated."""
    return [None if b is None else 100 * (a - b) for a, b in zip(run["train"], run["validation"], strict=True)]


def _mean_gap(run: Figures) -> float:
    known = [gap for gap in gaps(run) if gap is not None]
    return fmean(known) if known else float("nan")


MEASURES: dict[str, Callable[[Figures], float]] = {
    "final": lambda run: 100 * run["accuracy"][-1],
    "anytime": lambda run: 100 * fmean(run["accuracy"]),
    "gap": _mean_gap,
    "errors": lambda run: float(sum(run["wrong"])),
    "density": lambda run: run["kept"][-1] / run["total"],
    "weights": lambda run: float(run["kept"][-1]),
    "training": lambda run: float(sum(run["training_macs"])),
    "macs": lambda run: float(run["macs"][-1]),
    "seconds": lambda run: fmean(run["cpu_seconds" if run["device"] == "cpu" else "seconds"]),
}
"""Figures of one run. Accuracies and gaps in %; ``errors`` is the cumulative error (CER)."""


FEWEST = 3
"""Seeds below which nothing is called: two agree by chance too often for an interval to mean much."""

WORTH = 0.5
"""Points of accuracy: the least mean difference that is called one, however certain a smaller one is."""

EVEN = 1.0
"""Points of accuracy: rows are called even when a larger difference can be ruled out."""


class Findings:
    """Runs by stream, row and seed."""

    def __init__(self, results: Mapping[Task, Figures]) -> None:
        self.runs: dict[tuple[str, str], dict[int, Figures]] = {}
        for task, figures in results.items():
            self.runs.setdefault((task.stream, task.row), {})[task.seed] = figures

    @property
    def streams(self) -> list[str]:
        """Those with a run."""
        return list(dict.fromkeys(stream for stream, _ in self.runs))

    def has(self, stream: str, *rows: str) -> bool:
        """Whether all these rows have a run."""
        return all((stream, row) in self.runs for row in rows)

    def seeds(self, stream: str) -> list[int]:
        """Seeds of any row."""
        return sorted({seed for (name, _), runs in self.runs.items() if name == stream for seed in runs})

    def of(self, stream: str, row: str, measure: str) -> Estimate | None:
        """A measure of one row."""
        return estimate(MEASURES[measure](run) for run in self.runs.get((stream, row), {}).values())

    def difference(self, stream: str, row: str, other: str, measure: str) -> Estimate | None:
        """``row`` minus ``other``, paired."""
        return self._paired(stream, row, other, measure, lambda ours, theirs: ours - theirs)

    def ratio(self, stream: str, row: str, other: str, measure: str) -> Estimate | None:
        """``row`` over ``other``, paired."""
        return self._paired(stream, row, other, measure, lambda ours, theirs: ours / theirs)

    def _paired(
        self, stream: str, row: str, other: str, measure: str, join: Callable[[float, float], float]
    ) -> Estimate | None:
        ours, theirs = (self.runs.get((stream, name), {}) for name in (row, other))
        of = MEASURES[measure]
        return estimate(join(of(ours[seed]), of(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys()))

    def course(self, stream: str, row: str, of: Callable[[Figures], list[float | None]]) -> list[Estimate | None]:
        """One estimate for each megabatch, over the seeds that have a value there."""
        columns = zip(*(of(run) for run in self.runs.get((stream, row), {}).values()), strict=True)
        return [estimate(value for value in column if value is not None) for column in columns]

    def compare(self, stream: str, row: str, other: str) -> str:
        """How two rows compare, final and anytime accuracy together, at 95 % confidence.

        Returns:
            ``better`` or ``worse``: by more than ``WORTH`` in one of the two, and not the contrary in the other;
            ``mixed``: one up, one down;
            ``even``: both intervals lie within ``EVEN`` of zero; ``undecided``: none of these;
            ``unknown``: fewer seeds in common than ``FEWEST``.
        """
        both = [self.difference(stream, row, other, measure) for measure in ("final", "anytime")]
        found = [each for each in both if each is not None and each.n >= FEWEST]
        if len(found) < 2:
            return "unknown"
        up = any(each.mean > max(each.sure, WORTH) for each in found)
        down = any(each.mean < -max(each.sure, WORTH) for each in found)
        if up or down:
            return "mixed" if up and down else "better" if up else "worse"
        return "even" if all(abs(each.mean) + each.sure <= EVEN for each in found) else "undecided"

    def better_at_the_end(self, stream: str, row: str, other: str) -> bool:
        """Whether ``row`` is better in final accuracy, as ``compare`` has it."""
        final = self.difference(stream, row, other, "final")
        return final is not None and final.n >= FEWEST and final.mean > max(final.sure, WORTH)
