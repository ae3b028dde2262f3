"""Steps: how a process notices that its machine's clock was set.

Knows: the wall clock and the steady one, and that they drift apart by what somebody set the first by. Must never know:
who goes by which.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.5
_SMALLEST_SECONDS = 1.0
"""A clock that is slewed, as time daemons do, never moves this far between two looks."""

Clock = Callable[[], float]


@contextmanager
def watched(
    told: Callable[[float], object], *, wall: Clock = time.time, steady: Clock = time.monotonic
) -> Iterator[None]:
    """Call ``told`` at every look, from a thread of its own, with the seconds that the clock was set by since the last
    one: 0 as a rule.

    Args:
        told: must not raise.
        wall: seconds of the clock that people set.
        steady: seconds that only grow.
    """
    leaving = threading.Event()

    def look() -> None:
        apart = wall() - steady()
        while not leaving.wait(_LOOK_SECONDS):
            before, apart = apart, wall() - steady()
            told(apart - before if abs(apart - before) >= _SMALLEST_SECONDS else 0.0)

    thread = threading.Thread(target=look, name="clock-steps", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()
