"""A service in processes of its own, in a temporary folder, for as long as a measurement takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Service:
    """Where it listens, the id of the process that was started, and its data folder."""

    url: str
    pid: int
    folder: Path


@contextmanager
def service(*options: str, **settings: str) -> Iterator[Service]:
    """Start ``espalier serve`` with options and settings, wait until it is ready, and stop it in the end."""
    port = free_port()
    program = Path(sys.executable).with_name("espalier")
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
        environment = {**kept, "ESPALIER_DATA_DIR": folder, **settings, "ESPALIER_PORT": str(port)}
        environment.setdefault("ESPALIER_LOG_LEVEL", "error")
        process = subprocess.Popen([program, "serve", *options], env=environment, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process)
            yield Service(url, process.pid, Path(environment["ESPALIER_DATA_DIR"]))
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"espalier serve ended with status {process.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError("espalier serve was not ready within 60 s")
