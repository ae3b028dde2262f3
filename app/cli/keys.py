"""``espalier admin-key``: the first key of a service, made on its own machine.

Knows: how a key is printed. Must never know: what a key allows.

Law: the key stands on standard output alone, so that it can be piped; everything else goes to standard error.
"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.cli.deployment import DataDir, first_line, opened, ready_database, refuse, settings_of
from app.domain import Actor, Scope
from app.errors import EspalierError, KeyNameTaken
from app.service import access
from app.service.keyring import LOCAL


def admin_key(
    name: Annotated[
        str, typer.Option(help="Name of the key; it stands in the audit log for whoever uses it.")
    ] = "admin",
    data_dir: DataDir = None,
) -> None:
    """Make a key with every right, on the server itself, and print it once. The first one closes an open service."""
    settings = settings_of(data_dir=data_dir)
    ready_database(settings)
    store = opened(settings)
    wanted = access.Wanted(name, frozenset({Scope.ADMIN}))
    try:
        made = access.create_key(store, wanted, caller=LOCAL, actor=Actor("local"))
    except KeyNameTaken:
        refuse(f"a key named {name!r} exists or existed: give this one another name, such as --name {name}-2")
    except (EspalierError, SQLAlchemyError, OSError) as error:
        refuse(first_line(error))
    finally:
        store.dispose()
    typer.echo(made.text)
    typer.echo(
        f"espalier: this is the key {name!r}, and it is not shown again. Keep it where secrets are kept, and make "
        "keys that allow less for everything else: ESPALIER_KEY=... espalier key create line-3 --scope ingest",
        err=True,
    )
