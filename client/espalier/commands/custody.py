"""``espalier version diff | samples | megabatches``, ``batch versions`` and ``alias at``: what an auditor asks."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from espalier.console import NONE, count, plural, share, when
from espalier.custody import Change, Comparison, SourceTally
from espalier.records import CHAMPION
from espalier.session import Limit, ModelName, Ref, Session, command, noun

Lineage = Annotated[bool, typer.Option("--lineage", help="Also what its ancestors' cycles used.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the nouns that are there."""
    version = noun(app, "version")
    command(version, "diff")(diff)
    command(version, "megabatches")(megabatches)
    command(version, "samples")(samples)
    command(noun(app, "batch"), "versions")(versions)
    command(noun(app, "alias"), "at")(alias_at)


def diff(
    session: Session,
    before: Ref,
    now: Ref,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            help="Examples of this kind, repeatable: fixed, broken, changed, unchanged.",
            show_default="all but unchanged",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option("--class", help="Examples of this true class only.")] = None,
    source: Annotated[str | None, typer.Option(help="Examples of evaluation, or of validation, only.")] = None,
    limit: Limit = 20,
) -> None:
    """Compare the answers of two versions: counts by class, and which examples changed theirs."""
    found = session.client.custody.diff(before, now, kinds=kind or (), label=label, source=source, limit=limit)
    if session.as_json:
        session.document(found)
        return
    densities = f"density {share(found.density.before)} -> {share(found.density.now)}"
    session.result(found, f"{found.model}: version {found.before} -> {found.now}, {densities}")
    for tally in found.answers:
        session.result(found, f"{tally.source}: {_told(tally)}")
        columns = ("class", "examples", "fixed", "broken", "changed", "unchanged")
        rows = [(name, *(each[column] for column in columns[1:])) for name, each in tally.by_class.items()]
        session.table([tally], columns, rows, "")
    _metrics(session, found)
    shown = ("source", "example", "kind", "class", "before", "now", "sure before", "sure now")
    session.table(found.items, shown, [_row(change) for change in found.items], "no example is of these kinds")


def megabatches(session: Session, version: Ref, lineage: Lineage = False, limit: Limit = 50) -> None:
    """List the megabatches that went into a version, and how many samples of each for what."""
    old: list[int] = []
    found = list(islice(session.client.custody.megabatches_of(version, lineage=lineage, unrecorded=old), limit))
    rows = [(m.version, m.megabatch, m.status, _counted(m.counts) or ", ".join(m.uses)) for m in found]
    columns = ("version", "megabatch", "status", "samples")
    session.table(found, columns, rows, f"{version}: no megabatch was written down")
    _say_old(session, old)


def samples(
    session: Session,
    version: Ref,
    megabatch: Annotated[int | None, typer.Option(min=1, help="Samples of this megabatch only.")] = None,
    use: Annotated[
        str | None,
        typer.Option(help="Samples of this use only: trained, validation, test, replayed, kept, new, scored."),
    ] = None,
    lineage: Lineage = False,
    limit: Limit = 50,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the whole file (safetensors) instead.")
    ] = None,
) -> None:
    """List the ids of the samples that went into a version, and what was done with each."""
    if output is not None:
        path = session.client.custody.download(version, "samples", output)
        session.result({"path": str(path), "bytes": path.stat().st_size}, f"{version} samples -> {path}")
        return
    old: list[int] = []
    chosen = session.client.custody.samples(version, megabatch=megabatch, use=use, lineage=lineage, unrecorded=old)
    found = list(islice(chosen, limit))
    rows = [(s.version, s.megabatch, s.id, ", ".join(s.uses) + (" (erased)" if s.erased else "")) for s in found]
    session.table(found, ("version", "megabatch", "sample", "uses"), rows, f"{version}: no such sample")
    _say_old(session, old)


def versions(
    session: Session,
    name: ModelName,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the megabatch.")],
    inherited: Annotated[
        bool, typer.Option("--inherited", help="Also versions that only descend from one that used it.")
    ] = False,
    limit: Limit = 1000,
) -> None:
    """List the versions that a megabatch went into, and how it was used."""
    found = list(islice(session.client.custody.versions_of(name, number, inherited=inherited), limit))
    rows = [(each.version, ", ".join(each.uses)) for each in found]
    session.table(found, ("version", "uses"), rows, f"megabatch {number} of {name} went into no version")


def alias_at(
    session: Session,
    name: ModelName,
    time: Annotated[str, typer.Argument(metavar="TIME", help="Such as 2026-03-02T09:30:00Z; local without a zone.")],
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="Name of the alias.")] = CHAMPION,
) -> None:
    """Show which version an alias named at a time, who had moved it there, and why."""
    at = instant(time, "TIME")
    found = session.client.custody.alias_at(name, at, alias)
    moved = f"moved there {when(found.moved_at)} by {found.actor}: {found.reason}"
    session.result(found, f"{name}@{alias} was version {found.version} at {when(at)}; {moved}")


def instant(text: str, option: str) -> datetime:
    """A time as somebody types it, in UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{option} {text}: write a time like 2026-03-02T09:30:00Z") from error


def _told(tally: SourceTally) -> str:
    total = tally.total
    accuracy = total.accuracy and f", accuracy {share(total.accuracy.before)} -> {share(total.accuracy.now)}"
    parts = [
        f"{plural(total.examples, 'example')}{accuracy or ''}",
        f"{total.fixed} fixed, {total.broken} broken (p = {tally.p_value:.3g}), {total.changed} changed",
    ]
    for alone, which in ((tally.only_before, "first"), (tally.only_now, "second")):
        parts += [f"{count(alone)} answered by the {which} alone"] if alone else []
    return "; ".join(parts)


def _metrics(session: Session, found: Comparison) -> None:
    changes = {name: found.metric(name) for name in found.metrics if not name.endswith("_seconds")}
    rows = [
        (name.replace("_", " "), *(NONE if value is None else f"{value:.4g}" for value in (m.before, m.now, m.change)))
        for name, m in changes.items()
    ]
    session.table([found], ("metric", "before", "now", "change"), rows, "")


def _row(change: Change) -> tuple[object, ...]:
    if change.answers is None or change.confidence is None:
        return change.source, change.id, change.kind, "erased", NONE, NONE, NONE, NONE
    sure = share(change.confidence.before), share(change.confidence.now)
    return change.source, change.id, change.kind, change.label, change.answers.before, change.answers.now, *sure


def _counted(counts: object) -> str:
    return ", ".join(f"{count(n)} {use}" for use, n in counts.items()) if isinstance(counts, dict) else ""


def _say_old(session: Session, versions: list[int]) -> None:
    if versions:
        listed = ", ".join(map(str, versions))
        session.remark(f"not written down for {plural(len(versions), 'older version')}: {listed}")
