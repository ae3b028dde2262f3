"""Work that goes on beside the caller's own: one task at a time, in one thread.

Knows: threads. Must never know: what the work is. Hashing and syncing leave Python's lock to others, so they cost no
time of their own where there is a second processor, or a disk to wait for.

Law: where no thread can be had, the work is done at once: only later than it might be.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self


class Aside:
    """A thread that does one thing at a time."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(1)
        self._task: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    @property
    def idle(self) -> bool:
        """Whether nothing is going on."""
        return self._task is None or self._task.done()

    def do(self, task: Callable[[], None]) -> None:
        """Do it beside, once the task before it is done. Its error is raised by the next ``do`` or ``wait``."""
        self.wait()
        if self._threads is None:
            task()
            return
        try:
            self._task = self._threads.submit(task)
        except RuntimeError:  # no thread can be started: memory is limited
            self._threads = None
            task()

    def wait(self) -> None:
        """Until the last task is done; raises what it raised."""
        task, self._task = self._task, None
        if task is not None:
            task.result()
