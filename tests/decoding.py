"""Decoding in the test's own process: what is tested there is what becomes of uploads, not what they may do to a
decoder. Starting a process for each of them, and one to wait beside each application, took most of the time.

A module that is about the sandbox itself says ``SANDBOXED = True``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from app.intake import child, sandbox
from app.intake.arrays import Limits


class _Here:
    """Stands where a started child would wait."""

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def ask(self, line: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        job = json.loads(line)
        reading = child._reading(job["reading"])
        said = child.outcome(Path(job["upload"]), Path(job["work"]), Limits(**job["limits"]), reading, job["media"])
        return subprocess.CompletedProcess([], 0, child.BEGUN + json.dumps(said).encode(), b"")


@contextmanager
def decoded_here(module: ModuleType) -> Iterator[None]:
    """For the tests of a module, unless it is about the sandbox."""
    with pytest.MonkeyPatch.context() as patched:
        if not getattr(module, "SANDBOXED", False):
            patched.setattr(sandbox, "_SPARE", _Here())
        yield
