"""The parent's pipe: how a process notices that the one which started it is gone, however it went.

Knows: that the kernel closes a dead process's end of a pipe, after a kill -9 too. Must never know: who the parent is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def when_closed(descriptor: int, then: Callable[[], object]) -> None:
    """Call ``then`` once, from a thread of its own, when the pipe is closed on its other side."""
    threading.Thread(target=_watch, args=(descriptor, then), name="parent-pipe", daemon=True).start()


def _watch(descriptor: int, then: Callable[[], object]) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass  # not readable (any more): the same as closed
    then()
