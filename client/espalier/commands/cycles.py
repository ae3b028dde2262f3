"""``espalier cycle``: look at cycles, ask for one, watch one."""

from __future__ import annotations

from typing import Annotated

import typer

from espalier.commands.waiting import wait_for
from espalier.console import NONE, when
from espalier.records import Cycle
from espalier.session import UNPUBLISHED, Limit, ModelName, Session, command, group

Timeout = Annotated[
    float | None, typer.Option(min=0, help="Longest wait in seconds.", show_default="as long as it takes")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    cycle = group(app, "cycle", "Cycles: list, show, start, watch.")
    command(cycle, "list")(list_cycles)
    command(cycle, "show")(show)
    command(cycle, "start")(start)
    command(cycle, "watch")(watch)


def list_cycles(session: Session, name: ModelName, limit: Limit = 20) -> None:
    """List a model's cycles, newest first."""
    cycles = list(session.client.cycles(name, limit))
    rows = [
        (
            cycle.number,
            cycle.state,
            cycle.trigger,
            cycle.through,
            NONE if cycle.version is None else cycle.version,
            when(cycle.started_at),
            when(cycle.finished_at),
            cycle.reason or "",
        )
        for cycle in cycles
    ]
    columns = ("cycle", "state", "trigger", "through", "version", "started", "finished", "reason")
    session.table(cycles, columns, rows, f"{name} has no cycles yet: `espalier batch push {name} FILE`")


def show(
    session: Session,
    name: ModelName,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the cycle.")],
) -> None:
    """Show one cycle: state, progress, what came of it."""
    cycle = session.client.cycle(name, number)
    at = cycle.progress
    session.pairs(
        cycle,
        {
            "cycle": f"{cycle.model} {cycle.number}",
            "state": cycle.state,
            "trigger": cycle.trigger,
            "through": f"megabatch {cycle.through}",
            "parent": NONE if cycle.parent is None else f"version {cycle.parent}",
            "version": NONE if cycle.version is None else f"version {cycle.version}",
            "progress": NONE if at is None else f"{at.phase}, epoch {at.epoch}/{at.epochs}, step {at.step}/{at.steps}",
            "failures": cycle.failures,
            "not before": when(cycle.not_before),
            "reason": cycle.reason or NONE,
            "created": when(cycle.created_at),
            "started": when(cycle.started_at),
            "finished": when(cycle.finished_at),
        },
    )


def start(
    session: Session,
    name: ModelName,
    reason: Annotated[str | None, typer.Option("--reason", "-r", help="Why; it stands in the audit log.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended.")] = False,
    timeout: Timeout = None,
) -> None:
    """Ask for a cycle now."""
    cycle = session.client.train(name, reason)
    if wait:
        _watch(session, name, cycle, timeout)
    else:
        session.result(cycle, f"cycle {cycle.number} is {cycle.state}: `espalier cycle watch {name} {cycle.number}`")


def watch(
    session: Session,
    name: ModelName,
    number: Annotated[
        int | None, typer.Argument(metavar="[NUMBER]", min=1, help="Number of the cycle; by default the newest.")
    ] = None,
    timeout: Timeout = None,
) -> None:
    """Stay until a cycle has ended, and say what came of it."""
    cycle = next(session.client.cycles(name, 1), None) if number is None else session.client.cycle(name, number)
    if cycle is None:
        session.remark(f"{name} has no cycles yet: `espalier batch push {name} FILE`")
        return
    _watch(session, name, cycle, timeout)


def _watch(session: Session, name: str, cycle: Cycle, timeout: float | None) -> None:
    ended, version = wait_for(session, name, cycle.number, timeout)
    if session.as_json:
        session.document({"cycle": ended, "version": version})
    if ended.state != "published":
        raise typer.Exit(UNPUBLISHED)
