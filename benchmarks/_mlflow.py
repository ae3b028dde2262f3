"""The peer: an MLflow tracking and registry server of its own, for as long as a measurement takes.

It lives in a virtual environment apart (``.bench/mlflow``, made by pip on first use), since its dependencies are not
ours; ``ESPALIER_MLFLOW_PYTHON`` names an interpreter that has it already. Rows go to SQLite, artifacts through the
server's own proxy to a local folder: what ``mlflow server`` does by default. Where it cannot be installed, as offline,
there is no peer, and a benchmark says so in its row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from benchmarks._service import free_port

REQUIREMENT = "mlflow==3.17.*"
NO_PEER = "no peer"
"""What a benchmark prints where there is none."""

_HOME = Path(__file__).resolve().parent.parent / ".bench" / "mlflow"
_INSTALL_SECONDS = 600
_START_SECONDS = 120


@dataclass(frozen=True)
class Mlflow:
    """Where it listens, the id of the process that was started, and an interpreter that has its client."""

    url: str
    pid: int
    python: Path

    def script(self, source: str, *arguments: str) -> str:
        """Run Python source by that interpreter, with its client pointed here; what it printed.

        Raises:
            subprocess.CalledProcessError: it failed; what it said is on stderr.
        """
        environment = {**_environment(), "MLFLOW_TRACKING_URI": self.url}
        command = [str(self.python), "-c", source, *arguments]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def server(*, workers: int = 1) -> Iterator[Mlflow | None]:
    """Start ``mlflow server``, wait until it answers, and stop it in the end; None where it cannot be had."""
    python = interpreter()
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mlflow-benchmark-") as folder:
        port = free_port()
        command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", f"{folder}/artifacts"]
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                command, env=_environment(), cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            if _answers(url, process):
                yield Mlflow(url, process.pid, python)
            else:
                print(f"mlflow server did not start:\n{Path(folder, 'log').read_text()[-2000:]}", file=sys.stderr)
                yield None
        finally:
            _stop(process)


@cache
def interpreter() -> Path | None:
    """An interpreter that has MLflow: the one that is named, or one that is made now; None where that fails."""
    if named := os.environ.get("ESPALIER_MLFLOW_PYTHON"):
        return _with_mlflow(Path(named))
    python = _HOME / "bin" / "python"
    if _with_mlflow(python) is None:
        print(f"installing {REQUIREMENT} in {_HOME} (once) ...", file=sys.stderr, flush=True)
        try:
            venv.create(_HOME, with_pip=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]
            subprocess.run(pip, check=True, timeout=_INSTALL_SECONDS, stdout=sys.stderr)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"mlflow cannot be installed ({error})", file=sys.stderr)
    return _with_mlflow(python)


def _with_mlflow(python: Path) -> Path | None:
    check = [python, "-c", "import importlib.metadata as m; m.version('mlflow')"]
    try:
        found = subprocess.run(check, capture_output=True).returncode == 0
    except OSError:
        found = False
    return python if found else None


def _environment() -> dict[str, str]:
    """Ours, without our settings, and without MLflow's reports to its makers, which would disturb a measurement."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ESPALIER_", "MLFLOW_"))}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server and the processes that it started: they form a session of their own."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
            process.wait(timeout=20)
        except ProcessLookupError:
            process.wait()
        except subprocess.TimeoutExpired:
            continue
