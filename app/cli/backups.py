"""``espalier backup`` and ``espalier restore``: a deployment's state into a folder, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.cli.deployment import DataDir, database_name, first_line, opened, refuse, settings_of
from app.errors import EspalierError
from app.service import backup as backups
from app.service.backup import Progress, Snapshot
from espalier.console import bars, consoles, count, plural, size, when

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup, on another disk.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result alone.")]


def backup(
    folder: Folder,
    data_dir: DataDir = None,
    keep: Annotated[
        int, typer.Option(min=0, help="Keep so many of the newest snapshots, and remove the others; 0 keeps all.")
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Copy rows, blobs and the log's last signed checkpoint into a folder, while the service runs. What is there
    already is not copied again. The signing key is not copied: keep a copy of it elsewhere.
    """
    settings = settings_of(data_dir=data_dir)
    store = opened(settings)
    try:
        with _shown("copying", quiet) as progress:
            made = backups.back_up(store, settings, folder, keep=keep, progress=progress)
    except (EspalierError, SQLAlchemyError, OSError) as error:
        refuse(first_line(error))
    finally:
        store.dispose()
    typer.echo(_told(made))
    for line in made.missing:
        typer.echo(f"not copied: {line}", err=True)
    if made.missing:
        refuse("the deployment itself is damaged: run `espalier doctor`")


def restore(
    folder: Folder,
    data_dir: DataDir = None,
    taken: Annotated[
        str | None,
        typer.Option("--snapshot", help="Name of a folder in snapshots/.", show_default="the newest"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hash every file of the snapshot, and restore nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Fill an empty deployment from a backup. Stop whatever uses it; a database that holds anything is refused."""
    try:
        found = backups.newest(folder) if taken is None else backups.opened(folder / "snapshots" / taken)
        faults = _checked(found, quiet) if check else _restored(found, data_dir, quiet)
    except (EspalierError, SQLAlchemyError, OSError) as error:
        refuse(first_line(error))
    for fault in faults:
        typer.echo(fault)
    raise typer.Exit(1 if faults else 0)


def _checked(found: Snapshot, quiet: bool) -> list[str]:
    with _shown("checking", quiet) as progress:
        faults = backups.check(found, progress=progress)
    typer.echo(_told(found) + ("" if faults else ": every file is whole"))
    return faults


def _restored(found: Snapshot, data_dir: Path | None, quiet: bool) -> list[str]:
    settings = settings_of(data_dir=data_dir)
    store = opened(settings)
    try:
        with _shown("restoring", quiet) as progress:
            findings = backups.restore(store, settings, found, progress=progress)
    finally:
        store.dispose()
    typer.echo(f"restored into {database_name(settings)}: {_told(found)}")
    typer.echo(
        "whoever has seen later checkpoints of the log will not accept this one as its continuation: unless nothing "
        "was signed since the snapshot, run `espalier audit new-epoch`, which says so in the log"
    )
    return [f"{finding.kind}: {finding.subject}: {finding.detail}" for finding in findings]


def _told(found: Snapshot) -> str:
    held = f"{plural(found.head.size, 'entry', 'entries')}, {plural(len(found.blobs), 'blob')} of {size(found.bytes)}"
    return f"snapshot {found.path.name} of {when(found.made_at)}: {held}"


@contextmanager
def _shown(verb: str, quiet: bool) -> Iterator[Progress]:
    with bars(*consoles(), quiet) as shown:
        stage = shown.stage(verb)

        def progress(done: int, of: int) -> None:
            stage.at(done, of, f"blob {count(done)} of {count(of)}")

        yield progress
        stage.done("done")
