"""Deliveries: what is to be sent to which webhook, by whom, and what follows from the answer.

Knows: turns, the order of events, and when a delivery is tried again. Must never know: HTTP, or how anything is sent.

Laws:
    * Nothing is lost: an event is taken from the log and its delivery is written down in one transaction, and it stays
      until it was delivered, was refused for a day, or somebody says that it is skipped. An event may arrive twice,
      under the same id, when a worker ends between sending it and writing that down.
    * Events leave in the log's order. One that could not be delivered holds up those after it, unless its receiver
      refused that one event: then it is tried again by itself.
    * One worker sends to a webhook at a time. What it writes down counts only while the turn is its own.
    * A webhook that could not be told of an event for a day is disabled, and so is one that answers that it is gone.
      What it was not told of waits until it is enabled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain import Actor, Attempt, Delivery, DeliveryState, Webhook
from app.errors import UnknownWebhook
from app.service.events import cloud_event, data_of, event_id, source_of
from app.service.webhooks import disable
from app.store.database import Store, Transaction
from app.store.webhooks import Turn
from espalier.formats.webhook import MEDIA_TYPE, signature_headers

DAY = timedelta(days=1)
"""How long an event is tried."""

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 3600.0
JITTER = 0.2

GONE = 410
REFUSALS = frozenset({400, 413, 415, 422})
"""What a receiver says of one event, not of itself: those after it do not wait."""

_FAR_BEHIND = 1000
_ANSWER = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request went.

    Attributes:
        status: None: there was no answer.
        error: why there was none, in words.
        seconds: how long it took.
        pause: how many seconds the receiver wants to be left alone.
        text: the beginning of what it said.
    """

    status: int | None
    error: str | None
    seconds: float
    pause: float | None = None
    text: str = ""

    @property
    def arrived(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Errand:
    """Something to be sent, and by which turn."""

    webhook: Webhook
    token: int
    delivery: Delivery
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sequel:
    """What follows from an answer.

    Attributes:
        next_at: when it is tried again, where it is pending.
        disabled: why its webhook is disabled.
    """

    state: DeliveryState
    next_at: datetime | None = None
    holds: bool = False
    disabled: str | None = None


# -- when: pure functions ----------------------------------------------------------------------------------------------


def pause_after(attempts: int, roll: float) -> float:
    """Seconds until the next attempt: twice as long after each, up to an hour, give or take a fifth.

    Args:
        attempts: how many have failed, at least 1.
        roll: in [0, 1), drawn at random, so that those who failed together do not come back together.
    """
    longest: float = min(FIRST_PAUSE * 2 ** min(attempts - 1, 30), LONGEST_PAUSE)
    return longest * (1 - JITTER + 2 * JITTER * roll)


def next_attempt(attempts: int, began: datetime, now: datetime, *, pause: float | None, roll: float) -> datetime | None:
    """When a delivery is tried again; None: its day is over.

    Args:
        attempts: how many have failed.
        began: when its day began.
        now: when the last one failed.
        pause: how many seconds the receiver wants to be left alone; it is, but the day's last attempt is made.
        roll: as in ``pause_after``.
    """
    end = began + DAY
    if now >= end:
        return None
    wait = max(pause_after(attempts, roll), pause or 0.0)
    return min(now + timedelta(seconds=min(wait, DAY.total_seconds())), end)


def sequel(delivery: Delivery, answer: Answer, now: datetime, *, tried: int, roll: float) -> Sequel:
    """What follows from an answer to a delivery.

    Args:
        delivery: as it was sent.
        answer: what came of it.
        now: when that was.
        tried: how often it was tried since its day began.
        roll: as in ``pause_after``.
    """
    if answer.arrived:
        return Sequel(DeliveryState.DELIVERED)
    gone = "the receiver answered 410 Gone" if answer.status == GONE else None
    if delivery.once:
        return Sequel(DeliveryState.FAILED, disabled=gone)
    holds = delivery.holds and answer.status not in REFUSALS
    if gone:
        return Sequel(DeliveryState.PENDING, now, True, gone)
    at = next_attempt(tried, delivery.began_at, now, pause=answer.pause, roll=roll)
    if at is not None:
        return Sequel(DeliveryState.PENDING, at, holds)
    if holds:
        why = f"event {delivery.event} could not be delivered for a day: {answer.error or f'status {answer.status}'}"
        return Sequel(DeliveryState.PENDING, now, True, why)
    return Sequel(DeliveryState.FAILED)


# -- turns -------------------------------------------------------------------------------------------------------------


def waiting(store: Store) -> tuple[list[Turn], int]:
    """Every webhook's turn, and how far the log goes."""
    with store.reading() as tx:
        return tx.webhooks.turns(), tx.audit.head().size


def news(store: Store, after: int, through: int, webhooks: list[Webhook]) -> set[int]:
    """Ids of those webhooks that some entry between two numbers is for."""
    with store.reading() as tx:
        return {
            webhook.id
            for webhook in webhooks
            if tx.audit.next(after, through, webhook.kinds, webhook.models) is not None
        }


def begin(store: Store, turn: Turn, worker: str) -> Errand | None:
    """Take a turn that is free, or whose holder is silent; None: somebody was quicker, or there is nothing to send."""
    with store.transaction(Actor(f"worker:{worker}")) as tx:
        mine = _locked(tx, turn.webhook.id, turn.token)
        return None if mine is None else _next(tx, mine, worker)


def settle(
    store: Store, errand: Errand, answer: Answer, worker: str, *, roll: float, go_on: bool = True
) -> Errand | None:
    """Write down how an errand went; what the same turn is to send next, if there is anything.

    Args:
        store: of the deployment.
        errand: as it was given.
        answer: what came of it.
        worker: whose turn it is.
        roll: drawn at random in [0, 1).
        go_on: False: give the turn back.
    """
    with store.transaction(Actor(f"worker:{worker}")) as tx:
        turn = _locked(tx, errand.webhook.id, errand.token)
        if turn is None:
            return None  # somebody took the turn for a silent one's, or the webhook is gone
        _record(tx, turn.webhook, errand.delivery, answer, roll)
        if go_on:
            return _next(tx, turn, worker)
        tx.webhooks.pass_turn(turn, None)
        return None


def _locked(tx: Transaction, webhook: int, token: int) -> Turn | None:
    """A turn, if this is its token; the webhook is locked first, as by whoever changes it."""
    try:
        tx.webhooks.webhook(webhook, lock=True)
    except UnknownWebhook:
        return None
    return tx.webhooks.turn(webhook, token)


def _record(tx: Transaction, webhook: Webhook, sent: Delivery, answer: Answer, roll: float) -> None:
    delivery = tx.webhooks.delivery(webhook.id, sent.id)
    if delivery.state is not DeliveryState.PENDING:
        return  # skipped meanwhile
    error = None if answer.arrived else answer.error or f"the receiver answered {answer.status}"
    attempt = Attempt(tx.now, round(answer.seconds, 3), answer.status, error, answer.text[:_ANSWER] or None)
    tried = 1 + sum(1 for one in delivery.attempts if one.at >= delivery.began_at)
    follows = sequel(delivery, answer, tx.now, tried=tried, roll=roll)
    tx.webhooks.settle(delivery, attempt, follows.state, next_at=follows.next_at, holds=follows.holds)
    if follows.disabled is not None and webhook.enabled:
        disable(tx, webhook, follows.disabled)


def _next(tx: Transaction, turn: Turn, worker: str) -> Errand | None:
    """What a turn sends now; the turn is given back when there is nothing."""
    webhook = tx.webhooks.webhook(turn.webhook.id)
    delivery, taken = tx.webhooks.due(webhook), None
    if delivery is None and webhook.enabled and not tx.webhooks.held(webhook):
        delivery, taken = _take(tx, webhook)
    if delivery is not None:
        token = tx.webhooks.pass_turn(turn, worker, taken)
        return _errand(tx, webhook, token, delivery)
    if turn.holder is not None or taken is not None:
        tx.webhooks.pass_turn(turn, None, taken)
    return None


def _take(tx: Transaction, webhook: Webhook) -> tuple[Delivery | None, int | None]:
    """Take the next entry from the log that a webhook is told of."""
    head = tx.audit.head().size
    entry = tx.audit.next(webhook.sent_through, head, webhook.kinds, webhook.models)
    if entry is None:
        return None, head if head - webhook.sent_through > _FAR_BEHIND else None
    delivery = tx.webhooks.add(webhook, event_id(entry), seq=entry.seq, kind=entry.kind, model=entry.model)
    return delivery, entry.seq


def _errand(tx: Transaction, webhook: Webhook, token: int, delivery: Delivery) -> Errand:
    data = data_of(tx.audit.entry(delivery.seq)) if delivery.seq is not None else _test_data(webhook, delivery)
    body = cloud_event(delivery.event, delivery.kind, data, source=source_of(tx.audit.entry(1)))
    secrets = [one.text for one in webhook.secrets if one.expires_at is None or one.expires_at > tx.now]
    headers = signature_headers(delivery.event, int(tx.now.timestamp()), body, secrets)
    return Errand(webhook, token, delivery, body, {"Content-Type": f"{MEDIA_TYPE}; charset=utf-8", **headers})


def _test_data(webhook: Webhook, delivery: Delivery) -> dict[str, object]:
    time = delivery.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "seq": None,
        "kind": delivery.kind,
        "time": time,
        "model": None,
        "actor": "espalier",
        "reason": "a test: nothing happened",
        "parameters": {"webhook": webhook.id},
    }
