"""``espalier audit key | rotate-key | retire-key | new-epoch``: what the log is signed with, seen to on the server.

Knows: what each command prints. Must never know: what may be signed.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.cli.deployment import DataDir, first_line, opened, refuse, settings_of
from app.cli.replaying import replay
from app.domain import Actor
from app.errors import EspalierError
from app.service.notary import Notary

T = TypeVar("T")

Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the audit log.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the client's ``audit``, and ``replay`` with them."""
    audit = typer.Typer(help="The audit log: its keys and epochs, on the server.", no_args_is_help=True)
    for command, name in ((key, "key"), (rotate, "rotate-key"), (retire, "retire-key"), (new_epoch, "new-epoch")):
        audit.command(name)(command)
    audit.command("replay")(replay)
    app.add_typer(audit, name="audit")


def key(data_dir: DataDir = None) -> None:
    """Print the public keys that readers of the log should be given, one a line, the present one first. Server."""
    for found in _with_notary(data_dir, lambda notary: notary.verifier_keys()):
        typer.echo(found.text)


def rotate(reason: Reason, data_dir: DataDir = None) -> None:
    """Sign with a new key from now on, and with the old one beside it until that is retired. Server."""
    new = _with_notary(data_dir, lambda notary: notary.rotate(reason, _actor()))
    typer.echo(new.text)
    typer.echo("give this key to every reader of the log, then run `espalier audit retire-key`", err=True)


def retire(reason: Reason, data_dir: DataDir = None) -> None:
    """Stop signing with the old keys. Readers who were not given the new one cannot verify any more. Server."""
    for found in _with_notary(data_dir, lambda notary: notary.retire(reason, _actor())):
        typer.echo(f"retired {found.text}")


def new_epoch(
    reason: Reason,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key", help="The signing key is lost, and every copy of it: sign with a new one from here on."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Go on from the database as it is, though more was signed before, as after an older backup. Server."""
    head = _with_notary(data_dir, lambda notary: notary.begin_epoch(reason, _actor(), new_key=new_key))
    typer.echo(f"epoch {head.epoch} began; the log has {head.size} entries: readers will ask why, and it says so")
    if new_key:
        typer.echo("give readers the new key, by a way that they trust: `espalier audit key`", err=True)


def _actor() -> Actor:
    """Whoever can use the server's files; the name is the system's, not a key's."""
    return Actor(f"local:{getpass.getuser()}")


def _with_notary(data_dir: DataDir, work: Callable[[Notary], T]) -> T:
    settings = settings_of(data_dir=data_dir)
    store = opened(settings)
    try:
        store.check_schema()
        return work(Notary(store, settings))
    except (EspalierError, SQLAlchemyError, OSError) as error:
        refuse(first_line(error))
    finally:
        store.dispose()
