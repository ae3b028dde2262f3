from __future__ import annotations

import os
import threading

from app.worker import parent


def test_called_once_the_other_end_is_closed() -> None:
    reading, writing = os.pipe()
    gone = threading.Event()
    parent.when_closed(reading, gone.set)
    os.write(writing, b"ignored")
    assert not gone.wait(0.05)
    os.close(writing)
    assert gone.wait(10)
    os.close(reading)


def test_a_descriptor_that_cannot_be_read_counts_as_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone = threading.Event()
    parent.when_closed(reading, gone.set)
    assert gone.wait(10)
    os.close(writing)
