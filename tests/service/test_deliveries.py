"""When a delivery is tried again, and what follows from an answer: a day of it, without waiting."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Delivery, DeliveryState
from app.service.deliveries import (
    DAY,
    FIRST_PAUSE,
    JITTER,
    LONGEST_PAUSE,
    Answer,
    Sequel,
    next_attempt,
    pause_after,
    sequel,
)

BEGAN = datetime(2030, 1, 1, tzinfo=UTC)
WAITING = Delivery(
    1, 1, "7-abc", 7, "alias.moved", "gas", DeliveryState.PENDING, True, False, (), BEGAN, BEGAN, BEGAN, None
)


def test_pauses_grow_from_seconds_to_an_hour() -> None:
    pauses = [pause_after(attempts, 0.5) for attempts in range(1, 40)]
    assert pauses[:5] == [5.0, 10.0, 20.0, 40.0, 80.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_chance_moves_a_pause_by_a_fifth_at_most(attempts: int, roll: float) -> None:
    middle = pause_after(attempts, 0.5)
    assert (1 - JITTER) * middle - 1e-9 <= pause_after(attempts, roll) <= (1 + JITTER) * middle + 1e-9
    assert pause_after(attempts, roll) >= FIRST_PAUSE * (1 - JITTER)


@pytest.mark.parametrize("roll", [0.0, 0.5, 0.999])
def test_a_day_has_some_thirty_attempts_and_ends_with_one(roll: float) -> None:
    now, attempts = BEGAN, 0
    times = []
    while True:
        times.append(now)
        attempts += 1
        following = next_attempt(attempts, BEGAN, now, pause=None, roll=roll)
        if following is None:
            break
        assert following > now
        now = following
    assert times[-1] == BEGAN + DAY
    assert 25 <= len(times) <= 45


@pytest.mark.parametrize(
    ("pause", "roll", "seconds"),
    [(None, 0.5, 5.0), (3.0, 0.5, 5.0), (600.0, 0.5, 600.0), (10.0**9, 0.5, 86_400.0), (0.0, 0.0, 4.0)],
)
def test_a_receiver_that_wants_to_be_left_alone_is_but_for_the_last_attempt(
    pause: float | None, roll: float, seconds: float
) -> None:
    assert next_attempt(1, BEGAN, BEGAN, pause=pause, roll=roll) == BEGAN + timedelta(seconds=seconds)


def test_after_a_day_there_is_no_other() -> None:
    assert next_attempt(40, BEGAN, BEGAN + DAY, pause=None, roll=0.5) is None


SOON = BEGAN + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("status", "follows"),
    [
        (200, Sequel(DeliveryState.DELIVERED)),
        (204, Sequel(DeliveryState.DELIVERED)),
        (None, Sequel(DeliveryState.PENDING, SOON, True)),
        (302, Sequel(DeliveryState.PENDING, SOON, True)),
        (401, Sequel(DeliveryState.PENDING, SOON, True)),
        (404, Sequel(DeliveryState.PENDING, SOON, True)),
        (429, Sequel(DeliveryState.PENDING, SOON, True)),
        (500, Sequel(DeliveryState.PENDING, SOON, True)),
        (400, Sequel(DeliveryState.PENDING, SOON, False)),
        (413, Sequel(DeliveryState.PENDING, SOON, False)),
        (422, Sequel(DeliveryState.PENDING, SOON, False)),
        (410, Sequel(DeliveryState.PENDING, BEGAN, True, "the receiver answered 410 Gone")),
    ],
)
def test_what_follows_from_a_status(status: int | None, follows: Sequel) -> None:
    assert sequel(WAITING, Answer(status, None, 0.1), BEGAN, tried=1, roll=0.5) == follows


def test_what_was_asked_for_by_hand_is_tried_once() -> None:
    once = replace(WAITING, once=True, holds=False)
    assert sequel(once, Answer(500, None, 0.1), BEGAN, tried=1, roll=0.5) == Sequel(DeliveryState.FAILED)
    assert sequel(once, Answer(410, None, 0.1), BEGAN, tried=1, roll=0.5).disabled


def test_after_a_day_the_webhook_is_disabled_and_the_event_waits() -> None:
    follows = sequel(WAITING, Answer(None, "the connection failed", 0.1), BEGAN + DAY, tried=33, roll=0.5)
    assert follows.state is DeliveryState.PENDING
    assert follows.disabled is not None and "7-abc" in follows.disabled and "the connection failed" in follows.disabled
    aside = replace(WAITING, holds=False)
    assert sequel(aside, Answer(422, None, 0.1), BEGAN + DAY, tried=33, roll=0.5) == Sequel(DeliveryState.FAILED)
