"""Webhooks: made, changed, switched on and off, looked at, tried out; their secrets and their deliveries.

Knows: what a webhook may be told of and where it may lead. Must never know: HTTP, or how anything is sent (a worker
does that).

Laws:
    * A webhook is told of what comes after it was made. One that is disabled and enabled again goes on where it
      stopped, unless it is told to skip what it missed.
    * What it is told of is decided when it is sent: a change holds for everything that was not sent yet, and brings
      nothing back that was passed over.
    * A secret is returned by whoever made it, and is in no entry of the log; neither is the path of an address, which
      often is a secret of its receiver.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from app.config import Settings
from app.domain import Actor, Delivery, DeliveryState, Page, Webhook, WebhookSecret
from app.errors import BadInput, Conflict
from app.service.addresses import check_target, target_of
from app.store.database import Store, Transaction
from espalier.formats.canonical import sha256_digest
from espalier.formats.webhook import PREFIX

MOST_WEBHOOKS = 100
MOST_FILTERS = 100
MOST_SECRETS = 5
TEST_KIND = "webhook.test"
KIND_PATTERN = r"^[a-z]+\.[a-z_-]+$"
"""Kinds of audit entries."""

LONGEST_OVERLAP = timedelta(days=30)
_SECRET_BYTES = 32
_KEPT = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a webhook shall be.

    Attributes:
        kinds: None: of all kinds of entries.
        models: None: of all models, and of what is about none.
    """

    url: str
    description: str = ""
    kinds: frozenset[str] | None = None
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Made:
    """A webhook with a new secret: the only time that it is told."""

    webhook: Webhook
    secret: str


def create_webhook(store: Store, settings: Settings, wanted: Wanted, *, actor: Actor) -> Made:
    """Make a webhook; it is told of what comes from now on, of this as the first.

    Raises:
        InvalidWebhook, BadInput: it cannot be. UnknownModel.
        Conflict: there are as many as there may be.
    """
    _check(wanted, settings)
    secret = _fresh_secret()
    with store.transaction(actor) as tx:
        _check_models(tx, wanted)
        if tx.webhooks.count() >= MOST_WEBHOOKS:
            raise Conflict(f"there are {MOST_WEBHOOKS} webhooks already: delete one that is no longer used")
        webhook = tx.webhooks.create(
            1 + tx.audit.count("webhook.created"),
            wanted.url,
            description=wanted.description,
            kinds=wanted.kinds,
            models=wanted.models,
            secret=WebhookSecret(secret),
            created_by=actor.name,
            sent_through=tx.audit.head().size,
        )
        tx.audit.append("webhook.created", model=None, parameters=_described(webhook))
    return Made(webhook, secret)


def get_webhook(store: Store, id: int) -> Webhook:
    """One webhook.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.reading() as tx:
        return tx.webhooks.webhook(id)


def list_webhooks(store: Store, *, after: int | None, limit: int) -> Page[Webhook]:
    """Webhooks in the order in which they were made."""
    with store.reading() as tx:
        return tx.webhooks.webhooks(after, limit)


def change_webhook(
    store: Store,
    settings: Settings,
    id: int,
    *,
    url: str | None = None,
    description: str | None = None,
    kinds: Collection[str] | bool | None = False,
    models: Collection[str] | bool | None = False,
    actor: Actor,
) -> Webhook:
    """Change where a webhook leads and what it is told of; what is left out stays.

    Args:
        store, settings: of the deployment.
        id: which.
        url, description: None: as before.
        kinds, models: None: all; False: as before.
        actor: who asks.

    Raises:
        UnknownWebhook, InvalidWebhook, BadInput, UnknownModel: nothing was changed.
    """
    with store.transaction(actor) as tx:
        before = tx.webhooks.webhook(id, lock=True)
        wanted = Wanted(
            before.url if url is None else url,
            before.description if description is None else description,
            before.kinds if isinstance(kinds, bool) else _filter(kinds),
            before.models if isinstance(models, bool) else _filter(models),
        )
        if wanted == Wanted(before.url, before.description, before.kinds, before.models):
            return before
        _check(wanted, settings)
        _check_models(tx, wanted)
        _pass_over(tx, before)
        webhook = tx.webhooks.change(
            before, url=wanted.url, description=wanted.description, kinds=wanted.kinds, models=wanted.models
        )
        for delivery in tx.webhooks.pending(webhook):
            if not (delivery.once or webhook.wants(delivery.kind, delivery.model)):
                tx.webhooks.settle(delivery, None, DeliveryState.SKIPPED)
        tx.audit.append("webhook.changed", model=None, parameters=_described(webhook))
    return webhook


def enable_webhook(store: Store, id: int, *, reason: str, skip_missed: bool = False, actor: Actor) -> Webhook:
    """Go on where a webhook stopped, or with what comes from now on. One that is enabled already stays as it is.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        if webhook.enabled:
            return webhook
        if skip_missed:
            tx.webhooks.skip_to(webhook, tx.audit.head().size)
            for delivery in tx.webhooks.pending(webhook):
                if not delivery.once:
                    tx.webhooks.settle(delivery, None, DeliveryState.SKIPPED)
        webhook = tx.webhooks.enable(webhook)
        parameters = {"webhook": id, "skip_missed": skip_missed}
        tx.audit.append("webhook.enabled", model=None, parameters=parameters, reason=reason)
    return webhook


def disable_webhook(store: Store, id: int, *, reason: str, actor: Actor) -> Webhook:
    """Send nothing to a webhook but what is asked for by hand. One that is disabled already stays as it is.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        if webhook.enabled:
            webhook = disable(tx, webhook, reason)
    return webhook


def disable(tx: Transaction, webhook: Webhook, reason: str) -> Webhook:
    """Disable a webhook within a transaction, and say so in the log."""
    webhook = tx.webhooks.disable(webhook, reason)
    parameters = {"webhook": webhook.id, "sent_through": webhook.sent_through}
    tx.audit.append("webhook.disabled", model=None, parameters=parameters, reason=reason)
    return webhook


def delete_webhook(store: Store, id: int, *, actor: Actor) -> None:
    """Forget a webhook, its secrets and its deliveries.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        tx.webhooks.delete(webhook)
        tx.audit.append("webhook.deleted", model=None, parameters=_described(webhook))


def rotate_secret(store: Store, id: int, *, overlap: timedelta, actor: Actor) -> Made:
    """Sign with a new secret, and with those before it, too, until the overlap is over.

    Raises:
        UnknownWebhook: with the remedy. BadInput: the overlap is longer than it may be.
    """
    if not timedelta() <= overlap <= LONGEST_OVERLAP:
        raise BadInput(f"an overlap lasts 0 s to {LONGEST_OVERLAP.days} days: choose one that your receivers need")
    text = _fresh_secret()
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        ends = tx.now + overlap
        former = [
            replace(secret, expires_at=ends if secret.expires_at is None else min(ends, secret.expires_at))
            for secret in webhook.secrets
        ]
        kept = [WebhookSecret(text), *(secret for secret in former if secret.expires_at and secret.expires_at > tx.now)]
        webhook = tx.webhooks.set_secrets(webhook, kept[:MOST_SECRETS])
        parameters = {"webhook": id, "former_until": ends.isoformat()}
        tx.audit.append("webhook.secret-rotated", model=None, parameters=parameters)
    return Made(webhook, text)


# -- deliveries --------------------------------------------------------------------------------------------------------


def list_deliveries(
    store: Store, id: int, *, before: int | None, limit: int, state: DeliveryState | None = None
) -> Page[Delivery]:
    """Deliveries of a webhook, the newest first.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.reading() as tx:
        return tx.webhooks.deliveries(tx.webhooks.webhook(id), before, limit, state)


def get_delivery(store: Store, id: int, delivery: int) -> Delivery:
    """One delivery, with its attempts.

    Raises:
        UnknownWebhook, UnknownDelivery: with the remedy.
    """
    with store.reading() as tx:
        return tx.webhooks.delivery(tx.webhooks.webhook(id).id, delivery)


def redeliver(store: Store, id: int, delivery: int, *, actor: Actor) -> Delivery:
    """Send an event once more, now, whether or not its webhook is enabled; one that waits for its next attempt stops
    waiting.

    Raises:
        UnknownWebhook, UnknownDelivery: with the remedy.
    """
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        return tx.webhooks.again(tx.webhooks.delivery(webhook.id, delivery))


def send_test(store: Store, id: int, *, actor: Actor) -> Delivery:
    """Send an event that says nothing, once, whether or not the webhook is enabled.

    Raises:
        UnknownWebhook: with the remedy.
    """
    with store.transaction(actor) as tx:
        webhook = tx.webhooks.webhook(id, lock=True)
        event = f"test-{secrets.token_hex(12)}"
        return tx.webhooks.add(webhook, event, seq=None, kind=TEST_KIND, model=None, once=True)


def forget_deliveries(store: Store, actor: Actor) -> int:
    """Forget deliveries that ended a month ago; how many."""
    with store.transaction(actor) as tx:
        return tx.webhooks.forget(tx.now - _KEPT)


# -- what a webhook may be ---------------------------------------------------------------------------------------------


def _check(wanted: Wanted, settings: Settings) -> None:
    check_target(target_of(wanted.url), settings.webhook_networks)
    for names, what in ((wanted.kinds, "kinds"), (wanted.models, "models")):
        if names is not None and not 1 <= len(names) <= MOST_FILTERS:
            raise BadInput(f"a webhook is told of 1 to {MOST_FILTERS} {what}, or of all: leave the {what} out")
    for kind in sorted(wanted.kinds or ()):
        if not re.fullmatch(KIND_PATTERN, kind):
            raise BadInput(f"{kind[:64]!r} is no kind of audit entry: they look like version.published")


def _check_models(tx: Transaction, wanted: Wanted) -> None:
    for model in sorted(wanted.models or ()):
        tx.ledger.model(model)


def _filter(names: Collection[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _pass_over(tx: Transaction, webhook: Webhook) -> None:
    """Take what the webhook has no use for, so that a change of what it wants does not bring it back."""
    head = tx.audit.head().size
    waiting = tx.audit.next(webhook.sent_through, head, webhook.kinds, webhook.models)
    tx.webhooks.skip_to(webhook, head if waiting is None else waiting.seq - 1)


def _described(webhook: Webhook) -> dict[str, object]:
    """What the log says of a webhook: where it leads but for the path, and by which digest the whole can be told."""
    return {
        "webhook": webhook.id,
        "origin": target_of(webhook.url).origin,
        "url": sha256_digest(webhook.url.encode()),
        "kinds": None if webhook.kinds is None else sorted(webhook.kinds),
        "models": None if webhook.models is None else sorted(webhook.models),
    }


def _fresh_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
