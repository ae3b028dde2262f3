"""``espalier migrate``, ``doctor`` and ``retention``: a deployment looked after from its own machine.

Knows: what each check prints, and its exit status. Must never know: what a check looks at.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.cli.deployment import DataDir, database_name, first_line, opened, refuse, settings_of
from app.errors import EspalierError
from app.service import history
from app.service.notary import Notary
from app.service.retention import Policy, planned
from app.store.migrate import migrate as migrate_database
from app.store.migrate import newest_revision


def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this version's schema. Safe to run twice, and by several machines at once."""
    settings = settings_of(data_dir=data_dir)
    try:
        applied = migrate_database(settings.resolved_database_url)
    except (EspalierError, SQLAlchemyError, OSError) as error:
        refuse(f"could not migrate {database_name(settings)}: {first_line(error)}")
    for revision in applied:
        typer.echo(f"applied {revision}")
    typer.echo(f"{database_name(settings)}: {'now' if applied else 'already'} at {newest_revision()}")


def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check that all is whole: blobs, rows, audit log, signatures. Exit status 1 when anything is not."""
    settings = settings_of(data_dir=data_dir)
    store = opened(settings)
    try:
        store.blobs.check()
        store.check_schema()
        findings = history.examine(store, Notary(store, settings))
        unnamed = history.unnamed(store)
    except EspalierError as error:
        refuse(first_line(error))
    except SQLAlchemyError as error:
        refuse(f"{database_name(settings)} cannot be read ({first_line(error)}): restore it from a backup")
    finally:
        store.dispose()
    if as_json:
        typer.echo(json.dumps([{"kind": f.kind, "subject": f.subject, "detail": f.detail} for f in findings], indent=2))
    for finding in findings if not as_json else ():
        typer.echo(f"{finding.kind}: {finding.subject}: {finding.detail}")
    if not as_json:
        typer.echo(f"{len(findings)} findings" if findings else "all is well: blobs, rows and audit log hold")
        if unnamed.blobs:
            typer.echo(
                f"no row names {unnamed.blobs} blobs of {unnamed.bytes:,} bytes: dense forms, and what was left "
                "behind; a worker sweeps them when they are old enough"
            )
    raise typer.Exit(1 if findings else 0)


def retention(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the versions as JSON.")] = False,
) -> None:
    """List the versions that retention would take the bytes of now. Changes nothing: a worker does it, hourly."""
    settings = settings_of(data_dir=data_dir)
    policy = Policy.of(settings)
    store = opened(settings)
    try:
        store.check_schema()
        versions = planned(store, settings)
    except (EspalierError, SQLAlchemyError) as error:
        refuse(first_line(error))
    finally:
        store.dispose()
    if as_json:
        rows = [{"model": v.model, "number": v.number, "checkpoint_bytes": v.checkpoint_bytes} for v in versions]
        typer.echo(json.dumps(rows, indent=2))
        return
    for v in versions:
        typer.echo(f"{v.model} {v.number}: {v.checkpoint_bytes:,} bytes, of {v.created_at:%Y-%m-%d}")
    typer.echo(str(policy) if policy else "every version is kept: set ESPALIER_KEEP_VERSIONS or ESPALIER_KEEP_DAYS")
    freed = sum(v.checkpoint_bytes for v in versions)
    typer.echo(f"{len(versions)} versions would lose {freed:,} bytes of checkpoints")
