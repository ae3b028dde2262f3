"""Sets of numbers that are small where the numbers follow one another, as those of megabatches do.

Knows: runs of whole numbers. Must never know: what they number.

Law: what is asked of a set costs the number of its runs, not the number of its members, unless it is walked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise

Run = tuple[int, int]
"""The first and the last number of a run, both included."""


class Numbers(AbstractSet[int]):
    """An immutable set of whole numbers, as runs."""

    __slots__ = ("_firsts", "runs")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        """Gather numbers, in any order; of a range with step 1, and of another such set, nothing is walked."""
        self._take(_runs_of(numbers))

    @classmethod
    def of_runs(cls, runs: Iterable[Sequence[int]]) -> Numbers:
        """What ``runs`` gave.

        Raises:
            ValueError: a run ends before it begins, or they are not in order with gaps between.
        """
        found = tuple((first, last) for first, last in runs)
        if any(first > last for first, last in found) or any(b[0] <= a[1] + 1 for a, b in pairwise(found)):
            raise ValueError(f"not runs of numbers in order: {found}")
        numbers = cls()
        numbers._take(found)
        return numbers

    def _take(self, runs: tuple[Run, ...]) -> None:
        self.runs = runs
        self._firsts = [first for first, _last in runs]

    def gaps(self) -> Iterator[tuple[int, int | None]]:
        """What is missing from 1 on, as runs; the last one has no end."""
        start = 1
        for first, last in self.runs:
            if first > start:
                yield start, first - 1
            start = max(start, last + 1)
        yield start, None

    def __contains__(self, number: object) -> bool:
        """Whether a number is one of them."""
        if not isinstance(number, int):
            return False
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self.runs[at][1]

    def __iter__(self) -> Iterator[int]:
        """The numbers, the smallest first."""
        return chain.from_iterable(range(first, last + 1) for first, last in self.runs)

    def __len__(self) -> int:
        """How many they are."""
        return sum(last - first + 1 for first, last in self.runs)

    def __or__(self, other: Iterable[int]) -> Numbers:  # type: ignore[override]  # of numbers, nothing else
        """Those of either."""
        union = Numbers()
        union._take(_joined(sorted((*self.runs, *_runs_of(other)))))
        return union

    __ror__ = __or__

    def __repr__(self) -> str:
        """The runs."""
        return f"Numbers.of_runs({list(self.runs)})"

    __hash__ = AbstractSet._hash


def _runs_of(numbers: Iterable[int]) -> tuple[Run, ...]:
    if isinstance(numbers, Numbers):
        return numbers.runs
    if isinstance(numbers, range) and numbers.step == 1:
        return ((numbers[0], numbers[-1]),) if numbers else ()
    return _joined((number, number) for number in sorted(numbers))


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs in order of their firsts, those that touch or overlap made one."""
    joined: list[Run] = []
    for first, last in runs:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)
