"""Waiting for a cycle before people's eyes, and saying what came of it.

A version's metrics hold how long each phase took; without them, the times are those seen from here, at looks up to a
second apart.
"""

from __future__ import annotations

import time

from espalier.console import Stage, clock, share, size, when
from espalier.errors import ApiProblem
from espalier.records import CHAMPION, Cycle, Version
from espalier.session import Session

_PHASES = ("prune", "train", "judge")

_PATIENCE = 5.0
"""Seconds in the queue after which a worker may be missing."""


class CycleStage:
    """Shows a cycle on a bar: call it with the cycle at every look."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._began = time.monotonic()
        self._last = self._began
        self._phase: str | None = None
        self._seconds: dict[str, float] = {}

    def __call__(self, cycle: Cycle) -> None:
        """Take the time of the phase that was seen last, and show the present one."""
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] += now - self._last
        self._last, self._phase = now, None
        if cycle.state == "queued":
            note = self._queued(cycle, now)
            self._stage.at(0, None, note)
            self._stage.say(note)
        elif cycle.progress is not None and cycle.state == "running":
            self._phase = cycle.progress.phase
            self._seconds.setdefault(self._phase, 0.0)
            loss = "" if cycle.progress.loss is None else f", loss {cycle.progress.loss:.3f}"
            epochs = f" (epoch {cycle.progress.epoch}/{cycle.progress.epochs}{loss})" if cycle.progress.epochs else ""
            self._stage.at(cycle.progress.step, cycle.progress.steps or None, self._phases() + epochs)
            self._stage.say(self._phase)

    def done(self, cycle: Cycle, version: Version | None) -> None:
        """Leave the phases beside the bar: as the worker timed them, or else as they were seen from here."""
        if version is not None and all(f"{phase}_seconds" in version.metrics for phase in _PHASES):
            self._seconds = {phase: version.metrics[f"{phase}_seconds"] for phase in _PHASES}
        seen = self._phases()
        if not seen and cycle.started_at and cycle.finished_at:
            seconds = (cycle.finished_at - cycle.started_at).total_seconds()
            seen = f"done in {seconds:.1f} s" if seconds < 10 else f"done in {clock(seconds)}"
        self._stage.done(seen or cycle.state)

    def _phases(self) -> str:
        return " · ".join(
            f"{phase} {clock(seconds)}"
            for phase, seconds in self._seconds.items()
            if phase != "arrival" or seconds >= 1
        )

    def _queued(self, cycle: Cycle, now: float) -> str:
        if cycle.failures:
            again = f"tried again at {when(cycle.not_before)}" if cycle.not_before else "waiting to be tried again"
            return f"failed: {cycle.reason or 'no reason was recorded'}; {again}"
        if now - self._began > _PATIENCE:
            return "queued until a worker is free (`espalier work` starts one)"
        return "queued"


def wait_for(session: Session, model: str, number: int, timeout: float | None = None) -> tuple[Cycle, Version | None]:
    """Wait for a cycle with a bar, then say what version it made.

    Returns:
        The ended cycle and its version.

    Raises:
        CycleFailed, CycleUnfinished: as the client does.
    """
    with session.bars() as bars:
        shown = CycleStage(bars.stage(f"cycle {number}"))
        cycle = session.client.wait_for_cycle(model, number, on_progress=shown, timeout=timeout)
        version = None if cycle.version is None else session.client.version(model, cycle.version)
        shown.done(cycle, version)
    if version is not None and not session.as_json:
        session.result(version, version_line(session, version))
    return cycle, version


def version_line(session: Session, version: Version) -> str:
    """A version in one line, as the end of a day's work shows it."""
    density = share(version.density)
    if version.parent is not None:
        density = f"{share(session.client.version(version.model, version.parent).density)} -> {density}"
    parts = [f"version {version.number:<3} density {density}"]
    for name, metric in (
        ("validation", "validation_accuracy"),
        ("on arrival", "prequential_accuracy"),
        ("gap", "generalization_gap"),
    ):
        if (value := version.metrics.get(metric)) is not None:
            parts.append(f"{name} {share(value)}")
    parts += [
        f"{size(version.checkpoint.bytes)} (dense {size(version.checkpoint.dense_bytes)})",
        standing(session, version),
    ]
    return "   ".join(parts)


def standing(session: Session, version: Version) -> str:
    """What a version is now: champion, published, or withheld and why."""
    if champion_of(session, version.model) == version.number:
        return CHAMPION
    if version.status == "withheld" and version.verdict is not None:
        return "withheld: " + "; ".join(version.verdict.reasons)
    return version.status


def champion_of(session: Session, model: str) -> int | None:
    """The champion's number; None while there is none."""
    try:
        return session.client.alias(model).version
    except ApiProblem as problem:
        if problem.type == "urn:espalier:problem:unknown-alias":
            return None
        raise
