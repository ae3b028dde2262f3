"""The server's commands: serve, work, migrate, doctor, retention, demo. They join ``espalier`` where it is installed.

Knows: every edge, and how a deployment's processes start and end. Must never know: torch (the worker is a process of
its own), or what a use case decides.

Laws:
    * Settings are built once, here; an option overrides its ``ESPALIER_*`` variable, for child processes too.
    * Nothing listens on an address that other machines reach without a key.
    * The embedded database is migrated by ``serve``; any other one only by ``migrate``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import sqlalchemy as sa
import typer
import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app import __version__
from app.api.wire import Wire
from app.config import Settings
from app.demo import Options, run
from app.errors import EspalierError, SchemaMismatch
from app.service import history
from app.service.opening import open_store
from app.service.retention import Policy, planned
from app.store.database import Store
from app.store.migrate import migrate as migrate_database
from app.store.migrate import newest_revision
from app.worker import parent
from app.worker.embedded import COMMAND, EmbeddedWorker
from app.worker.logs import logging_config

_BACKLOG = 2048
_GRACE_SECONDS = 10  # for requests that are under way when the service is asked to stop

DataDir = Annotated[Path | None, typer.Option(help="Folder for data. [env: ESPALIER_DATA_DIR; default: espalier-data]")]


def register(app: typer.Typer) -> None:
    """Add the server's commands to a command line."""
    for command in (serve, work, migrate, doctor, retention, demo):
        app.command(rich_help_panel="Server")(command)


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [env: ESPALIER_HOST; default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks a free one. [env: ESPALIER_PORT; default: 8000]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="API processes. [env: ESPALIER_WORKERS; default: 1]")] = None,
    data_dir: DataDir = None,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Run a training worker beside the API.")] = True,
    parent_pipe: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the service: the HTTP API, and a worker that trains and prunes."""
    settings = _settings(host=host, port=port, workers=workers, data_dir=data_dir)
    if settings.api_key is None and not settings.loopback:
        _refuse(
            f"other machines can reach {settings.host}, so every request must carry a key: set ESPALIER_API_KEY\n"
            "    export ESPALIER_API_KEY=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')\n"
            "or listen on this machine alone: --host 127.0.0.1"
        )
    _leave_on_signals()
    if parent_pipe is not None:
        parent.when_closed(parent_pipe, lambda: os.kill(os.getpid(), signal.SIGTERM))
    database = _ready_database(settings)
    _ready_blobs(settings)
    listener = _listen(settings.host, settings.port)
    os.environ["ESPALIER_PORT"] = str(listener.getsockname()[1])
    _announce(settings, listener, database, worker=worker)
    with EmbeddedWorker(os.environ) if worker else nullcontext():
        _run_api(settings, listener)


def work(
    data_dir: DataDir = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>. [env: ESPALIER_DEVICE; default: auto]")
    ] = None,
) -> None:
    """Run one worker in the foreground. Start as many as there is hardware for: each megabatch is trained once."""
    _settings(data_dir=data_dir, device=device)
    os.execv(COMMAND[0], COMMAND)  # noqa: S606  # this process becomes the worker: signals reach it, torch stays out of here


def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this version's schema. Safe to run twice, and by several machines at once."""
    settings = _settings(data_dir=data_dir)
    try:
        applied = migrate_database(settings.resolved_database_url)
    except (EspalierError, SQLAlchemyError, OSError) as error:
        _refuse(f"could not migrate {_database_name(settings)}: {_first_line(error)}")
    for revision in applied:
        typer.echo(f"applied {revision}")
    typer.echo(f"{_database_name(settings)}: {'now' if applied else 'already'} at {newest_revision()}")


def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check that all is whole: blobs, numbers, aliases, audit log. Exit status 1 when anything is not."""
    settings = _settings(data_dir=data_dir)
    store = _open(settings)
    try:
        store.blobs.check()
        store.check_schema()
        findings = history.examine(store)
        unnamed = history.unnamed(store)
    except (EspalierError, SQLAlchemyError) as error:
        _refuse(_first_line(error))
    finally:
        store.dispose()
    if as_json:
        typer.echo(json.dumps([{"kind": f.kind, "subject": f.subject, "detail": f.detail} for f in findings], indent=2))
    for finding in findings if not as_json else ():
        typer.echo(f"{finding.kind}: {finding.subject}: {finding.detail}")
    if not as_json:
        typer.echo(
            f"{len(findings)} findings" if findings else "all is well: blobs, numbers, aliases and audit log hold"
        )
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
    settings = _settings(data_dir=data_dir)
    policy = Policy.of(settings)
    store = _open(settings)
    try:
        store.check_schema()
        versions = planned(store, settings)
    except (EspalierError, SQLAlchemyError) as error:
        _refuse(_first_line(error))
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


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own .npz with x, y and, if megabatches are marked, batch. Without: scikit-learn's digits."
        ),
    ] = None,
    megabatches: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Megabatches before the rollback. [default: 8, or one per batch]"),
    ] = None,
    density: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the weights kept at the end.")] = 0.366,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Epochs in each cycle. [default: the recipe's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of the recipe.")] = 0,
    network: Annotated[str, typer.Option(help="Widths of the mlp's hidden layers, with commas.")] = "128,128",
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the demo's data; it is kept.")] = None,
    keep: Annotated[bool, typer.Option(help="Keep the temporary folder.")] = False,
) -> None:
    """See it work: upload, train and prune, download, roll back, go on. Starts a service of its own; under a minute."""
    try:
        hidden = tuple(int(width) for width in network.split(","))
    except ValueError:
        raise typer.BadParameter("widths of hidden layers, such as 128,128", param_hint="--network") from None
    raise typer.Exit(run(Options(data, megabatches, density, epochs, seed, hidden, data_dir, keep)))


# -- settings and store -----------------------------------------------------------------------------------------------


def _settings(**overrides: object) -> Settings:
    """Settings from the environment and the given options, which child processes then find in theirs."""
    os.environ.update(
        {f"ESPALIER_{name.upper()}": str(value) for name, value in overrides.items() if value is not None}
    )
    try:
        settings = Settings()
    except ValidationError as error:
        _refuse("\n".join(_setting_fault(item["loc"], item["msg"]) for item in error.errors()), status=2)
    os.environ["ESPALIER_DATA_DIR"] = str(settings.data_dir.absolute())
    return settings


def _setting_fault(where: tuple[int | str, ...], message: str) -> str:
    words = message.removeprefix("Value error, ")
    return f"ESPALIER_{str(where[0]).upper()}: {words}" if where else words


def _open(settings: Settings) -> Store:
    try:
        return open_store(settings)
    except (EspalierError, OSError) as error:
        _refuse(_first_line(error))


def _ready_blobs(settings: Settings) -> None:
    """Find out now whether blobs can be reached and written, and say what to do if not."""
    store = _open(settings)
    try:
        store.blobs.check()
    except EspalierError as error:
        _refuse(_first_line(error))
    finally:
        store.dispose()


def _ready_database(settings: Settings) -> str:
    """Migrate the embedded database; check any other. Returns what was found and done, in words."""
    if settings.embedded_database:
        try:
            applied = migrate_database(settings.resolved_database_url)
        except (SQLAlchemyError, OSError) as error:
            _refuse(f"cannot use the data folder {settings.data_dir.absolute()}: {_first_line(error)}")
        state = f"migrated to {newest_revision()}" if applied else f"at {newest_revision()}"
        return f"{_database_name(settings)} ({state})"
    store = _open(settings)
    try:
        store.check_schema()
    except SchemaMismatch as mismatch:
        _refuse(f"{_database_name(settings)}: {mismatch}\nrun `espalier migrate` first (a backup before it is wise)")
    except (EspalierError, SQLAlchemyError) as error:
        _refuse(f"cannot use {_database_name(settings)}: {_first_line(error)}")
    finally:
        store.dispose()
    return f"{_database_name(settings)} (at {newest_revision()})"


def _database_name(settings: Settings) -> str:
    if settings.embedded_database:
        return f"SQLite {settings.data_dir.absolute() / 'espalier.db'}"
    return sa.make_url(settings.resolved_database_url).render_as_string(hide_password=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse(message: str, status: int = 1) -> NoReturn:
    typer.echo(f"espalier: {message}", err=True)
    raise typer.Exit(status)


# -- the API processes ------------------------------------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. From now on connections wait; none is refused while the API starts."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        _refuse(f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port, or 0 for a free one")


def _announce(settings: Settings, listener: socket.socket, database: str, *, worker: bool) -> None:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rows = {
        "service": f"http://{host}:{port}" + (f" ({settings.workers} processes)" if settings.workers > 1 else ""),
        "access": "with the key in ESPALIER_API_KEY"
        if settings.api_key
        else "open to everyone on this machine; set ESPALIER_API_KEY to close it",
        "data": str(settings.data_dir.absolute()) + (f", blobs in {settings.blobs_url}" if settings.blobs_url else ""),
        "database": database,
        "worker": f"one, beside the API, on {settings.device}"
        if worker
        else "none here; start some with `espalier work`",
        "stop": "Ctrl-C",
    }
    lines = [f"  {name:<10}{value}" for name, value in rows.items()]
    typer.echo("\n".join([f"Espalier {__version__}", "", *lines, ""]))
    sys.stdout.flush()


def _run_api(settings: Settings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        "app.api.process:application",
        factory=True,
        http=Wire,
        host=settings.host,
        port=listener.getsockname()[1],
        workers=settings.workers,
        log_config=logging_config(settings.log_level),
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    if settings.workers == 1:
        uvicorn.Server(config).run(sockets=[listener])
        return
    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        _refuse("the API could not start: see the log above")


def _leave_on_signals() -> None:
    """SIGTERM and Ctrl-C end the service in order, with status 0. While uvicorn serves, it takes both over."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)  # leaving takes moments and must not be cut by a second Ctrl-C
    raise SystemExit(0)
