"""A worker that stops itself, as SIGSTOP from outside would, at a place of its first cycle: its only argument.


Knows: phases and crash points by name. It stops between two transactions: one that is frozen inside a transaction holds
the database's locks, which is another fault.
"""

from __future__ import annotations

import os
import signal
import sys

from app import crash
from app.domain import Progress
from app.service.lease import Running
from app.worker import __main__ as worker
from app.worker import runner

PLACE = sys.argv[1]


class Freezing(Running):
    """Freezes at a phase, or at a crash point."""

    frozen = False

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        crash.point = self.point

    def at(self, progress: Progress) -> None:
        self.freeze(progress.phase.value)
        super().at(progress)

    def point(self, name: str) -> None:
        if name.startswith("cycle."):
            self.freeze(name)

    def freeze(self, place: str) -> None:
        if place == PLACE and not self.frozen:
            self.frozen = True
            with self._lock:  # the other thread is not in the middle of a renewal
                os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    runner.Running = Freezing  # type: ignore[misc]  # this process exists for that
    status = worker.main([])
    os._exit(status)
