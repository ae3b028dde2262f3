"""Goals: what was promised, beside what was found.

Knows: the goals and how they are judged. Must never know: how a figure was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.method.findings import FEWEST, Estimate, Findings

MAIN = ("digits", "tabular", "gas", "fashion")
"""The streams that every goal is judged on."""

LONG = ("digits-24", "digits-120", "fashion-24", "fashion-120")

NOT_MEASURED = "not measured here"


class Goal(NamedTuple):
    """One line of the table: what is wanted, what was found, and whether it is enough."""

    number: int
    wanted: str
    figure: str
    status: str

    @property
    def missed(self) -> bool:
        """Whether it is missed by more than chance explains."""
        return self.status == "not met"


def goals(found: Findings) -> list[Goal]:
    """Every goal, in order."""
    return [*_exact(found), *_at_a_third(found), *_near_dense(found), *_at_a_tenth(found), *_beats_small(found),
            *_long(found), *_channels()]  # fmt: skip


def shown(estimate: Estimate, signed: bool = True, digits: int = 1) -> str:
    """A mean and its standard error, if it has one."""
    value = f"{estimate.mean:{'+' if signed else ''}.{digits}f}"
    return f"{value} ± {estimate.error:.{digits}f}" if estimate.n > 1 else value


def judged(estimate: Estimate | None, least: float) -> str:
    """Whether a mean reaches ``least``; and whether chance alone could have made it miss or reach it."""
    if estimate is None:
        return NOT_MEASURED
    word = "met" if estimate.mean >= least else "not met"
    if estimate.n < FEWEST:
        return f"{word} ({_seeds(estimate.n)})"
    return word if abs(estimate.mean - least) > estimate.sure else f"{word}, within noise"


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _exact(found: Findings) -> Iterator[Goal]:
    stages = errors = 0
    for runs in found.runs.values():
        for run in runs.values():
            known = [(k, p) for k, p in zip(run["kept"], run["planned"], strict=True) if p is not None]
            stages += len(known)
            errors = max([errors, *(abs(kept - planned) for kept, planned in known)])
    figure = f"{errors} weights at most, in {stages:,} counted stages; masks nested in all of them"
    yield Goal(1, "density error 0 weights at every step", figure, ("not met" if errors else "met") if stages else
               NOT_MEASURED)  # fmt: skip
    yield Goal(1, "channels: counted widths equal planned widths", "weight granularity only", NOT_MEASURED)


def _compared(found: Findings, number: int, stream: str, row: str, other: str, least: float, measure: str, what: str):
    difference = found.difference(stream, row, other, measure)
    figure = shown(difference) if difference else "-"
    return Goal(number, f"{what}: ≥ {least:+g} {measure}, {stream}", figure, judged(difference, least))


def _at_a_third(found: Findings) -> Iterator[Goal]:
    for stream in MAIN:
        for measure in ("final", "anytime"):
            yield _compared(found, 2, stream, "espalier-36", "dense-paper", 0.7, measure, "36.6 % over dense (paper)")
    for stream in MAIN:
        least = 2.0 if stream == "digits" else 10.0
        yield _compared(found, 2, stream, "espalier-36", "app-reference", least, "final", "36.6 % over app-reference")


def _near_dense(found: Findings) -> Iterator[Goal]:
    """The better of equal and 1.5 x epochs, by the worse of final and anytime accuracy."""
    for stream in MAIN:
        what = f"36.6 % within 0.2 of dense (ours), final and anytime, at fewer training FLOPs, {stream}"
        judgements = []
        for row in ("espalier-36", "longer-36"):
            both = [found.difference(stream, row, "dense", measure) for measure in ("final", "anytime")]
            cost = found.ratio(stream, row, "dense", "training")
            if cost and both[0] and both[1]:
                worse = min((each for each in both if each), key=lambda each: each.mean)
                judgements.append((cost.mean < 1, worse.mean, worse, both, cost, row))
        if not judgements:
            yield Goal(3, what, "-", NOT_MEASURED)
            continue
        cheaper, _, worse, both, cost, row = max(judgements, key=lambda each: each[:2])
        figures = " / ".join(shown(each) for each in both if each)
        figure = f"{figures} at {cost.mean:.2f} x" + (" (1.5 x epochs)" if row.startswith("longer") else "")
        yield Goal(3, what, figure, judged(worse, -0.2) if cheaper else "not met")


def _at_a_tenth(found: Findings) -> Iterator[Goal]:
    for stream in MAIN:
        least = -1.2 if stream == "tabular" else 0.0
        for measure in ("final", "anytime"):
            yield _compared(
                found, 4, stream, "espalier-10", "dense-paper", least, measure, "10 % against dense (paper)"
            )
    for row, name in (("espalier-10", "10 %"), ("drift-10", "10 %, preset espalier-drift")):
        for measure, least, what in (("anytime", 87.5, "prequential mean"), ("final", 95.0, "last batch")):
            value = found.of("gas", row, measure)
            figure = shown(value, signed=False) if value else "-"
            yield Goal(4, f"{name}, gas: {what} ≥ {least:g} %", figure, judged(value, least))


def _beats_small(found: Findings) -> Iterator[Goal]:
    for ending, size in (("36", "36.6 %"), ("10", "10 %")):
        for stream in MAIN:
            row, small = f"espalier-{ending}", f"small-{ending}"
            both = [found.difference(stream, row, small, measure) for measure in ("final", "anytime")]
            figure = " / ".join(shown(each) for each in both if each) or "-"
            wanted = f"{size} beats the small dense network of its size (final / anytime), {stream}"
            yield Goal(5, wanted, figure, _against_small(found, stream, row, small, both[0]))


def _against_small(found: Findings, stream: str, row: str, small: str, final: Estimate | None) -> str:
    match found.compare(stream, row, small):
        case "better":
            return "met" if found.better_at_the_end(stream, row, small) else "met on the way, not at the end"
        case "worse":
            return "not met"
        case "even":
            return "not met, as good"
        case "unknown":
            return f"undecided ({_seeds(final.n)})" if final else NOT_MEASURED
        case other:
            return other


def _long(found: Findings) -> Iterator[Goal]:
    for stream in LONG:
        rows = ("dense-paper", "dense", "app-paper", "app-reference", "espalier-36", "espalier-10", "small-10")
        there = sum(found.has(stream, row) for row in rows)
        status = "met" if there == len(rows) else NOT_MEASURED
        yield Goal(6, f"the same table and the gap's movement, {stream}", f"{there} of {len(rows)} rows", status)


def _channels() -> Iterator[Goal]:
    yield Goal(7, "channels at 0.10 and 0.05: accuracy, latency, bytes, training time", "weight granularity only",
               NOT_MEASURED)  # fmt: skip
