"""``espalier audit``: read and check the audit log."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.console import NONE, count, plural, when
from espalier.errors import ApiProblem, EspalierClientError, ProofRejected
from espalier.records import AuditEntry, LogHead
from espalier.session import Session, command, group, model_names


def register(app: typer.Typer) -> None:
    """Add the commands."""
    audit = group(app, "audit", "The audit log: tail, show, verify.")
    command(audit, "tail")(tail)
    command(audit, "show")(show)
    command(audit, "verify")(verify)


def tail(
    session: Session,
    model: Annotated[str | None, typer.Option(help="Entries of this model alone.", show_default=False)] = None,
    kind: Annotated[
        str | None, typer.Option(help="Entries of this kind alone, such as alias.moved.", show_default=False)
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last entries.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")] = False,
) -> None:
    """Show the last entries, oldest first; with --json one a line."""
    size = session.client.audit_head().size
    if model is None and kind is None:
        numbers = range(max(1, size - lines + 1), size + 1)
        last = [session.client.audit_entry(seq) for seq in numbers]
    else:
        last = list(deque(session.client.audit(model, kind=kind), maxlen=lines))
    following = _new_entries(session, size + 1, model, kind) if follow else iter(())
    for entry in itertools.chain(last, following):
        if session.as_json:
            session.document(entry, compact=True)
        else:
            session.result(entry, _line(entry))
    if not last and not follow:
        session.remark("no such entries")


def show(
    session: Session,
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="Number of the entry.")],
) -> None:
    """Show one entry with all that it says."""
    entry = session.client.audit_entry(seq)
    fact = entry.fact
    rows: dict[str, object] = {
        "entry": entry.seq,
        "time": when(entry.time),
        "kind": entry.kind,
        "model": entry.model or NONE,
        "actor": entry.actor,
        "request": entry.request_id or NONE,
        "reason": fact.get("reason") or NONE,
        "inputs": ", ".join(fact.get("inputs") or ()) or NONE,
        "outputs": ", ".join(fact.get("outputs") or ()) or NONE,
        "leaf": entry.leaf,
    }
    parameters: dict[str, Any] = fact.get("parameters") or {}
    rows |= {f"  {name}": json.dumps(value, ensure_ascii=False) for name, value in parameters.items()}
    session.pairs(entry, rows)


def verify(
    session: Session,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Check too that the log knows every version of this model.",
            autocompletion=model_names,
        ),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="What `audit verify --json` printed on an earlier day: nothing of the log then may have changed.",
        ),
    ] = None,
) -> None:
    """Check the whole log on this machine: every entry's hash, their order, the root over all of them."""
    versions = [] if name is None else list(session.client.versions(name))
    unknown = {version.checkpoint.digest: version.number for version in versions}
    head = session.client.audit_head()
    with session.bars() as bars:
        stage = bars.stage("verifying")

        def note(entry: AuditEntry, total: int) -> None:
            stage.at(entry.seq, total, f"entry {count(entry.seq)} of {count(total)}")
            if entry.model == name:
                for digest in entry.fact.get("outputs") or ():
                    unknown.pop(digest, None)

        entries = session.client.verify_log(note, head=head)
        stage.done(f"{plural(entries, 'entry', 'entries')}: every hash, their order and their root are right")
    if unknown:
        numbers = ", ".join(map(str, sorted(unknown.values())))
        raise ProofRejected(f"the log is sound, but does not know the checkpoints of {name}: version {numbers}")
    if name is not None:
        session.remark(f"{plural(len(versions), 'version')} of {name}: the log knows every checkpoint")
    if since is not None:
        earlier = _kept_head(since)
        session.client.verify_log(head=earlier)
        session.remark(f"the first {plural(earlier.size, 'entry', 'entries')} are those of the head in {since}")
    if session.as_json:
        session.document({"verified": True, "head": head, "versions": len(versions)})


def _kept_head(path: Path) -> LogHead:
    try:
        document = json.loads(path.read_text("utf-8"))
        return LogHead.from_json(document.get("head", document))
    except (ValueError, AttributeError, EspalierClientError) as error:
        raise typer.BadParameter(
            f"{path} holds no head of a log: keep what `espalier audit verify --json` prints"
        ) from error


def _line(entry: AuditEntry) -> str:
    fact = entry.fact
    what = fact.get("reason") or _short(fact.get("parameters") or {})
    who = f"{entry.model or NONE}   {entry.actor}"
    return f"{entry.seq:>6}   {when(entry.time)}   {entry.kind:<22}   {who}   {what}".rstrip()


def _short(parameters: dict[str, Any]) -> str:
    """Parameters that fit a line: nested ones are left to ``audit show``."""
    simple = [
        f"{name}={value}"
        for name, value in parameters.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    text = " ".join(simple)
    return text if len(text) <= 100 else text[:99] + "…"


def _new_entries(session: Session, seq: int, model: str | None, kind: str | None) -> Iterator[AuditEntry]:
    while True:
        try:
            entry = session.client.audit_entry(seq)
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            time.sleep(1.0)
            continue
        seq += 1
        if model in (None, entry.model) and kind in (None, entry.kind):
            yield entry
