"""Makes the nth operation fail, at the boundary between this process and what it stands on: the disk, the database.

Nothing of the house is replaced: what fails is ``os`` and ``io`` for files under one folder, and what a driver is asked
to execute on one engine.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from app.store.database import Store
from tests.s3 import S3

NEVER = 1 << 30


class Countdown:
    """Counts operations; at the nth one a fault happens, once."""

    def __init__(self, nth: int, fault: Callable[[str], None]) -> None:
        self._nth, self._fault = nth, fault
        self.done: list[str] = []

    def __call__(self, what: str) -> None:
        self.done.append(what)
        if len(self.done) == self._nth:
            self._fault(what)

    @property
    def happened(self) -> bool:
        return len(self.done) >= self._nth


# -- files -------------------------------------------------------------------------------------------------------------

_BY_PATH = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "open", "utime", "chmod")
_BY_HANDLE = ("fsync", "fdatasync", "ftruncate", "fchmod", "sendfile", "write")


def refusing(code: int) -> Callable[[str], None]:
    def fault(_what: str) -> None:
        raise OSError(code, os.strerror(code))

    return fault


@contextmanager
def disk(folder: Path, nth: int = NEVER, code: int = errno.EIO) -> Iterator[Countdown]:
    """The nth operation on a file under this folder fails; a write is torn: half of it is there."""
    count, under = Countdown(nth, refusing(code)), _Under(folder)
    with ExitStack() as stack:
        for name in (*_BY_PATH, *_BY_HANDLE):
            stack.enter_context(mock.patch.object(os, name, _counted(name, getattr(os, name), count, under)))
        opened = _opening(count, under)
        stack.enter_context(mock.patch.object(io, "open", opened))
        stack.enter_context(mock.patch.object(builtins, "open", opened))
        yield count


class _Under:
    """Whether a path or a handle is of a file under a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())

    def __call__(self, what: Any, dir_fd: int | None = None) -> str | None:
        try:
            name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
            if dir_fd is not None:
                name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        except (TypeError, OSError):
            return None
        return name if isinstance(name, str) and name.startswith(self._folder) else None


def _counted(name: str, real: Callable[..., Any], count: Countdown, under: _Under) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(first: Any, *rest: Any, **named: Any) -> Any:
        if under(first, named.get("dir_fd")):
            count(name)
        return real(first, *rest, **named)

    return call


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    count: Countdown

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self.count("write")
        except OSError:
            super().write(view[: len(view) // 2])
            raise
        return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        self.count("truncate")
        return super().truncate(size)


def _opening(count: Countdown, under: _Under) -> Callable[..., Any]:
    real = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if under(file) is None:
            return real(file, mode, buffering, *rest, **named)
        if not isinstance(file, int):
            count("open")
        if not set(mode) & set("wax+"):
            return real(file, mode, buffering, *rest, **named)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), named.get("closefd", True))
        raw.count = count
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=named.get("encoding"))

    return opened


# -- statements --------------------------------------------------------------------------------------------------------


@contextmanager
def database(store: Store, nth: int = NEVER, code: int = sqlite3.SQLITE_IOERR) -> Iterator[Countdown]:
    """The nth statement or commit fails: on SQLite with this code, on PostgreSQL because its connection is cut."""
    engine, current = store._engine, threading.local()

    def fault(what: str) -> None:
        if store.dialect == "postgresql":
            _cut(engine, current.connection)
        else:
            raise _refusal(what, code)

    count = Countdown(nth, fault)

    def statement(connection: sa.Connection, _cursor: Any, text: str, *_rest: Any) -> None:
        current.connection = connection
        count(text.split(maxsplit=1)[0])

    def commit(connection: sa.Connection) -> None:
        current.connection = connection
        count("COMMIT")

    sa.event.listen(engine, "before_cursor_execute", statement)
    sa.event.listen(engine, "commit", commit)
    try:
        yield count
    finally:
        sa.event.remove(engine, "before_cursor_execute", statement)
        sa.event.remove(engine, "commit", commit)


@contextmanager
def statements(store: Store, beginning: str, code: int) -> Iterator[None]:
    """Every statement that begins so fails with this code of SQLite."""

    def statement(_connection: sa.Connection, _cursor: Any, text: str, *_rest: Any) -> None:
        if text.startswith(beginning):
            raise _refusal(text, code)

    sa.event.listen(store._engine, "before_cursor_execute", statement)
    try:
        yield
    finally:
        sa.event.remove(store._engine, "before_cursor_execute", statement)


def _refusal(what: str, code: int) -> sa.exc.OperationalError:
    cause = sqlite3.OperationalError("as the test wants")
    cause.sqlite_errorcode = code
    return sa.exc.OperationalError(what, {}, cause)


def _cut(engine: sa.Engine, connection: sa.Connection) -> None:
    """End the server's side of a connection, and wait until it is gone."""
    driver: Any = connection.connection.dbapi_connection
    pid = driver.info.backend_pid
    other = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with other.connect() as killer:
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    other.dispose()


# -- requests ----------------------------------------------------------------------------------------------------------


@contextmanager
def bucket(s3: S3, nth: int = NEVER, status: int = 500) -> Iterator[Countdown]:
    """The nth request to a bucket is answered with an error."""
    refused: list[tuple[int, str]] = []
    code = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}[status]
    count = Countdown(nth, lambda _what: refused.append((status, code)))

    def answer(_number: int, method: str, _path: str) -> tuple[int, str] | None:
        count(method)
        return refused.pop() if refused else None

    with s3.failing(answer):
        yield count
