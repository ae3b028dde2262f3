"""Process: a service of the demo's own, started as anyone would start it.

Knows: the ``serve`` command and what it prints. Must never know: what runs inside.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_COMMAND = (sys.executable, "-P", "-m", "app")
_KEPT = ("ESPALIER_DEVICE", "ESPALIER_LOG_LEVEL")  # all other settings are the demo's own
_STOP_SECONDS = 40.0


class ServiceFailed(Exception):
    """The service did not start, or did not stop in order; the message holds the end of its log."""


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """A running service with its data in ``folder``; gives its address. Its log is ``<folder>/service.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [*_COMMAND, "serve", "--port", "0", "--data-dir", str(folder), "--parent-pipe", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the service in order
        )
    try:
        yield _address(process, folder)
    except BaseException:
        _stop(process)
        raise
    status = _stop(process)
    if status:
        raise ServiceFailed(f"the service ended with status {status} instead of 0:\n{_end_of_log(folder)}")


def examine(folder: Path) -> str:
    """What ``espalier doctor`` says of a stopped service's folder.

    Raises:
        ServiceFailed: it found something.
    """
    done = subprocess.run(
        [*_COMMAND, "doctor", "--data-dir", str(folder)],
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    if done.returncode:
        raise ServiceFailed(f"espalier doctor: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_") or name in _KEPT}
    # One thread: a network this small gains nothing from a second, and the figures repeat on any number of cores.
    return own | {"ESPALIER_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _address(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"^\s*service\s+(http://\S+)", line):
            return found[1]
    raise ServiceFailed(f"the service did not start:\n{_end_of_log(folder)}")


def _stop(process: subprocess.Popen[str]) -> int:
    process.terminate()
    try:
        process.communicate(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


def _end_of_log(folder: Path) -> str:
    lines = (folder / "service.log").read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-20:]) or "  (its log is empty)"
