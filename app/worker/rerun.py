"""``python -m app.worker.rerun``: run the cycle of a version once more, compare it with the log, and leave.

Knows: how a report is shown, and the exit status. Must never know: what is compared.

Law: nothing is changed, and no worker is in its way: it claims nothing.

Exit status: 0 the same; 4 not as the log says; 1 it could not be shown here: inputs are gone, or bits cannot be
expected to be the same on this machine and are not; 2 the command line cannot be understood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings
from app.domain import Progress
from app.errors import EspalierError
from app.service.opening import open_store
from app.service.rerun import CannotRerun, Outcome, Report, Subject, rerun, subject_of
from app.store.database import Store
from app.worker import device

STATUS = {Outcome.SAME: 0, Outcome.DIFFERS: 4, Outcome.ELSEWHERE: 1, Outcome.GONE: 1}

_LOOK_SECONDS = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Run and compare; the exit status."""
    options = _options(arguments)
    try:
        settings = Settings()
        store = open_store(settings)
        try:
            store.check_schema()
            report = _report(store, settings, options)
        finally:
            store.dispose()
    except (ValidationError, EspalierError, SQLAlchemyError, OSError, CannotRerun, device.NoSuchDevice) as error:
        print(f"espalier: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print("\n".join(_lines(report)))
    return STATUS[report.outcome]


def _report(store: Store, settings: Settings, options: argparse.Namespace) -> Report:
    subject = subject_of(store, options.model, options.version, options.cycle)
    where = device.choose(options.device or _device(subject, settings))
    device.settle(options.threads or int(subject.inputs.environment["threads"]))
    observe = _Shown(0.0 if options.quiet else _LOOK_SECONDS)
    return rerun(store, subject, until=options.step, device=where, observe=observe)


def _device(subject: Subject, settings: Settings) -> str:
    """The kind of device that the cycle ran on, if it is here; else what the settings say."""
    try:
        return str(device.choose(subject.inputs.environment["device"]))
    except device.NoSuchDevice:
        return settings.device


class _Shown:
    """Shows where the cycle is, on standard error, every few seconds; never, with 0."""

    def __init__(self, every: float) -> None:
        self._every, self._next = every, time.monotonic() + every

    def __call__(self, progress: Progress, snapshot: Callable[[], bytes]) -> None:
        """Look at a step."""
        if self._every and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            density = "" if progress.density is None else f", density {progress.density:.4f}"
            print(f"{progress.phase.value}: step {progress.step} of {progress.steps}{density}", file=sys.stderr)


def _lines(report: Report) -> Iterator[str]:
    """The report in words."""
    whole = "whole" if report.until is None else f"up to pruning step {report.until}"
    yield f"cycle {report.cycle} of {report.model}, which made version {report.version}, {whole}"
    for step in report.steps:
        where = "no entry" if step.seq is None else f"entry {step.seq}"
        yield f"  step {step.step}: {where}: " + (f"differs: {', '.join(step.differing)}" if step.differing else "same")
    for layer in report.layers:
        if layer.differing:
            yield f"  {layer.name}: {layer.differing:,} of {layer.total:,} weights differ"
    for name, same in (report.files or {}).items():
        yield f"  {name}: {'same bytes' if same else 'other bytes'}"
    for condition in report.conditions:
        yield f"  condition: {condition}"
    for input in report.gone:
        yield f"  gone: {input}"
    for finding in report.findings:
        yield f"  finding: {finding}"
    yield _SAID[report.outcome]


_SAID = {
    Outcome.SAME: "the same: everything that was compared is what the log says, bit by bit",
    Outcome.DIFFERS: "not as the log says: see the findings",
    Outcome.ELSEWHERE: "it differs, and equality was not to be expected: the conditions above are not those of the "
    "cycle; replay it where they are",
    Outcome.GONE: "nothing was run: inputs of the cycle are not there any more",
}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="espalier audit replay", description="Run the cycle of a version once more, and compare it with the log."
    )
    parser.add_argument("model")
    parser.add_argument("version")
    parser.add_argument("--cycle", type=int)
    parser.add_argument("--step", type=int)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
