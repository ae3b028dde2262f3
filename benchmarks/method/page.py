"""The page: what the findings mean for somebody who decides whether to prune, with tables, charts and goals.

Knows: words, tables, charts. Must never know: how a figure was made.

Law: every sentence that says what was found follows from the figures; none is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.charts import Line, Panel, Point, draw
from benchmarks.method.findings import EVEN, FEWEST, WORTH, Estimate, Findings
from benchmarks.method.goals import goals, shown
from benchmarks.method.rows import DENSITIES, ROWS, Row
from benchmarks.method.runs import Figures
from benchmarks.method.words import ABOUT, TITLES


@dataclass(frozen=True)
class Told:
    """What a reader needs to repeat it."""

    command: str
    code: str
    notes: Sequence[str] = ()


# -- the whole ---------------------------------------------------------------------------------------------------------


def write(found: Findings, told: Told, page: Path) -> None:
    """Write the page, and its charts into the folder of its name beside it; charts of before are removed."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = charts(found)
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    page.write_text(text(found, told, drawn, folder.name), encoding="utf-8")


def text(found: Findings, told: Told, drawn: Iterable[str] = (), folder: str = "evidence") -> str:
    """The page in Markdown."""
    pictures = {name: f"{folder}/{name}.svg" for name in drawn}
    parts = [
        "# Evidence\n",
        *_answer(found),
        *_how(found, told),
        *_streams(found, pictures),
        *_gap(found, pictures),
        *_density(pictures),
        *_limits(told),
        *_goals(found),
    ]
    return "\n".join(parts).rstrip() + "\n"


def tables(found: Findings) -> str:
    """All tables, for a terminal."""
    return "\n".join([*_streams(found, {}), *_goals(found)])


# -- does it pay -------------------------------------------------------------------------------------------------------

_VERDICTS = {
    "pays": ("It pays", "better than a small dense network of its size, and no worse than dense at full size"),
    "small": ("It pays where the network has to be small", "better than a small dense network, worse than full size"),
    "against-small": ("Better than a small dense network", "and undecided against full size"),
    "stream": ("It pays on the way, not at the end", "better than small dense only while it still has more weights"),
    "needless": ("Better than dense at full size, but a small dense network does as well", "so train that one"),
    "not": ("It does not pay", "a small dense network is as good or better"),
    "undecided": ("Undecided", "too few seeds for the differences found, or final and anytime accuracy disagree"),
}
"""Kinds of verdict, in the order of the page: what it is, and what it means."""


def _verdict(found: Findings, stream: str, ending: str) -> str | None:
    row = f"espalier-{ending}"
    if not found.has(stream, row, "dense", f"small-{ending}"):
        return None
    small, dense = found.compare(stream, row, f"small-{ending}"), found.compare(stream, row, "dense")
    if small == "better":
        if not found.better_at_the_end(stream, row, f"small-{ending}"):
            return "stream"
        return {"better": "pays", "even": "pays", "undecided": "against-small"}.get(dense, "small")
    if small in ("even", "worse"):
        return "needless" if dense == "better" else "not"
    return "undecided"


def _answer(found: Findings) -> Iterator[str]:
    cells = [(stream, ending) for stream in found.streams for ending in DENSITIES]
    verdicts = {cell: kind for cell in cells if (kind := _verdict(found, *cell))}
    yield (
        "**Does pruning while training pay?** It does where the pruned network beats a *small dense network* with as "
        "many weights, trained the same way on the same data: otherwise train that one, it is simpler. And it costs "
        "nothing where it is also no worse than the dense network of full size.\n"
    )
    for kind, (head, meaning) in _VERDICTS.items():
        named = [cell for cell in verdicts if verdicts[cell] == kind]
        if named:
            yield f"- **{head}** ({meaning}): {'; '.join(_densities(named))}."
    if verdicts:
        yield "\n| | density | against dense, full size | against small dense | verdict |\n|---|---:|---:|---:|---|"
        for (stream, ending), kind in verdicts.items():
            row, small = f"espalier-{ending}", f"small-{ending}"
            against = f"{_both(found, stream, row, 'dense')} | {_both(found, stream, row, small)}"
            density = f"{100 * DENSITIES[ending]:g} %"
            yield f"| {TITLES[stream]} | {density} | {against} | {_VERDICTS[kind][0].lower()} |"
    yield (
        "\nFigures are points of test accuracy, final / mean over the stream; ± is one standard error of the paired "
        f"difference. *Better* and *worse* are differences above {WORTH:g} points at 95 % confidence (Student's t over "
        "seeds) in one of the two accuracies, with no contrary one in the other; *as good*: more than "
        f"{EVEN:g} point is ruled out; nothing is called on fewer than {FEWEST} seeds. About one call in twenty is "
        "chance. Over the stream, the pruned network has a "
        "head start: it is larger than the small one until the last megabatch; only the final figure compares equal "
        "sizes.\n"
    )
    yield from _training_share(found)
    yield from _price(found)


def _densities(cells: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Stream: its densities."""
    for stream in dict.fromkeys(stream for stream, _ in cells):
        found = [f"{100 * DENSITIES[ending]:g}" for name, ending in cells if name == stream]
        yield f"{TITLES[stream]} at {', '.join(found)} %"


def _price(found: Findings) -> Iterator[str]:
    """What training costs, on this machine."""
    costs = []
    for stream in found.streams:
        ratios = [found.ratio(stream, row, "dense", "seconds") for row in ("espalier-10", "small-10")]
        if ratios[0] and ratios[1]:
            costs.append(f"{TITLES[stream]} {ratios[0].mean:.2f} and {ratios[1].mean:.2f}")
    if costs:
        yield (
            "Pruned single weights are multiplied all the same, so time is not saved. One cycle at 10 %, and one of "
            f"the small dense network of that size, over one of dense: {'; '.join(costs)}.\n"
        )


def _training_share(found: Findings) -> Iterator[str]:
    gains = [
        f"{TITLES[stream]} {_both(found, stream, 'dense', 'dense-paper')}"
        for stream in found.streams
        if found.has(stream, "dense", "dense-paper")
    ]
    if gains:
        yield (
            "Much of what separates our rows from the paper's is training, not pruning. Our training (cosine, last "
            f"weights, label smoothing) changes the **dense** network by: {'; '.join(gains)}. So compare pruned "
            "rows with "
            '"dense, our training" first.\n'
        )


def _both(found: Findings, stream: str, row: str, other: str) -> str:
    """Final / anytime difference."""
    both = [found.difference(stream, row, other, measure) for measure in ("final", "anytime")]
    return " / ".join(shown(each) for each in both if each) or "-"


# -- how ---------------------------------------------------------------------------------------------------------------


def _how(found: Findings, told: Told) -> Iterator[str]:
    if not found.runs:
        return
    runs = [run for each in found.runs.values() for run in each.values()]
    machines = "; ".join(sorted({run["machine"] for run in runs}))
    seeds = [(stream, len(found.seeds(stream))) for stream in found.streams]
    counts = ", ".join(f"{stream} {n}" for stream, n in seeds)
    dates = sorted(run["made"][:10] for run in runs)
    yield "## How it was measured\n"
    yield f"    {told.command}\n"
    yield (
        f"Every row is a recipe of the product, run through the product's own cycle, megabatch after "
        f"megabatch. {len(runs)} "
        f"runs, made {_span(dates)}, on: {machines}. Paired seeds (same data, order and initial weights for "
        "all rows of a "
        f"seed): {counts}. Version of the code that the numbers come from: `{told.code}`.\n"
    )
    yield (
        "All rows of a stream have the same network, epochs, learning rate and minibatch, unless the row "
        "says otherwise. "
        "Pruned rows reach their density at the last megabatch. Guardrails are off, so that each row prunes as its "
        "schedule says. Kept weights are counted from the masks after every cycle, against a plan that is computed "
        "independently; a run that is off by one weight, or whose masks are not nested, fails.\n"
    )
    yield (
        "- **final**, **anytime**: test accuracy of the last network; mean over all stages, %.\n"
        "- **gap**: training minus validation accuracy of the published weights, mean over stages, points. It rewards "
        "under-fitting: no target.\n"
        "- **CER**: misclassified test examples, summed over stages.\n"
        "- **FLOPs**: arithmetic of all training over that of dense, if pruned weights cost nothing; today's "
        "kernels do not "
        "give that time back.\n"
        "- **s**: processor seconds of one cycle, mean (evaluation included); wall clock on a GPU.\n"
        "- ± is one standard error; a difference is paired, seed by seed.\n"
    )


def _span(dates: Sequence[str]) -> str:
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


# -- tables ------------------------------------------------------------------------------------------------------------


def _streams(found: Findings, pictures: Mapping[str, str]) -> Iterator[str]:
    for stream in found.streams:
        yield f"## {TITLES[stream]}\n"
        yield ABOUT[stream] + f" {_seeds(found, stream)}.\n"
        yield _table(found, stream, "Row", [r for r in ROWS.values() if r.group == "main"], "dense-paper", "dense")
        if f"accuracy-{stream}" in pictures:
            yield f"![Test accuracy after each megabatch, {stream}]({pictures[f'accuracy-{stream}']})\n"
        controls = [row for row in ROWS.values() if row.group == "controls"]
        if table := _table(found, stream, "Control", controls, "dense-paper", "dense"):
            yield table
        replay = [row for row in ROWS.values() if row.group == "replay"]
        if table := _table(found, stream, "Replay, 36.6 %", replay, "espalier-36", "dense"):
            yield table
        for ending, density in DENSITIES.items():
            named = [row for row in ROWS.values() if row.group == "criteria" and row.name.endswith(f"-{ending}")]
            if table := _table(
                found, stream, f"Which weights, {100 * density:g} %", named, f"espalier-{ending}", "dense"
            ):
                yield table


_AGAINST = {"dense-paper": "dense (paper)", "dense": "dense (ours)"}


def _table(found: Findings, stream: str, head: str, rows: Sequence[Row], first: str, second: str) -> str:
    """One row for each method: absolute figures, then paired differences to ``first`` and ``second``."""
    there = [row for row in rows if found.has(stream, row.name)]
    if not there:
        return ""
    if first not in _AGAINST and found.has(stream, first):
        there = [ROWS[first], *there]
    names = [_AGAINST.get(name, "the default") for name in (first, second)]
    heads = [head, "density", "final", "anytime", "gap", "CER", *(f"against {name}" for name in names), "FLOPs", "s"]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    n = max(len(found.runs[stream, row.name]) for row in there)
    for row in there:
        own = len(found.runs[stream, row.name])
        title = row.title + (f" ({own} seeds)" if own != n else "")
        compared = ["" if row.name == other else _both(found, stream, row.name, other) for other in (first, second)]
        cost = found.ratio(stream, row.name, "dense", "training") or found.ratio(
            stream, row.name, "dense-paper", "training"
        )
        cells = [
            title, _cell(found.of(stream, row.name, "density"), 3, error=False),
            _cell(found.of(stream, row.name, "final")), _cell(found.of(stream, row.name, "anytime")),
            _cell(found.of(stream, row.name, "gap")), _cell(found.of(stream, row.name, "errors"), 0), *compared,
            f"{cost.mean:.2f}" if cost else "", _cell(found.of(stream, row.name, "seconds"), 2, error=False),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Estimate | None, digits: int = 1, error: bool = True) -> str:
    if value is None or value.mean != value.mean:
        return ""
    return shown(value, signed=False, digits=digits) if error else f"{value.mean:.{digits}f}"


def _seeds(found: Findings, stream: str) -> str:
    n = len(found.seeds(stream))
    return f"{n} paired seeds" if n > 1 else "One seed: no errors known"


# -- charts ------------------------------------------------------------------------------------------------------------

_DRAWN = {
    "dense-paper": ("dense, paper's training", "#999999", True),
    "dense": ("dense, our training", "#000000", False),
    "app-paper": ("APP, paper, 36.6 %", "#e69f00", False),
    "app-reference": ("APP, published code", "#d55e00", True),
    "espalier-36": ("espalier, 36.6 %", "#56b4e9", False),
    "espalier-10": ("espalier, 10 %", "#0072b2", False),
    "espalier-05": ("espalier, 5 %", "#009e73", False),
    "small-10": ("small dense, 10 %", "#cc79a7", True),
}
"""Row: label, colour, dashed."""

_GAPS = (
    ("digits", ("digits", "digits-24", "digits-120")),
    ("fashion", ("fashion-24", "fashion-120")),
)


def _test_gaps(run: Figures) -> list[float | None]:
    """Training minus test accuracy, in points."""
    return [100 * (train - test) for train, test in zip(run["train"], run["accuracy"], strict=True)]


def charts(found: Findings) -> dict[str, str]:
    """SVG by name."""
    drawn = {}
    for stream in found.streams:
        panel = _panel(found, stream, lambda run: [100 * value for value in run["accuracy"]], without=("espalier-05",))
        if panel.lines:
            drawn[f"accuracy-{stream}"] = draw([panel], "megabatch", "test accuracy, %")
    for name, streams in _GAPS:
        panels = [
            _panel(found, stream, _test_gaps, without=("espalier-05",)) for stream in streams if stream in found.streams
        ]
        if any(point for panel in panels for line in panel.lines for point in line.points):
            drawn[f"gap-{name}"] = draw(panels, "megabatch", "training − test accuracy, points")
    panels = [
        _panel(found, stream, lambda run: [kept / run["total"] for kept in run["kept"]], without=("small-10", "dense"))
        for stream in ("digits", "gas", "fashion")
        if stream in found.streams
    ]
    if any(panel.lines for panel in panels):
        drawn["density"] = draw(panels, "megabatch", "density", zero=True)
    return drawn


def _panel(found: Findings, stream: str, of, without: Sequence[str] = ()) -> Panel:
    lines = [
        Line(label, colour, [_point(t, value) for t, value in enumerate(found.course(stream, row, of), 1)], dashed)
        for row, (label, colour, dashed) in _DRAWN.items()
        if found.has(stream, row) and row not in without
    ]
    return Panel(TITLES[stream], lines)


def _point(t: int, value: Estimate | None) -> Point | None:
    return None if value is None else (float(t), value.mean, value.error)


def _gap(found: Findings, pictures: Mapping[str, str]) -> Iterator[str]:
    named = [name for name in pictures if name.startswith("gap-")]
    if not named:
        return
    yield "## The generalization gap, and the number of megabatches\n"
    yield (
        "The paper reports a gap that moves non-monotonically when megabatches are many. Drawn is training minus "
        "*test* accuracy after every megabatch: early validation splits hold a handful of examples and say little. The "
        "table has the gap to validation, mean over stages.\n"
    )
    for name in named:
        yield f"![Training minus test accuracy after each megabatch, {name}]({pictures[name]})\n"
    rows = [row for row in _DRAWN if any(found.has(stream, row) for _, streams in _GAPS for stream in streams)]
    streams = [stream for _, names in _GAPS for stream in names if stream in found.streams]
    yield "| mean gap | " + " | ".join(TITLES[stream] for stream in streams) + " |"
    yield "|---" + "|---:" * len(streams) + "|"
    for row in rows:
        cells = " | ".join(_cell(found.of(stream, row, "gap")) for stream in streams)
        yield f"| {ROWS[row].title} | {cells} |"
    yield ""


def _density(pictures: Mapping[str, str]) -> Iterator[str]:
    if "density" in pictures:
        yield "## Density\n"
        yield (
            "Planned and counted density are the same to the weight in every row but the emulation of the "
            "published code, "
            "whose masks multiply: what it calls 36.6 % is what the chart shows.\n"
        )
        yield f"![Density after each megabatch]({pictures['density']})\n"


# -- limits, goals -----------------------------------------------------------------------------------------------------


def _limits(told: Told) -> Iterator[str]:
    yield "## What this does not show\n"
    yield (
        "- Channel granularity, and so speed on ordinary hardware: these are single weights.\n"
        "- Large networks and images of natural scenes: the networks here have tens to hundreds of thousands "
        "of weights.\n"
        "- Seeds of one stream share their data source, and those of gas their very data: the errors tell of "
        "training's "
        "chance, not of other sensors.\n"
        "- `APP as its code does` emulates what was found in the published code; it was not run by its authors here.\n"
        "- Hyperparameters were chosen on these streams, so small differences flatter our own rows."
    )
    for note in told.notes:
        yield f"- Left out: {note}"
    yield ""


def _goals(found: Findings) -> Iterator[str]:
    yield "## Goals\n"
    yield (
        "What was promised before it was measured. *Within noise*: the 95 % interval of the paired "
        "difference includes the "
        "goal, so chance may have decided.\n"
    )
    yield "| | goal | found | |\n|---|---|---:|---|"
    for goal in goals(found):
        yield f"| {goal.number} | {goal.wanted} | {goal.figure} | {goal.status} |"
    yield ""
