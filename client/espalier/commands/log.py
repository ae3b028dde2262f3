"""``espalier audit``: read and check the audit log."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.console import NONE, count, plural, when
from espalier.errors import ApiProblem, EspalierClientError, ProofRejected
from espalier.evidence import read_keys
from espalier.formats.logfile import verify_files
from espalier.formats.note import LogCheckpoint
from espalier.formats.statement import key_id
from espalier.records import AuditEntry, LogHead
from espalier.session import Session, command, group, model_names

LogKey = Annotated[
    str | None,
    typer.Option(
        "--log-key",
        help="Public key of the service's audit log, or a file with it [env: ESPALIER_LOG_KEY].",
        show_default=False,
    ),
]

_WHAT_NOW = (
    "do not rely on it: keep it as it is, compare it with another copy, and show this to whoever runs the service, "
    "where `espalier doctor` names all that was changed"
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    audit = group(app, "audit", "The audit log: tail, show, verify, export.")
    command(audit, "tail")(tail)
    command(audit, "show")(show)
    command(audit, "verify")(verify)
    command(audit, "export")(export)
    command(audit, "pin")(pin)


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
    proof: Annotated[
        bool, typer.Option("--proof", help="Prove on this machine that the entry is in the signed log.")
    ] = False,
    log_key: LogKey = None,
) -> None:
    """Show one entry with all that it says."""
    client = session.client_with(log_key)
    entry = client.audit_entry(seq)
    signed = client.log.prove(entry) if proof else None
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
    if signed is not None:
        rows["proof"] = f"it is entry {entry.seq} of the signed log of {count(signed.size)} of {signed.origin}"
    parameters: dict[str, Any] = fact.get("parameters") or {}
    rows |= {f"  {name}": json.dumps(value, ensure_ascii=False) for name, value in parameters.items()}
    if session.as_json and signed is not None:
        session.document({**entry.document, "proved": log_document(signed)})
        return
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
    offline: Annotated[
        Path | None,
        typer.Option(
            "--offline",
            exists=True,
            metavar="PATH",
            help="What `audit export` wrote, instead of a service's log; --key is the log's key then.",
        ),
    ] = None,
    log_key: LogKey = None,
) -> None:
    """Check the whole log on this machine: its signature, every entry, their order, and what was seen of it before."""
    if offline is not None:
        _verify_offline(session, offline, log_key)
        return
    client = session.client_with(log_key)
    versions = [] if name is None else list(client.versions(name))
    unknown = {version.checkpoint.digest: version.number for version in versions}
    seen = client.log.pins.read(client.url)
    signed = client.log_checkpoint()
    head = LogHead(signed.size, signed.root.hex(), document={"size": signed.size, "root": signed.root.hex()})
    asked = _sample(signed.size)
    with session.bars() as bars, _saying_what_now():
        stage = bars.stage("verifying")

        def note(entry: AuditEntry, total: int) -> None:
            stage.at(entry.seq, total, f"entry {count(entry.seq)} of {count(total)}")
            if entry.seq in asked:
                client.log.prove(entry, signed)
            if entry.model == name:
                for digest in entry.fact.get("outputs") or ():
                    unknown.pop(digest, None)

        entries = client.verify_log(note, head=head)
        stage.done(
            f"{plural(entries, 'entry', 'entries')}: every hash, their order and their root are right, and signed"
        )
    if unknown:
        numbers = ", ".join(map(str, sorted(unknown.values())))
        raise ProofRejected(
            f"the log is sound, but does not know the checkpoints of {name}: version {numbers}: do not use them, and "
            "ask who runs the service"
        )
    keys = ", ".join(key_id(key) for key in client.log.trusted())
    session.remark(f"signed by {keys}" + ("" if client.log.given else ", trusted since this machine first saw it"))
    if seen is not None:
        session.remark(f"it continues the log of {count(seen.log.size)} that this machine saw before")
    session.remark(f"{plural(len(asked), 'inclusion proof')} of the service hold")
    if name is not None:
        session.remark(f"{plural(len(versions), 'version')} of {name}: the log knows every checkpoint")
    if since is not None:
        earlier = _kept_head(since)
        client.verify_log(head=earlier)
        session.remark(f"the first {plural(earlier.size, 'entry', 'entries')} are those of the head in {since}")
    if session.as_json:
        document = {"verified": True, "head": head, "versions": len(versions), "signed": log_document(signed)}
        trusted = {"keys": [key.text for key in client.log.trusted()], "given": bool(client.log.given)}
        session.document(document | trusted)


def export(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, or a file that ends with .tar.")],
    log_key: LogKey = None,
) -> None:
    """Copy the whole log to a folder or a tar, to keep where nobody who runs the service can write.

    The second time only what is new is fetched, after what is there was verified.
    """
    client = session.client_with(log_key)
    with session.bars() as bars:
        stage = bars.stage("exporting")
        added, there = client.export_log(
            path, progress=lambda at, total: stage.at(at, total, f"entry {count(at)} of {count(total)}")
        )
        stage.done(
            f"{plural(added, 'entry', 'entries')} added, {count(there)} in all, verified against the signed root"
        )
    session.result({"path": str(path), "added": added, "entries": there}, f"{path}: the log up to entry {there}")
    session.remark(f"check it anywhere: espalier audit verify --offline {path} --key KEY")


def pin(
    session: Session,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget it: the next look is a first one again. Know why before you do.")
    ] = False,
    log_key: LogKey = None,
) -> None:
    """Show the keys and the last signed checkpoint that this machine remembers of the service's log."""
    log = session.client_with(log_key).log
    if forget:
        known = log.pins.forget(session.client.url)
        session.result({"forgotten": known}, "forgotten" if known else "nothing was remembered")
        return
    log.checkpoint()
    found = log.pins.read(session.client.url)
    assert found is not None, "a checkpoint that was checked is remembered"
    session.result(
        {
            "url": found.url,
            "keys": [key.text for key in found.keys],
            "given": found.given,
            "log": log_document(found.log),
        },
        f"log      {found.log.origin}, {plural(found.log.size, 'entry', 'entries')}",
        f"root     {found.log.root.hex()}",
        *(f"key      {key.text}" for key in found.keys),
        f"trusted  {'since you gave the key' if found.given else 'since this machine first saw it: compare the key'}",
        f"kept at  {log.pins.path(found.url)}",
    )


def log_document(log: LogCheckpoint) -> dict[str, object]:
    """A checkpoint of the log, for programs."""
    return {"origin": log.origin, "size": log.size, "root": log.root.hex()}


def _verify_offline(session: Session, path: Path, log_key: str | None) -> None:
    chosen = log_key or session.key or os.environ.get("ESPALIER_LOG_KEY")
    if chosen is None:
        raise ProofRejected(
            f"{path} is NOT verified: who signed it can be told by the key of the log alone; give it with --key"
        )
    with session.bars() as bars, _saying_what_now():
        stage = bars.stage("verifying")
        log, _, _ = verify_files(
            path,
            read_keys(chosen),
            progress=lambda at, total: stage.at(at, total, f"entry {count(at)} of {count(total)}"),
        )
        stage.done(f"{plural(log.size, 'entry', 'entries')}: every one, and their order, are those that were signed")
    session.result(
        {"verified": True, "log": log_document(log)}, f"{path} is the log of {log.origin} up to entry {count(log.size)}"
    )


@contextmanager
def _saying_what_now() -> Iterator[None]:
    try:
        yield
    except ProofRejected as error:
        raise ProofRejected(f"{error}\n{_WHAT_NOW}", error.seq) from error


def _sample(size: int) -> set[int]:
    """Entries whose inclusion proofs are asked for: the first, the last, and some between."""
    if size == 0:
        return set()
    return {1, size, *(random.randint(1, size) for _ in range(6))}


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
