"""``espalier key`` and ``espalier whoami``: who may do what.

Law: a new key stands on standard output alone, so that it can be piped; what is said about it goes to standard error.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from espalier.commands.durations import duration
from espalier.console import NONE, line, when
from espalier.keys import Key
from espalier.session import Reason, Session, command, group

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]

_SCOPES = ("read", "ingest", "train", "release", "audit", "admin")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    key = group(app, "key", "Keys: create, list, show, revoke.")
    command(key, "create")(create)
    command(key, "list")(listing)
    command(key, "show")(show)
    command(key, "revoke")(revoke)
    command(app, "whoami")(whoami)


def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for the audit log; no other key ever gets it.")],
    scope: Annotated[
        list[str], typer.Option("--scope", "-s", help=f"What it allows, repeatable: {', '.join(_SCOPES)}.")
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Model that it is for, repeatable; without: all.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it ends: after 90d, 12h, 30m, 4w, or at 2026-12-31T00:00:00Z."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=0, help="Its own limit; 0: none.")
    ] = None,
) -> None:
    """Make a key and print it, this once: on standard output, alone."""
    made = session.client.keys.create(
        name, scope, models=model, expires=_expiry(expires), requests_per_minute=requests_per_minute
    )
    if session.as_json:
        session.document(made)
        return
    sys.stdout.write(made.key + "\n")
    sys.stdout.flush()
    if not session.quiet:
        line(session.errors, f"this is the key {made.name!r} ({_rights(made)}); it is not shown again")


def listing(session: Session) -> None:
    """List keys, those that expired or were revoked too."""
    found = list(session.client.keys.list())
    rows = [(k.name, k.state(), ", ".join(k.scopes), _models(k), when(k.expires_at), when(k.used_at)) for k in found]
    columns = ("name", "state", "scopes", "models", "expires", "last used")
    session.table(found, columns, rows, "there are no keys: make one with `espalier key create NAME --scope read`")


def show(session: Session, name: KeyName) -> None:
    """Show what a key allows, who made it, and when it was last used."""
    found = session.client.keys.get(name)
    rows: dict[str, object] = {
        "key": found.name,
        "id": found.id,
        "state": found.state(),
        "scopes": ", ".join(found.scopes),
        "models": _models(found),
        "requests a minute": "as the service says" if found.requests_per_minute is None else found.requests_per_minute,
        "made": f"{when(found.created_at)} by {found.created_by}",
        "expires": when(found.expires_at),
        "last used": when(found.used_at),
    }
    if found.revoked_at is not None:
        rows["revoked"] = f"{when(found.revoked_at)}: {found.revoked_reason}"
    session.pairs(found, rows)


def revoke(session: Session, name: KeyName, reason: Reason) -> None:
    """End a key, and every session with it, at once and for good."""
    done = session.client.keys.revoke(name, reason)
    session.result(done, f"{done.name} was revoked at {when(done.revoked_at)}: {done.revoked_reason}")


def whoami(session: Session) -> None:
    """Show whose key this is, and what it allows."""
    found = session.client.keys.mine()
    models = "all" if found.models is None else ", ".join(found.models)
    rows: dict[str, object] = {"name": found.name, "scopes": ", ".join(found.scopes), "models": models}
    session.pairs(found, {**rows, "expires": when(found.expires_at)})


def _rights(key: Key) -> str:
    ends = "" if key.expires_at is None else f", until {when(key.expires_at)}"
    return f"{', '.join(key.scopes)}; models: {_models(key)}{ends}"


def _models(key: Key) -> str:
    return "all" if key.models is None else ", ".join(key.models) or NONE


def _expiry(text: str | None) -> datetime | timedelta | None:
    if text is None:
        return None
    if lasts := duration(text):
        return lasts
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise typer.BadParameter(f"--expires {text}: write 90d, 12h, or a time like 2026-12-31T00:00:00Z") from error
