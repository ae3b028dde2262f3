"""A deployment, as every command finds it: its settings, its store, and how a command refuses.

Knows: where settings come from, and what an unusable deployment is told. Must never know: any command.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import sqlalchemy as sa
import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings
from app.errors import EspalierError, SchemaMismatch
from app.service.opening import open_store
from app.store.database import Store
from app.store.migrate import migrate as migrate_database
from app.store.migrate import newest_revision

DataDir = Annotated[Path | None, typer.Option(help="Folder for data. [env: ESPALIER_DATA_DIR; default: espalier-data]")]


def settings_of(**overrides: object) -> Settings:
    """Settings from the environment and the given options, which child processes then find in theirs."""
    os.environ.update(
        {f"ESPALIER_{name.upper()}": str(value) for name, value in overrides.items() if value is not None}
    )
    try:
        settings = Settings()
    except ValidationError as error:
        refuse("\n".join(_setting_fault(item["loc"], item["msg"]) for item in error.errors()), status=2)
    os.environ["ESPALIER_DATA_DIR"] = str(settings.data_dir.absolute())
    return settings


def _setting_fault(where: tuple[int | str, ...], message: str) -> str:
    words = message.removeprefix("Value error, ")
    return f"ESPALIER_{str(where[0]).upper()}: {words}" if where else words


def opened(settings: Settings) -> Store:
    """The store of a deployment; what makes it unusable ends the command."""
    try:
        return open_store(settings)
    except (EspalierError, OSError) as error:
        refuse(first_line(error))


def ready_blobs(settings: Settings) -> None:
    """Find out now whether blobs can be reached and written, and say what to do if not."""
    store = opened(settings)
    try:
        store.blobs.check()
    except EspalierError as error:
        refuse(first_line(error))
    finally:
        store.dispose()


def ready_database(settings: Settings) -> str:
    """Migrate the embedded database; check any other. Returns what was found and done, in words."""
    if settings.embedded_database:
        try:
            applied = migrate_database(settings.resolved_database_url)
        except (SQLAlchemyError, OSError) as error:
            refuse(f"cannot use the data folder {settings.data_dir.absolute()}: {first_line(error)}")
        state = f"migrated to {newest_revision()}" if applied else f"at {newest_revision()}"
        return f"{database_name(settings)} ({state})"
    store = opened(settings)
    try:
        store.check_schema()
    except SchemaMismatch as mismatch:
        refuse(f"{database_name(settings)}: {mismatch}\nrun `espalier migrate` first (a backup before it is wise)")
    except (EspalierError, SQLAlchemyError) as error:
        refuse(f"cannot use {database_name(settings)}: {first_line(error)}")
    finally:
        store.dispose()
    return f"{database_name(settings)} (at {newest_revision()})"


def database_name(settings: Settings) -> str:
    """The database in words, without its password."""
    if settings.embedded_database:
        return f"SQLite {settings.data_dir.absolute() / 'espalier.db'}"
    return sa.make_url(settings.resolved_database_url).render_as_string(hide_password=True)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def refuse(message: str, status: int = 1) -> NoReturn:
    """End the command with a message that says what to do."""
    typer.echo(f"espalier: {message}", err=True)
    raise typer.Exit(status)
