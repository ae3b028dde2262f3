"""``tx.webhooks``: addresses that are told of audit entries, how far each of them is, and what it was told.

Knows: a webhook's row, its turn and its deliveries. Must never know: HTTP, when a delivery is tried again, or what an
entry means.

Laws:
    * The log is the outbox. A webhook's turn holds the number of the last entry that was taken from it, and taking one
      and making its delivery is one transaction: no entry is passed over, and none is taken twice.
    * One worker sends to a webhook at a time: whoever holds its turn. Each change of the turn has a new token, and is
      made by whoever knows the one before.
    * An id is never given twice: the log goes by them, and says how many there were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.domain import Attempt, Delivery, DeliveryState, Page, Webhook, WebhookSecret
from app.errors import StoreBusy, UnknownDelivery, UnknownWebhook
from app.store.tables import LARGEST, PENDING, deliveries, webhook_turns, webhooks

_KEPT_ATTEMPTS = 60
_LARGEST_ID = 2**53 - 1
_FAR = timedelta(days=2)
"""Nothing is put off for so long: what seems to be was written by another clock, and is due."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A webhook, and who sends to it.

    Attributes:
        holder: the worker that sends to it now; None: nobody.
        token: grows with every change of the turn.
        due: a delivery of it is due.
    """

    webhook: Webhook
    holder: str | None
    token: int
    due: bool = False


class Webhooks:
    """Webhooks and deliveries, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    # -- webhooks ------------------------------------------------------------------------------------------------------

    def create(
        self,
        id: int,
        url: str,
        *,
        description: str,
        kinds: Collection[str] | None,
        models: Collection[str] | None,
        secret: WebhookSecret,
        created_by: str,
        sent_through: int,
    ) -> Webhook:
        """Write a new webhook down, which is told of what comes after an entry.

        Raises:
            StoreBusy: the id was just given to another one.
        """
        row = sa.insert(webhooks).values(
            id=id,
            url=url,
            description=description,
            kinds=_listed(kinds),
            models=_listed(models),
            enabled=True,
            secrets=_secrets((secret,)),
            created_by=created_by,
            created_at=self._now,
            changed_at=self._now,
        )
        try:
            self._connection.execute(row)
        except sa.exc.IntegrityError as error:
            raise StoreBusy("another webhook was made at the same moment: try again") from error
        turn = {"webhook_id": id, "sent_through": sent_through, "token": 0}
        self._connection.execute(sa.insert(webhook_turns).values(turn))
        return self.webhook(id)

    def webhook(self, id: int, *, lock: bool = False) -> Webhook:
        """A webhook by its id.

        Args:
            id: which.
            lock: nobody else changes it until this transaction ends.

        Raises:
            UnknownWebhook: with the remedy.
        """
        here = webhooks.c.id == min(id, LARGEST)
        if lock:
            self._connection.execute(sa.select(webhooks.c.id).where(here).with_for_update())
        row = self._connection.execute(_WEBHOOKS.where(here)).one_or_none()
        if row is None:
            raise UnknownWebhook(f"there is no webhook {id}: list the webhooks to see their ids")
        return _webhook(row)

    def webhooks(self, after: int | None, limit: int) -> Page[Webhook]:
        """Webhooks in the order in which they were made."""
        wanted = _WEBHOOKS.where(webhooks.c.id > (after or 0)).order_by(webhooks.c.id).limit(limit + 1)
        rows = self._connection.execute(wanted).all()
        items = tuple(_webhook(row) for row in rows[:limit])
        return Page(items, str(items[-1].id) if len(rows) > limit else None)

    def count(self) -> int:
        """How many there are."""
        return self._connection.execute(sa.select(sa.func.count()).select_from(webhooks)).scalar_one()

    def change(
        self,
        webhook: Webhook,
        *,
        url: str,
        description: str,
        kinds: Collection[str] | None,
        models: Collection[str] | None,
    ) -> Webhook:
        """Change where it leads and what it is told of."""
        return self._change(webhook, url=url, description=description, kinds=_listed(kinds), models=_listed(models))

    def enable(self, webhook: Webhook) -> Webhook:
        """Send to it again; what waits is due at once, and has a whole day again."""
        here = deliveries.c.webhook_id == webhook.id, PENDING, deliveries.c.once == sa.false()
        self._connection.execute(sa.update(deliveries).where(*here).values(next_at=self._now, began_at=self._now))
        return self._change(webhook, enabled=True, disabled_reason=None)

    def disable(self, webhook: Webhook, reason: str) -> Webhook:
        """Send nothing to it but what is asked for by hand; what waits goes on waiting."""
        return self._change(webhook, enabled=False, disabled_reason=reason)

    def set_secrets(self, webhook: Webhook, secrets: Sequence[WebhookSecret]) -> Webhook:
        """Sign with these from now on."""
        return self._change(webhook, secrets=_secrets(secrets))

    def delete(self, webhook: Webhook) -> None:
        """Forget it, and what it was told."""
        self._connection.execute(sa.delete(deliveries).where(deliveries.c.webhook_id == webhook.id))
        self._connection.execute(sa.delete(webhook_turns).where(webhook_turns.c.webhook_id == webhook.id))
        self._connection.execute(sa.delete(webhooks).where(webhooks.c.id == webhook.id))

    def _change(self, webhook: Webhook, **values: object) -> Webhook:
        here = webhooks.c.id == webhook.id
        self._connection.execute(sa.update(webhooks).where(here).values(**values, changed_at=self._now))
        return self.webhook(webhook.id)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def turns(self) -> list[Turn]:
        """Every webhook, who sends to it, and whether something of it is due."""
        due = sa.select(deliveries.c.webhook_id, deliveries.c.once).distinct().where(PENDING, self._is_due())
        found = {(row.webhook_id, row.once) for row in self._connection.execute(due)}
        turns = []
        for row in self._connection.execute(_WEBHOOKS.order_by(webhooks.c.id)):
            due_now = (row.id, True) in found or (row.enabled and (row.id, False) in found)
            turns.append(Turn(_webhook(row), row.holder, row.token, due_now))
        return turns

    def turn(self, id: int, token: int) -> Turn | None:
        """A turn, locked, if this is its token."""
        here = webhook_turns.c.webhook_id == id, webhook_turns.c.token == token
        locked = sa.select(webhook_turns.c.token).where(*here).with_for_update()
        if self._connection.execute(locked).one_or_none() is None:
            return None
        row = self._connection.execute(_WEBHOOKS.where(webhooks.c.id == id)).one()
        return Turn(_webhook(row), row.holder, row.token)

    def pass_turn(self, turn: Turn, holder: str | None, sent_through: int | None = None) -> int:
        """Give a locked turn to a worker, or to nobody.

        Args:
            turn: as ``turn`` gave it.
            holder: whose it is now.
            sent_through: number of an entry that has been taken by now; None: no other than before.

        Returns:
            its new token.
        """
        values: dict[str, Any] = {"holder": holder, "token": turn.token + 1}
        if sent_through is not None:
            values["sent_through"] = sent_through
        self._connection.execute(
            sa.update(webhook_turns).where(webhook_turns.c.webhook_id == turn.webhook.id).values(values)
        )
        return turn.token + 1

    def skip_to(self, webhook: Webhook, seq: int) -> None:
        """Take nothing from the log up to this entry."""
        here = webhook_turns.c.webhook_id == webhook.id, webhook_turns.c.sent_through < seq
        self._connection.execute(sa.update(webhook_turns).where(*here).values(sent_through=seq))

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def add(
        self, webhook: Webhook, event: str, *, seq: int | None, kind: str, model: str | None, once: bool = False
    ) -> Delivery:
        """Write a delivery down that is due now. One that is made by hand holds no other up."""
        row = sa.insert(deliveries).values(
            webhook_id=webhook.id,
            event=event,
            seq=seq,
            kind=kind,
            model=model,
            state=DeliveryState.PENDING.value,
            holds=not once,
            once=once,
            attempts=[],
            created_at=self._now,
            began_at=self._now,
            next_at=self._now,
        )
        key = self._connection.execute(row).inserted_primary_key
        assert key is not None
        return self.delivery(webhook.id, int(key[0]))

    def delivery(self, webhook: int, id: int) -> Delivery:
        """A delivery of a webhook.

        Raises:
            UnknownDelivery: with the remedy.
        """
        here = deliveries.c.webhook_id == min(webhook, LARGEST), deliveries.c.id == min(id, _LARGEST_ID)
        row = self._connection.execute(sa.select(deliveries).where(*here)).one_or_none()
        if row is None:
            raise UnknownDelivery(f"webhook {webhook} has no delivery {id}: list its deliveries to see their ids")
        return _delivery(row)

    def deliveries(
        self, webhook: Webhook, before: int | None, limit: int, state: DeliveryState | None = None
    ) -> Page[Delivery]:
        """Deliveries of a webhook, the newest first.

        Args:
            webhook: whose.
            before: go on before this id.
            limit: at most this many.
            state: in this state only.
        """
        wanted = sa.select(deliveries).where(deliveries.c.webhook_id == webhook.id)
        if before is not None:
            wanted = wanted.where(deliveries.c.id < before)
        if state is not None:
            wanted = wanted.where(deliveries.c.state == state.value)
        rows = self._connection.execute(wanted.order_by(deliveries.c.id.desc()).limit(limit + 1)).all()
        items = tuple(_delivery(row) for row in rows[:limit])
        return Page(items, str(items[-1].id) if len(rows) > limit else None)

    def due(self, webhook: Webhook) -> Delivery | None:
        """What is to be sent to a webhook now; to one that is disabled, only what was asked for by hand."""
        wanted = sa.select(deliveries).where(deliveries.c.webhook_id == webhook.id, PENDING, self._is_due())
        if not webhook.enabled:
            wanted = wanted.where(deliveries.c.once == sa.true())
        row = self._connection.execute(wanted.order_by(deliveries.c.next_at, deliveries.c.id).limit(1)).one_or_none()
        return None if row is None else _delivery(row)

    def held(self, webhook: Webhook) -> bool:
        """Whether an event that has not arrived holds up those after it."""
        held = deliveries.c.webhook_id == webhook.id, PENDING, deliveries.c.holds == sa.true()
        return self._connection.execute(sa.select(deliveries.c.id).where(*held).limit(1)).one_or_none() is not None

    def pending(self, webhook: Webhook) -> list[Delivery]:
        """Deliveries that have not ended, asked for by hand or not."""
        wanted = sa.select(deliveries).where(deliveries.c.webhook_id == webhook.id, PENDING).order_by(deliveries.c.id)
        return [_delivery(row) for row in self._connection.execute(wanted)]

    def settle(
        self,
        delivery: Delivery,
        attempt: Attempt | None,
        state: DeliveryState,
        *,
        next_at: datetime | None = None,
        holds: bool = False,
    ) -> None:
        """Write down how an attempt went, and what follows."""
        attempts = [*delivery.attempts, *([attempt] if attempt else [])][-_KEPT_ATTEMPTS:]
        pending = state is DeliveryState.PENDING
        values = {
            "state": state.value,
            "attempts": [_attempt_document(one) for one in attempts],
            "next_at": next_at if pending else None,
            "holds": holds and pending,
            "finished_at": None if pending else self._now,
        }
        self._connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery.id).values(values))

    def again(self, delivery: Delivery) -> Delivery:
        """Make a delivery due now: one that has ended is tried once more, one that waits does not wait any longer."""
        values: dict[str, Any] = {"next_at": self._now}
        if delivery.state is not DeliveryState.PENDING:
            state = DeliveryState.PENDING.value
            values |= {"state": state, "once": True, "holds": False, "began_at": self._now, "finished_at": None}
        self._connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery.id).values(values))
        return self.delivery(delivery.webhook, delivery.id)

    def forget(self, before: datetime) -> int:
        """Forget deliveries that ended before a time; how many."""
        return self._connection.execute(sa.delete(deliveries).where(deliveries.c.finished_at < before)).rowcount

    def _is_due(self) -> sa.ColumnElement[bool]:
        return sa.or_(deliveries.c.next_at <= self._now, deliveries.c.next_at > self._now + _FAR)


_WEBHOOKS = sa.select(
    webhooks, webhook_turns.c.sent_through, webhook_turns.c.holder, webhook_turns.c.token
).select_from(webhooks.join(webhook_turns, webhook_turns.c.webhook_id == webhooks.c.id))


def _listed(names: Collection[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _secrets(secrets: Sequence[WebhookSecret]) -> list[dict[str, str | None]]:
    return [
        {"text": secret.text, "expires_at": None if secret.expires_at is None else secret.expires_at.isoformat()}
        for secret in secrets
    ]


def _secret(document: Mapping[str, str | None]) -> WebhookSecret:
    ends = document["expires_at"]
    return WebhookSecret(str(document["text"]), None if ends is None else datetime.fromisoformat(ends))


def _webhook(row: sa.Row[Any]) -> Webhook:
    return Webhook(
        id=row.id,
        url=row.url,
        description=row.description,
        kinds=None if row.kinds is None else frozenset(row.kinds),
        models=None if row.models is None else frozenset(row.models),
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        secrets=tuple(map(_secret, row.secrets)),
        sent_through=row.sent_through,
        created_by=row.created_by,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )


def _attempt_document(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": attempt.at.isoformat(),
        "seconds": attempt.seconds,
        "status": attempt.status,
        "error": attempt.error,
        "answer": attempt.answer,
    }


def _delivery(row: sa.Row[Any]) -> Delivery:
    attempts = [Attempt(**{**document, "at": datetime.fromisoformat(document["at"])}) for document in row.attempts]
    return Delivery(
        id=row.id,
        webhook=row.webhook_id,
        event=row.event,
        seq=row.seq,
        kind=row.kind,
        model=row.model,
        state=DeliveryState(row.state),
        holds=row.holds,
        once=row.once,
        attempts=tuple(attempts),
        created_at=row.created_at,
        began_at=row.began_at,
        next_at=row.next_at,
        finished_at=row.finished_at,
    )
