"""Leaving: telling answers that wait for something that the process was asked to stop.

Knows: that a server waits for the answers that are under way before it lets the application know. Must never know: what
waits.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKED = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def on_leaving(*told: Callable[[], object]) -> Iterator[None]:
    """Call these as soon as a signal asks the process to stop, before the server's own handler; and in the end.

    Args:
        told: may be called twice, and between any two instructions of the main thread.
    """
    before = {number: signal.getsignal(number) for number in _ASKED} if _in_main_thread() else {}

    def leave(number: int, frame: FrameType | None) -> None:
        _tell(told)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    # Where no handler stands, the signal ends the process at once, and it must go on doing so.
    taken = {number: signal.signal(number, leave) for number, handler in before.items() if callable(handler)}
    try:
        yield
    finally:
        for number, handler in taken.items():
            if signal.getsignal(number) is leave:
                signal.signal(number, handler)
        _tell(told)


def _tell(told: Iterable[Callable[[], object]]) -> None:
    for one in told:
        one()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
