"""``espalier serve`` and ``espalier work``: how a deployment's processes start and end.

Knows: every edge. Must never know: torch (the worker is a process of its own), or what a use case decides.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from contextlib import nullcontext
from types import FrameType
from typing import Annotated, NoReturn

import typer
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app import __version__
from app.api.wire import Wire
from app.cli.deployment import DataDir, ready_blobs, ready_database, refuse, settings_of
from app.config import Settings
from app.service import access
from app.service.credentials import spellings
from app.worker import parent
from app.worker.embedded import COMMAND, EmbeddedWorker
from app.worker.logs import logging_config

_BACKLOG = 2048
_GRACE_SECONDS = 10  # for requests that are under way when the service is asked to stop


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
    settings = settings_of(host=host, port=port, workers=workers, data_dir=data_dir)
    shut = settings.loopback or settings.api_key is not None
    if not shut and settings.embedded_database and not (settings.data_dir / "espalier.db").exists():
        _refuse_to_be_open(settings)
    _leave_on_signals()
    if parent_pipe is not None:
        parent.when_closed(parent_pipe, lambda: os.kill(os.getpid(), signal.SIGTERM))
    database = ready_database(settings)
    keys = access.keys_exist(settings)
    if not (shut or keys):
        _refuse_to_be_open(settings)
    ready_blobs(settings)
    listener = _listen(settings.host, settings.port)
    os.environ["ESPALIER_PORT"] = str(listener.getsockname()[1])
    _announce(settings, listener, database, keys=keys, worker=worker)
    with EmbeddedWorker(os.environ) if worker else nullcontext():
        _run_api(settings, listener)


def _refuse_to_be_open(settings: Settings) -> NoReturn:
    refuse(
        f"other machines can reach {settings.host}, so every request must carry a key: make the first one with\n"
        f"    espalier admin-key --data-dir {shlex.quote(str(settings.data_dir))}\n"
        "or set ESPALIER_API_KEY, or listen on this machine alone: --host 127.0.0.1"
    )


def work(
    data_dir: DataDir = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>. [env: ESPALIER_DEVICE; default: auto]")
    ] = None,
) -> None:
    """Run one worker in the foreground. Start as many as there is hardware for: each megabatch is trained once."""
    settings_of(data_dir=data_dir, device=device)
    os.execv(COMMAND[0], COMMAND)  # noqa: S606  # this process becomes the worker: signals reach it, torch stays out of here


# -- the API processes ------------------------------------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. From now on connections wait; none is refused while the API starts."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        refuse(f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port, or 0 for a free one")


def _announce(settings: Settings, listener: socket.socket, database: str, *, keys: bool, worker: bool) -> None:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rows = {
        "service": f"http://{host}:{port}" + (f" ({settings.workers} processes)" if settings.workers > 1 else ""),
        "access": _access(settings, keys),
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


def _access(settings: Settings, keys: bool) -> str:
    """Who is let in, in words."""
    ways = [*(["with a key"] if keys else []), *(["with the key in ESPALIER_API_KEY"] if settings.api_key else [])]
    return " or ".join(ways) or "open to everyone on this machine; `espalier admin-key` closes it"


def _run_api(settings: Settings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        "app.api.process:application",
        factory=True,
        http=Wire,
        host=settings.host,
        port=listener.getsockname()[1],
        workers=settings.workers,
        log_config=logging_config(settings.log_level, spellings(settings.api_key)),
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
        refuse("the API could not start: see the log above")


def _leave_on_signals() -> None:
    """SIGTERM and Ctrl-C end the service in order, with status 0. While uvicorn serves, it takes both over."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)  # leaving takes moments and must not be cut by a second Ctrl-C
    raise SystemExit(0)
