"""Webhooks from a change to its receiver: order, retries, crashes, two workers, rotation, receivers that hang."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.domain import Delivery, DeliveryState, Webhook
from app.service import deliveries, webhooks
from app.service.deliveries import Answer
from app.store.blobs import Blobs
from app.store.database import Store
from app.worker.courier import Courier
from app.worker.post import post
from espalier.formats.webhook import verify_webhook
from tests.builders import ACTOR, Clock, make_model
from tests.receiver import Got, Receiver, hanging, receiving, status

AT_ONCE = 0.02


@dataclass
class Post:
    """A store with webhooks, and couriers of several workers."""

    store: Store
    settings: Settings
    clock: Clock
    couriers: list[Courier] = field(default_factory=list)

    def make(self, receiver: Receiver, **wanted: Any) -> tuple[int, str]:
        made = webhooks.create_webhook(self.store, self.settings, webhooks.Wanted(receiver.url, **wanted), actor=ACTOR)
        return made.webhook.id, made.secret

    def happen(self, *kinds: str, model: str | None = None, **parameters: Any) -> None:
        for kind in kinds:
            with self.store.transaction(ACTOR) as tx:
                tx.audit.append(kind, model=model, parameters=parameters)

    def courier(self, name: str = "one", **more: Any) -> Courier:
        made = Courier(self.store, self.settings, name, **more)
        self.couriers.append(made)
        return made

    def webhook(self, id: int) -> Webhook:
        return webhooks.get_webhook(self.store, id)

    def deliveries(self, id: int) -> list[Delivery]:
        """The oldest first."""
        return list(webhooks.list_deliveries(self.store, id, before=None, limit=100).items)[::-1]

    def states(self, id: int) -> list[str]:
        return [delivery.state.value for delivery in self.deliveries(id)]


@pytest.fixture
def office(store: Store, tmp_path: Path) -> Iterator[Post]:
    clock = Clock()
    store.clock = clock
    made = Post(store, Settings(data_dir=tmp_path / "data", webhook_private_addresses="127.0.0.0/8"), clock)
    yield made
    for courier in made.couriers:
        courier.close()
        courier._pool.shutdown(wait=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def until(courier: Courier, look: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "what was waited for did not happen"
        courier.look()
        time.sleep(AT_ONCE)


def settled(courier: Courier, looks: int = 6) -> None:
    """Nothing is being sent, and nothing more begins."""
    for _ in range(looks):
        courier.look()
        time.sleep(AT_ONCE)
        end = time.monotonic() + 20
        while courier._busy:
            assert time.monotonic() < end
            time.sleep(AT_ONCE)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_what_happens_is_told_signed_and_in_order(office: Post, receiver: Receiver) -> None:
    office.happen("before.all")
    id, secret = office.make(receiver)
    office.happen("version.published", model="gas", version=7, layers=[1, 2], name="x" * 300)
    office.happen(*["alias.moved"] * 10)
    courier = office.courier()
    until(courier, lambda: len(receiver.got) == 12)
    settled(courier)
    events = [_read(got, secret) for got in receiver.got]
    assert [event["data"]["seq"] for event in events] == list(range(2, 14))
    assert [event["type"] for event in events[:2]] == ["espalier.webhook.created", "espalier.version.published"]
    told = events[1]
    assert told["specversion"] == "1.0" and told["subject"] == "gas" and told["id"].startswith("3-")
    assert told["data"]["parameters"] == {"version": 7}
    assert {event["source"] for event in events} == {told["source"]} and told["source"].startswith("urn:espalier:")
    assert receiver.got[0].headers["content-type"].startswith("application/cloudevents+json")
    assert len(set(receiver.ids)) == 12 and receiver.most_at_once == 1
    assert set(office.states(id)) == {"delivered"}
    (attempt,) = office.deliveries(id)[0].attempts
    assert (attempt.status, attempt.error) == (204, None)


def _read(got: Got, *secrets: str) -> dict[str, Any]:
    """A delivery's body, its signature checked at the time that it says."""
    verify_webhook(got.headers, got.body, list(secrets), now=int(got.headers["webhook-timestamp"]))
    document: dict[str, Any] = json.loads(got.body)
    return document


def _state(office: Post, delivery: Delivery) -> DeliveryState:
    return webhooks.get_delivery(office.store, delivery.webhook, delivery.id).state


def test_only_what_is_wanted_is_told(office: Post, receiver: Receiver) -> None:
    for name in ("gas", "other"):
        make_model(office.store, name)
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved", "version.published"}), models=frozenset({"gas"}))
    office.happen("alias.moved", "cycle.failed", "version.published", model="gas")
    office.happen("alias.moved", model="other")
    office.happen("alias.moved")
    courier = office.courier()
    until(courier, lambda: len(receiver.got) == 2)
    settled(courier)
    assert [delivery.kind for delivery in office.deliveries(id)] == ["alias.moved", "version.published"]
    assert len(receiver.got) == 2


def test_nothing_is_written_while_nothing_happens(office: Post, receiver: Receiver) -> None:
    office.make(receiver)
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    before = office.store.clock
    written: list[int] = []
    transaction = office.store.transaction

    @contextmanager
    def counted(actor: Any) -> Iterator[Any]:
        written.append(1)
        with transaction(actor) as tx:
            yield tx

    office.store.transaction = counted  # type: ignore[method-assign]  # to see it called, not to replace it
    settled(courier)
    office.store.transaction = transaction  # type: ignore[method-assign]
    assert written == [] and before is office.store.clock


# -- receivers that fail -----------------------------------------------------------------------------------------------


def test_a_receiver_that_fails_and_comes_back_misses_nothing(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(500), status(503)]
    office.happen(*["alias.moved"] * 3)
    courier = office.courier()
    for tries in (1, 2):
        until(courier, lambda tries=tries: len(receiver.got) == tries)
        settled(courier)
        assert len(receiver.got) == tries, "the others wait for the first"
        office.clock.advance(60)
    until(courier, lambda: len(receiver.got) == 5)
    first, second, third = dict.fromkeys(receiver.ids)
    assert receiver.ids == [first, first, first, second, third]
    settled(courier)
    assert office.states(id) == ["delivered"] * 3
    assert [attempt.status for attempt in office.deliveries(id)[0].attempts] == [500, 503, 204]
    assert "answered 500" in str(office.deliveries(id)[0].attempts[0].error)


def test_a_retry_waits_as_long_as_the_receiver_says(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(429, Retry_After="600")]
    office.happen("alias.moved")
    courier = office.courier()
    until(courier, lambda: office.deliveries(id) and office.deliveries(id)[0].attempts)
    assert office.deliveries(id)[0].next_at == office.clock.now + timedelta(seconds=600)
    office.clock.advance(599)
    settled(courier)
    assert len(receiver.got) == 1
    office.clock.advance(1)
    until(courier, lambda: len(receiver.got) == 2)


def test_an_event_that_is_refused_for_itself_does_not_hold_up_the_others(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(422)]
    office.happen(*["alias.moved"] * 3)
    courier = office.courier()
    until(courier, lambda: len(receiver.got) == 3)
    settled(courier)
    assert office.states(id) == ["pending", "delivered", "delivered"]
    office.clock.advance(60)
    until(courier, lambda: len(receiver.got) == 4)
    assert receiver.ids[3] == receiver.ids[0]
    settled(courier)
    assert office.states(id) == ["delivered"] * 3


def test_one_that_is_refused_for_a_day_is_given_up_and_the_webhook_stays(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.otherwise = status(400)
    office.happen("alias.moved")
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    office.clock.advance(86_400)
    until(courier, lambda: office.states(id) == ["failed"])
    assert office.webhook(id).enabled


def test_a_receiver_that_is_gone_for_a_day_is_disabled_and_told_all_when_it_is_back(
    office: Post, receiver: Receiver
) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.otherwise = status(500)
    office.happen("alias.moved", "alias.moved")
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    office.clock.advance(86_399)
    until(courier, lambda: len(receiver.got) == 2)
    settled(courier)
    assert office.webhook(id).enabled, "the day's last attempt is still to come"
    office.clock.advance(1)
    until(courier, lambda: not office.webhook(id).enabled)
    assert "could not be delivered for a day" in str(office.webhook(id).disabled_reason)
    with office.store.reading() as tx:
        (entry,) = tx.audit.entries(None, None, 100, "webhook.disabled").items
    assert entry.actor == "worker:one" and entry.document["parameters"]["webhook"] == id
    office.happen("alias.moved")
    office.clock.advance(7 * 86_400)
    settled(courier)
    assert len(receiver.got) == 3
    receiver.otherwise = status(204)
    webhooks.enable_webhook(office.store, id, reason="back", actor=ACTOR)
    until(courier, lambda: len(receiver.got) == 6)
    settled(courier)
    assert office.states(id) == ["delivered"] * 3
    assert receiver.ids[3] == receiver.ids[0]


def test_whoever_skips_what_was_missed_is_told_what_comes(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(500)]
    office.happen("alias.moved", "alias.moved")
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    webhooks.disable_webhook(office.store, id, reason="noise", actor=ACTOR)
    office.happen("alias.moved")
    webhooks.enable_webhook(office.store, id, reason="again", skip_missed=True, actor=ACTOR)
    office.happen("alias.moved", now=True)
    until(courier, lambda: len(receiver.got) == 2)
    settled(courier)
    assert b'"now":true' in receiver.got[1].body and len(receiver.got) == 2
    assert office.states(id) == ["skipped", "delivered"]


def test_410_disables_at_once(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.otherwise = status(410)
    office.happen("alias.moved", "alias.moved")
    courier = office.courier()
    until(courier, lambda: not office.webhook(id).enabled)
    settled(courier)
    assert len(receiver.got) == 1
    assert office.webhook(id).disabled_reason == "the receiver answered 410 Gone"


def test_a_clock_that_is_set_back_holds_nothing_up_for_long(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(500)]
    office.happen("alias.moved")
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    office.clock.advance(-30 * 86_400)
    until(courier, lambda: len(receiver.got) == 2)
    settled(courier)
    assert office.states(id) == ["delivered"]


def test_a_hung_receiver_holds_up_no_other(office: Post, receiver: Receiver) -> None:
    with receiving() as hung:
        hung.otherwise = hanging(30)
        for _ in range(3):
            office.make(hung)
        office.make(receiver, kinds=frozenset({"alias.moved"}))
        allowed = office.settings.webhook_networks
        courier = office.courier(send=lambda u, b, h: post(u, b, h, allowed=allowed, seconds=3.0))
        until(courier, lambda: len(hung.got) == 3)
        began = time.monotonic()
        office.happen(*["alias.moved"] * 5)
        until(courier, lambda: len(receiver.got) == 5)
        assert time.monotonic() - began < 2.5
        assert len(hung.got) == 3


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_test_is_sent_once_even_to_one_that_is_disabled(office: Post, receiver: Receiver) -> None:
    id, secret = office.make(receiver, kinds=frozenset({"alias.moved"}))
    webhooks.disable_webhook(office.store, id, reason="not yet", actor=ACTOR)
    receiver.script = [status(500)]
    courier = office.courier()
    for state in ("failed", "delivered"):
        asked = webhooks.send_test(office.store, id, actor=ACTOR)
        until(courier, lambda asked=asked: _state(office, asked) is not DeliveryState.PENDING)
        assert _state(office, asked).value == state
    assert len(receiver.got) == 2
    told = _read(receiver.got[1], secret)
    assert told["type"] == "espalier.webhook.test" and told["data"]["seq"] is None
    assert not office.webhook(id).enabled


def test_an_event_is_sent_once_more_under_its_id(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    office.happen("alias.moved")
    courier = office.courier()
    until(courier, lambda: office.states(id) == ["delivered"])
    (delivery,) = office.deliveries(id)
    again = webhooks.redeliver(office.store, id, delivery.id, actor=ACTOR)
    assert again.state is DeliveryState.PENDING
    until(courier, lambda: office.states(id) == ["delivered"])
    assert receiver.ids == [delivery.event] * 2
    assert receiver.got[0].body == receiver.got[1].body
    assert len(office.deliveries(id)[0].attempts) == 2


def test_one_that_waits_for_its_next_attempt_can_be_hurried(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.script = [status(503, Retry_After="3600")]
    office.happen("alias.moved", "alias.moved")
    courier = office.courier()
    until(courier, lambda: office.deliveries(id) and office.deliveries(id)[0].attempts)
    webhooks.redeliver(office.store, id, office.deliveries(id)[0].id, actor=ACTOR)
    until(courier, lambda: office.states(id) == ["delivered"] * 2)


def test_while_a_secret_is_rotated_both_sign(office: Post, receiver: Receiver) -> None:
    id, old = office.make(receiver, kinds=frozenset({"alias.moved"}))
    courier = office.courier()
    new = webhooks.rotate_secret(office.store, id, overlap=timedelta(hours=1), actor=ACTOR).secret
    office.happen("alias.moved")
    until(courier, lambda: len(receiver.got) == 1)
    _read(receiver.got[0], old)
    _read(receiver.got[0], new)
    settled(courier)
    office.clock.advance(3600)
    office.happen("alias.moved")
    until(courier, lambda: len(receiver.got) == 2)
    _read(receiver.got[1], new)
    assert len(receiver.got[1].headers["webhook-signature"].split()) == 1
    assert len(receiver.got[0].headers["webhook-signature"].split()) == 2


def test_what_is_changed_holds_for_what_was_not_sent_yet(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved", "cycle.failed"}))
    receiver.script = [status(500)]
    office.happen("alias.moved", "version.published", "cycle.failed", "version.published")
    courier = office.courier()
    until(courier, lambda: receiver.got)
    settled(courier)
    office.clock.advance(1)
    webhooks.change_webhook(office.store, office.settings, id, kinds={"cycle.failed", "version.published"}, actor=ACTOR)
    until(courier, lambda: len(receiver.got) >= 3)
    settled(courier)
    assert [delivery.kind for delivery in office.deliveries(id)] == ["alias.moved", "cycle.failed", "version.published"]
    assert office.states(id) == ["skipped", "delivered", "delivered"]


def test_a_webhook_that_is_deleted_while_it_is_told_leaves_nothing(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    office.happen("alias.moved")
    going = threading.Event()

    def slow(handler: Any, got: Any) -> None:
        going.wait(10)
        status(204)(handler, got)

    receiver.script = [slow]
    courier = office.courier()
    until(courier, lambda: receiver.got)
    webhooks.delete_webhook(office.store, id, actor=ACTOR)
    going.set()
    settled(courier)
    assert len(receiver.got) == 1
    with office.store.reading() as tx:
        assert tx.webhooks.turns() == []


# -- workers that end, and several of them -----------------------------------------------------------------------------


class _Killed(BaseException):
    """The process is gone: nothing after it is done."""


def test_a_worker_that_ends_after_sending_and_before_writing_it_down_sends_again(
    office: Post, receiver: Receiver
) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    office.happen("alias.moved", "alias.moved")

    def killed(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        post(url, body, headers, allowed=office.settings.webhook_networks)
        raise _Killed

    first = office.courier("first", send=killed)
    first.look()
    until(first, lambda: receiver.got and not first._busy)
    (pending,) = office.deliveries(id)
    assert (pending.state, pending.attempts) == (DeliveryState.PENDING, ())
    second = office.courier("second", silent=0.3)
    until(second, lambda: len(receiver.got) == 3)
    settled(second)
    assert receiver.ids[0] == receiver.ids[1] != receiver.ids[2]
    assert office.states(id) == ["delivered"] * 2


def test_a_turn_is_not_taken_from_whoever_goes_on_with_it(office: Post, receiver: Receiver) -> None:
    """Each request takes half as long as silence may last; the other worker looks all the time."""
    office.make(receiver, kinds=frozenset({"alias.moved"}))
    receiver.otherwise = lambda handler, got: (time.sleep(0.3), status(204)(handler, got))[1]  # type: ignore[func-returns-value]
    office.happen(*["alias.moved"] * 6)
    first, second = office.courier("first", silent=1.5), office.courier("second", silent=1.5)
    end = time.monotonic() + 20
    while len(receiver.got) < 6:
        assert time.monotonic() < end
        first.look()
        second.look()
        time.sleep(AT_ONCE)
    settled(first)
    settled(second)
    assert receiver.most_at_once == 1
    assert len(receiver.ids) == len(set(receiver.ids)) == 6


def test_what_a_worker_says_that_lost_its_turn_does_not_count(office: Post, receiver: Receiver) -> None:
    id, _ = office.make(receiver, kinds=frozenset({"alias.moved"}))
    office.happen("alias.moved")
    (turn,), _ = deliveries.waiting(office.store)
    stale = deliveries.begin(office.store, turn, "stale")
    assert stale is not None
    assert deliveries.begin(office.store, turn, "other") is None, "the token is another one by now"
    (taken,), _ = deliveries.waiting(office.store)
    fresh = deliveries.begin(office.store, taken, "fresh")
    assert fresh is not None and fresh.delivery.event == stale.delivery.event
    lost = deliveries.settle(office.store, stale, Answer(500, None, 0.1), "stale", roll=0.5)
    assert lost is None and office.deliveries(id)[0].attempts == ()
    assert deliveries.settle(office.store, fresh, Answer(204, None, 0.1), "fresh", roll=0.5) is None
    assert office.states(id) == ["delivered"]


@pytest.mark.slow
def test_two_workers_deliver_each_event_once_and_in_order(office: Post, database_url: str, tmp_path: Path) -> None:
    """Three receivers, two workers with stores of their own, while things go on happening."""
    other = Store(database_url, Blobs(tmp_path / "data"), clock=office.clock)
    with receiving() as a, receiving() as b, receiving() as c:
        for receiver in (a, b, c):
            office.make(receiver, kinds=frozenset({"alias.moved"}))
        couriers = [office.courier("first"), Courier(other, office.settings, "second")]
        office.couriers.append(couriers[1])
        leaving = threading.Event()

        def work(courier: Courier) -> None:
            while not leaving.wait(AT_ONCE):
                courier.look()

        threads = [threading.Thread(target=work, args=(courier,)) for courier in couriers]
        for thread in threads:
            thread.start()
        for _ in range(60):
            office.happen("alias.moved")
        end = time.monotonic() + 60
        while any(len(receiver.got) < 60 for receiver in (a, b, c)):
            assert time.monotonic() < end, [len(receiver.got) for receiver in (a, b, c)]
            time.sleep(0.05)
        time.sleep(0.3)
        leaving.set()
        for thread in threads:
            thread.join()
        for receiver in (a, b, c):
            seqs = [int(id.partition("-")[0]) for id in receiver.ids]
            assert seqs == sorted(set(seqs)) and len(seqs) == 60
            assert receiver.most_at_once == 1
    for courier in couriers:
        courier.close()
        courier._pool.shutdown(wait=True)
    other.dispose()
