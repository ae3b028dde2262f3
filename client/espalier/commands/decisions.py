"""``espalier decision``: keep what was decided with which version, and look it up."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from espalier.commands.custody import instant
from espalier.console import NONE, plural, share, when
from espalier.errors import EspalierClientError
from espalier.formats.stamp import Decision, Stamp, read_stamp
from espalier.session import Limit, ModelName, Session, command, group

_KNOWN = ("model", "version", "checkpoint", "answer", "confidence", "example", "made_at")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    decision = group(app, "decision", "Decisions that were made with versions: log, list.")
    command(decision, "log")(log)
    command(decision, "list")(listing)


def log(
    session: Session,
    name: ModelName,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="JSON lines, or CSV by the name's end (.csv), with answer, and where known version, checkpoint "
            "(digest), confidence, example, made_at; - reads JSON lines from standard input.",
        ),
    ],
    stamp: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="The checkpoint that decided, for rows that do not name their version."
        ),
    ] = None,
) -> None:
    """Have decisions kept, each with the version that made it. Sending the same file again keeps them once, where its
    rows say when they were made.
    """
    own = None if stamp is None else read_stamp(stamp)
    rows = [_decision(name, row, own, where) for where, row in _rows(file)]
    kept = session.client.decisions.log(rows)
    told = ", ".join(f"{batch.first} to {batch.last}" for batch in kept)
    session.result(kept, f"{plural(len(rows), 'decision')} kept: {told}" if kept else "nothing to keep")


def listing(
    session: Session,
    name: ModelName,
    version: Annotated[int | None, typer.Option(min=0, help="Made with this version only.")] = None,
    example: Annotated[str | None, typer.Option(help="About this example only.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Made at this time or later.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Made before this time.")] = None,
    limit: Limit = 20,
) -> None:
    """List decisions, those made last first."""
    first = None if since is None else instant(since, "--since")
    last = None if until is None else instant(until, "--until")
    chosen = session.client.decisions.list(name, version=version, example=example, since=first, until=last, limit=limit)
    found = list(chosen)
    rows = [
        (d.id, d.version, d.example or NONE, d.answer, share(d.confidence), when(d.made_at), d.actor) for d in found
    ]
    columns = ("number", "version", "example", "answer", "confidence", "made", "reported by")
    session.table(found, columns, rows, f"no such decision of {name} was kept")


def _rows(file: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file == "-":
        yield from _lines(sys.stdin, "standard input")
        return
    with Path(file).open(encoding="utf-8", newline="") as opened:
        yield from _table(opened, file) if file.lower().endswith(".csv") else _lines(opened, file)


def _lines(opened: TextIO, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(opened, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise EspalierClientError(f"{name}, line {number}: {error}; nothing was sent") from None
            if not isinstance(row, dict):
                raise EspalierClientError(f"{name}, line {number}: an object was expected; nothing was sent")
            yield f"{name}, line {number}", row


def _table(opened: TextIO, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in (reader := csv.DictReader(opened, strict=True)):
        yield f"{name}, line {reader.line_num}", {key: value for key, value in row.items() if value != ""}


def _decision(name: str, row: Mapping[str, Any], own: Stamp | None, where: str) -> Decision:
    try:
        return _read(name, row, own)
    except (ValueError, TypeError, KeyError, typer.BadParameter) as error:
        raise EspalierClientError(f"{where}: {error}; nothing was sent") from None


def _read(name: str, row: Mapping[str, Any], own: Stamp | None) -> Decision:
    if strange := [key for key in row if key not in _KNOWN]:
        raise ValueError(f"unknown columns {strange}: known are {', '.join(_KNOWN)}")
    if "version" in row:
        stamp = Stamp(str(row.get("model", name)), int(row["version"]), str(row.get("checkpoint", "")))
    elif own is not None:
        stamp = own
    else:
        raise ValueError("it does not say by which version: name version and checkpoint, or give --stamp FILE")
    if stamp.model != name:
        raise ValueError(f"it is stamped with the model {stamp.model!r}, not {name!r}")
    if not isinstance(row["answer"], str):
        raise ValueError("the answer is not the name of a class")
    sure, made_at = row.get("confidence"), row.get("made_at")
    example = row.get("example")
    return Decision(
        stamp,
        row["answer"],
        None if sure is None else float(sure),
        None if example is None else str(example),
        None if made_at is None else instant(str(made_at), "made_at"),
    )
