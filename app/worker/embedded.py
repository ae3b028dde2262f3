"""Embedded: one worker process that lives and dies with the process that started it.

Knows: how the worker is started, watched and ended. Must never know: torch, or what a worker does.

Laws:
    * It is a process of its own: torch stays out of the starting process, and a worker that is killed for its memory
      takes nothing with it.
    * It holds the reading end of a pipe that only its parent can write to: when the parent is gone, a kill -9 included,
      it stops in order.
    * When it dies it is started again, after a wait that grows with each death in a row.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

log = logging.getLogger("espalier.serve")

COMMAND = (sys.executable, "-P", "-m", "app.worker")
"""Starts a worker. ``-P``: a folder named ``app`` in the working directory must not take this one's place."""

_NICE = 10  # polls and uploads go before training
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_HEALTHY_SECONDS = 60.0  # one that lived this long has not failed in a row
_STOP_SECONDS = 20.0


class EmbeddedWorker:
    """Keeps one worker process running, from ``with`` to its end.

    Args:
        environment: the whole environment of the worker: its settings stand there.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="embedded-worker", daemon=True)

    def __enter__(self) -> Self:
        self._start()
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        with self._lock:
            process = self._process
        if process is not None:
            _end(process)
        self._keeper.join(_STOP_SECONDS)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The worker that was started last."""
        return self._process

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._leaving.is_set():
                return None
            # A session of its own: Ctrl-C in a terminal reaches the parent alone, which then stops the worker in order.
            self._process = subprocess.Popen(
                [*COMMAND, "--parent-pipe", "0", "--nice", str(_NICE)],
                stdin=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            return self._process

    def _keep(self) -> None:
        wait = _FIRST_WAIT
        while (process := self._process) is not None:
            born = time.monotonic()
            status = process.wait()
            if process.stdin is not None:
                process.stdin.close()
            if self._leaving.is_set():
                return
            wait = _FIRST_WAIT if time.monotonic() - born > _HEALTHY_SECONDS else wait
            log.error(
                "the worker (process %d) ended with status %d; starting another in %.0f s", process.pid, status, wait
            )
            if self._leaving.wait(wait) or self._start() is None:
                return
            wait = min(2 * wait, _LONGEST_WAIT)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a worker to stop; it releases its cycle first. One that does not answer is killed, and its lease runs out."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        log.error("the worker (process %d) did not stop within %.0f s; killing it", process.pid, _STOP_SECONDS)
        process.kill()
        process.wait()
