"""Work beside: in order, one at a time, its errors not lost, and done at once where no thread can be had."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.intake.aside import Aside


def test_tasks_are_done_in_order_beside() -> None:
    done: list[tuple[int, bool]] = []
    with Aside() as aside:
        for number in range(50):
            aside.do(lambda number=number: done.append((number, threading.current_thread() is threading.main_thread())))
        aside.wait()
        assert aside.idle
    assert done == [(number, False) for number in range(50)]


def test_the_caller_goes_on_meanwhile() -> None:
    gate = threading.Event()
    with Aside() as aside:
        aside.do(lambda: gate.wait(20) and None)
        assert not aside.idle
        gate.set()
        aside.wait()
        assert aside.idle


def test_an_error_is_raised_by_what_comes_next() -> None:
    with Aside() as aside:
        aside.do(lambda: Path("absent").unlink())
        with pytest.raises(FileNotFoundError):
            aside.wait()
        aside.wait()


def test_without_a_thread_the_work_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", none)
    done: list[int] = []
    with Aside() as aside:
        for number in range(3):
            aside.do(lambda number=number: done.append(number))
            assert done[-1] == number
        aside.wait()
    assert done == [0, 1, 2]
