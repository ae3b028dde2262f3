"""Does pruning pay? All rows on all streams with paired seeds, beside the goals.

    python -m benchmarks.method [--quick | --full] [--data PATH] [--seeds N] [--streams ...] [--rows ...]
                                [--workers 2] [--out FOLDER] [--page docs/evidence.md]

The quick form (default) takes minutes on two cores, the full one hours. Finished runs are kept in ``--out`` and not
made again, so it may be stopped at any time; ``--page`` writes the page and its charts from what was asked for. The
exit status is 1 when a run failed, or a goal is missed by more than chance explains.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.method import page, streams, tasks
from benchmarks.method.findings import Findings
from benchmarks.method.goals import LONG, goals
from benchmarks.method.rows import GROUPS, ROWS

_THE_MOST = ("dense-paper", "dense", "app-paper", "app-reference", "espalier-36", "espalier-10", "small-10")
_MORE = (
    *_THE_MOST,
    "one-shot",
    "espalier-20",
    "espalier-05",
    "small-36",
    "small-20",
    "small-05",
    "longer-36",
    "drift-36",
    "drift-10",
)
_LONG = (*_MORE, "dense-longer", "replay-balanced", "replay-reservoir", "replay-last", "replay-none")
_QUICK: dict[str, tuple[int, tuple[str, ...]]] = {
    "digits": (3, _MORE),
    "gas": (3, (*_MORE, "dense-drift")),
    "tabular": (3, _MORE),
    "fashion": (2, _THE_MOST),
    "digits-24": (2, _THE_MOST),
}
"""Streams of the quick form: seeds and rows."""

_FULL: dict[str, tuple[int, tuple[str, ...]]] = {
    name: (5, _LONG if name in LONG or source.gpu else tuple(ROWS)) for name, source in streams.STREAMS.items()
}
"""Streams of the full form."""


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, print the tables; see the module."""
    options = _parse(arguments)
    begun = time.monotonic()
    names, notes = _possible(options.streams or list(_FULL if options.full else _QUICK), options.data)
    for note in notes:
        print(f"skipped: {note}", flush=True)
    code = options.code or tasks.code_version()
    wanted, left_out = tasks.wanted({name: _asked(name, options) for name in names}, options.data, code)
    for note in left_out:
        print(f"left out: {note}", flush=True)
    failed = tasks.do(wanted, options.out, options.data, options.workers)
    found = Findings(tasks.results(wanted, options.out))
    print("\n" + page.tables(found))
    if options.page and found.runs:
        told = page.Told(_command(options), code, [*notes, *left_out, *failed])
        page.write(found, told, options.page)
        print(f"{options.page} written")
    missed = [f"goal {goal.number}: {goal.wanted}: {goal.figure}" for goal in goals(found) if goal.missed]
    for line in [*(f"failed: {each}" for each in failed), *(f"missed: {each}" for each in missed)]:
        print(line, file=sys.stderr)
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes")
    return int(bool(failed or missed))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="a part of the streams and rows, in minutes (default)")
    form.add_argument("--full", action="store_true", help="all of them, in hours")
    parser.add_argument("--data", type=Path, default=streams.DATA, help="folder of the real data (%(default)s)")
    parser.add_argument("--seeds", type=int, help="paired seeds (quick: 2 or 3, full: 5)")
    parser.add_argument("--streams", nargs="+", metavar="STREAM", choices=list(streams.STREAMS), help="these alone")
    parser.add_argument("--rows", nargs="+", metavar="ROW", choices=[*ROWS, *GROUPS], help="these alone; or groups")
    parser.add_argument("--workers", type=int, default=2, help="processes of one torch thread each (%(default)s)")
    parser.add_argument("--out", type=Path, default=tasks.RESULTS, help="folder of finished runs (%(default)s)")
    parser.add_argument("--page", type=Path, help="write this page, and charts into the folder of its name")
    parser.add_argument("--code", help="take results for those of this version of the code, instead of its digest")
    return parser.parse_args(arguments)


def _command(options: argparse.Namespace) -> str:
    """The command, with what changes the figures."""
    words = ["python", "-m", "benchmarks.method", "--full" if options.full else "--quick"]
    for name in ("seeds", "streams", "rows"):
        value = getattr(options, name)
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])] if value else []
    return shlex.join([*words, "--page", "docs/evidence.md"])


def _asked(name: str, options: argparse.Namespace) -> tuple[int, list[str]]:
    """Seeds and rows of a stream."""
    seeds, rows = _FULL[name] if options.full else _QUICK.get(name, (1, _THE_MOST))
    given = options.rows or rows
    return options.seeds or seeds, [key for key, row in ROWS.items() if key in given or row.group in given]


def _possible(names: Sequence[str], data: Path) -> tuple[list[str], list[str]]:
    """Streams that can be run here, and why the others cannot."""
    reasons = {name: streams.missing(name, data, torch.cuda.is_available()) for name in names}
    return [name for name in names if not reasons[name]], [
        f"{name}: {reason}" for name, reason in reasons.items() if reason
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
