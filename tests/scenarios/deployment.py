"""Deployments made of real processes: each with its own folder and database, ended whatever becomes of the test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from app.service import history
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier import Client

T = TypeVar("T")


def until(look: Callable[[], T], seconds: float = 60.0, what: str = "what was waited for") -> T:
    """Look again and again until something true is seen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


def clusters(seed: int, n: int = 240, features: int = 8, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clusters around fixed centres, one per class: learnable in a few epochs."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, features)) * 3
    y = random.integers(0, classes, n)
    y[:classes] = np.arange(classes)
    return (centres[y] + random.normal(size=(n, features))).astype(np.float32), y.astype(np.int64)


@dataclass
class Process:
    """One process of a deployment, with its output in a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def url(self) -> str:
        def look() -> re.Match[str] | None:
            assert self.popen.poll() is None, self.text
            return re.search(r"service +(http://[^\s]+)", self.text)

        return until(look, what="the service's announcement")[1]

    def ready(self) -> Process:
        """A worker that looks for cycles."""
        until(lambda: "is ready on" in self.text or self.popen.poll() is not None, what="a worker's start")
        assert self.popen.poll() is None, self.text
        return self

    def send(self, number: signal.Signals) -> None:
        os.kill(self.popen.pid, number)

    def ended(self, seconds: float = 15.0) -> int:
        """Its exit status, within so many seconds."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.popen.pid} has not ended after {seconds} s:\n{self.text}") from None


@dataclass
class Deployment:
    """A data folder, a database, and the processes that were started on them."""

    folder: Path
    database_url: str = ""
    processes: list[Process] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data / 'espalier.db'}"

    def __enter__(self) -> Self:
        migrate(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def store(self, ahead: timedelta = timedelta()) -> Store:
        """Its store, opened in this process, with a clock that may be ahead."""
        return Store(self.url, Blobs(self.data / "blobs"), clock=lambda: datetime.now(UTC) + ahead)

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
        return own | {
            "ESPALIER_DATA_DIR": str(self.data),
            "ESPALIER_DATABASE_URL": self.database_url,
            "ESPALIER_THREADS": "1",
            "ESPALIER_TICK_SECONDS": "0.05",
            "ESPALIER_LEASE_SECONDS": "3",
            "ESPALIER_HEARTBEAT_SECONDS": "0.5",
            "ESPALIER_SNAPSHOT_SECONDS": "0.2",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *arguments: str, **settings: object) -> Process:
        log = self.folder / f"{len(self.processes)}-{arguments[0]}.log"
        extra = {f"ESPALIER_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "app", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment | extra,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> str:
        """A command that ends by itself, with status 0; its output."""
        process = self.start(*arguments)
        assert process.ended(60.0) == 0, process.text
        return process.text

    def serve(self, *arguments: str, **settings: object) -> Process:
        return self.start("serve", "--port", "0", *arguments, **settings)

    def work(self, **settings: object) -> Process:
        return self.start("work", **settings)

    def client(self, service: Process) -> Client:
        client = Client(service.url())
        self.clients.append(client)
        return client

    def is_whole(self) -> None:
        """What ``espalier doctor`` checks, in this process."""
        store = self.store()
        findings = history.examine(store)
        store.dispose()
        assert findings == []

    def end(self) -> None:
        for client in self.clients:
            client.close()
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.popen.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.popen.pid, signal.SIGKILL)
                process.popen.wait()
