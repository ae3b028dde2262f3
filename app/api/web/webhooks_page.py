"""The pages of webhooks: where they lead, and what became of what they were told.

Knows: how a delivery's state is told, and that the path of an address is shown on its own page alone. Must never know:
HTTP, or a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain import Attempt, Delivery, DeliveryState, Webhook
from app.service.addresses import target_of

_TONES = {
    DeliveryState.PENDING: ("queued", "blue"),
    DeliveryState.DELIVERED: ("check", "good"),
    DeliveryState.FAILED: ("warning", "bad"),
    DeliveryState.SKIPPED: ("kept", "mute"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A webhook in the list; ``origin`` is its address without the path, which often is a secret."""

    webhook: Webhook
    origin: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A delivery: its sign and tone, and its last attempt."""

    delivery: Delivery
    sign: str
    tone: str
    last: Attempt | None
    waits: bool


def rows_of(webhooks: Sequence[Webhook]) -> list[Row]:
    """Webhooks as rows."""
    return [Row(webhook, target_of(webhook.url).origin) for webhook in webhooks]


def deliveries_of(deliveries: Sequence[Delivery]) -> list[Sent]:
    """Deliveries as rows."""
    return [
        Sent(each, *_TONES[each.state], each.attempts[-1] if each.attempts else None, each.state == "pending")
        for each in deliveries
    ]
