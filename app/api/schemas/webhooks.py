"""Webhooks and their deliveries on the wire.

Knows: how they look, and that a secret stands in the answers alone that made it. Must never know: where a webhook may
lead, or when a delivery is tried again.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.dependencies import NAME_PATTERN
from app.api.schemas.wire import TIME, Asked, Page, Time, example
from app.service.addresses import LONGEST_URL
from app.service.webhooks import KIND_PATTERN, LONGEST_OVERLAP, MOST_FILTERS, Wanted

_WEBHOOK = {
    "id": 1,
    "url": "https://hooks.example.com/espalier",
    "description": "tells line 3 of new champions",
    "kinds": ["alias.moved", "model.rolled_back"],
    "models": ["gas-sensors"],
    "enabled": True,
    "disabled_reason": None,
    "sent_through": 41,
    "former_secrets_until": None,
    "created_by": "admin",
    "created_at": TIME,
    "changed_at": TIME,
}
_ATTEMPT = {"at": TIME, "seconds": 0.041, "status": 204, "error": None, "answer": None}
_DELIVERY = {
    "id": 7,
    "webhook": 1,
    "event": "41-0f0f0f0f0f0f0f0f",
    "seq": 41,
    "kind": "alias.moved",
    "model": "gas-sensors",
    "state": "delivered",
    "attempts": [_ATTEMPT],
    "next_at": None,
    "created_at": TIME,
    "finished_at": TIME,
}

Kinds = Annotated[
    list[Annotated[str, Field(pattern=KIND_PATTERN, max_length=64)]], Field(min_length=1, max_length=MOST_FILTERS)
]
Models = Annotated[list[Annotated[str, Field(pattern=NAME_PATTERN)]], Field(min_length=1, max_length=MOST_FILTERS)]

_URL = (
    "Where deliveries are posted to: `https://` or `http://`, at a public address unless "
    "`ESPALIER_WEBHOOK_PRIVATE_ADDRESSES` allows its network."
)
_DESCRIPTION = "What it is for, in words."
_KINDS = "Kinds of audit entries that it is told of; null: all."
_MODELS = "Models whose entries it is told of; null: all, and what is about no model."


class NewWebhook(Asked):
    """A webhook to be made."""

    model_config = example(
        {
            "url": "https://hooks.example.com/espalier",
            "description": "tells line 3 of new champions",
            "kinds": ["alias.moved", "model.rolled_back"],
            "models": ["gas-sensors"],
        }
    )

    url: str = Field(description=_URL, min_length=1, max_length=LONGEST_URL)
    description: str = Field("", description=_DESCRIPTION, max_length=2000)
    kinds: Kinds | None = Field(None, description=_KINDS)
    models: Models | None = Field(None, description=_MODELS)

    def to_domain(self) -> Wanted:
        """As the rooms below say it."""
        return Wanted(
            self.url,
            self.description,
            None if self.kinds is None else frozenset(self.kinds),
            None if self.models is None else frozenset(self.models),
        )


class ChangedWebhook(Asked):
    """What is to be changed of a webhook; what is left out stays."""

    model_config = example({"kinds": ["version.published"], "models": None})

    url: str = Field("", description=_URL, min_length=1, max_length=LONGEST_URL)
    description: str = Field("", description=_DESCRIPTION, max_length=2000)
    kinds: Kinds | None = Field(None, description=_KINDS)
    models: Models | None = Field(None, description=_MODELS)

    def changes(self) -> dict[str, Any]:
        """What was said."""
        return self.model_dump(include=self.model_fields_set)


class Enabling(Asked):
    """Why a webhook is enabled, and from where it goes on."""

    model_config = example({"reason": "the receiver is back", "skip_missed": False})

    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)
    skip_missed: bool = Field(False, description="Go on with what comes from now on, instead of where it stopped.")


class Rotation(Asked):
    """How a webhook's secret is rotated."""

    model_config = example({"overlap_seconds": 86400})

    overlap_seconds: float = Field(
        24 * 3600.0,
        ge=0,
        le=LONGEST_OVERLAP.total_seconds(),
        description="For how long deliveries are signed with the former secret, too, in seconds.",
    )


class Webhook(BaseModel):
    """A webhook, without its secret."""

    model_config = example(_WEBHOOK)

    id: int = Field(description="Never given to another webhook.")
    url: str = Field(description="Where deliveries are posted to.")
    description: str = Field(description=_DESCRIPTION)
    kinds: list[str] | None = Field(description=_KINDS)
    models: list[str] | None = Field(description=_MODELS)
    enabled: bool = Field(description="Whether it is told of anything.")
    disabled_reason: str | None = Field(description="Why it is not, in words.")
    sent_through: int = Field(description="Number of the last audit entry that was taken for it from the log.")
    former_secrets_until: Time | None = Field(
        description="Until when deliveries are signed with the secrets before this one, too; null: there are none."
    )
    created_by: str = Field(description="Who made it.")
    created_at: Time = Field(description="When it was made.")
    changed_at: Time = Field(description="When it was last changed, enabled or disabled, or its secret rotated.")

    @classmethod
    def from_domain(cls, webhook: domain.Webhook) -> Self:
        """From the domain's value."""
        return cls(
            id=webhook.id,
            url=webhook.url,
            description=webhook.description,
            kinds=None if webhook.kinds is None else sorted(webhook.kinds),
            models=None if webhook.models is None else sorted(webhook.models),
            enabled=webhook.enabled,
            disabled_reason=webhook.disabled_reason,
            sent_through=webhook.sent_through,
            former_secrets_until=max((one.expires_at for one in webhook.secrets if one.expires_at), default=None),
            created_by=webhook.created_by,
            created_at=webhook.created_at,
            changed_at=webhook.changed_at,
        )


class CreatedWebhook(Webhook):
    """A webhook with a new secret, which is told this once."""

    model_config = example({**_WEBHOOK, "secret": "whsec_..."})

    secret: str = Field(
        description="What deliveries are signed with. It is not told again: give it to the receiver now."
    )

    @classmethod
    def made(cls, webhook: domain.Webhook, secret: str) -> Self:
        """From the domain's value and the secret."""
        return cls(**Webhook.from_domain(webhook).model_dump(), secret=secret)


class Webhooks(Page[Webhook]):
    """Webhooks in the order in which they were made."""

    model_config = example({"items": [_WEBHOOK], "next_cursor": None})


class Attempt(BaseModel):
    """One request to a receiver."""

    model_config = example(_ATTEMPT)

    at: Time = Field(description="When it ended.")
    seconds: float = Field(description="How long it took, in seconds.")
    status: int | None = Field(description="HTTP status that the receiver answered with; null: it did not answer.")
    error: str | None = Field(description="Why it counts as a failure; null: it does not.")
    answer: str | None = Field(description="The beginning of what the receiver said.")

    @classmethod
    def from_domain(cls, attempt: domain.Attempt) -> Self:
        """From the domain's value."""
        return cls(
            at=attempt.at,
            seconds=attempt.seconds,
            status=attempt.status,
            error=attempt.error,
            answer=attempt.answer,
        )


class Delivery(BaseModel):
    """An event on its way to a webhook, or at its end."""

    model_config = example(_DELIVERY)

    id: int = Field(description="Never given to another delivery.")
    webhook: int = Field(description="Id of the webhook.")
    event: str = Field(description="The header `webhook-id`: the same at every attempt, and of no other event.")
    seq: int | None = Field(description="Number of the audit entry; null for a test.")
    kind: str = Field(description="Kind of the audit entry.")
    model: str | None = Field(description="The model that it is about.")
    state: domain.DeliveryState = Field(
        description="`pending`: to be sent; `delivered`: answered with 2xx; `failed`: given up; `skipped`: not wanted "
        "any more before it was sent."
    )
    attempts: list[Attempt] = Field(description="The newest last; 60 of them at most.")
    next_at: Time | None = Field(description="When it is tried next, while its webhook is enabled; null: not any more.")
    created_at: Time = Field(description="When it was taken from the log.")
    finished_at: Time | None = Field(description="When it ended; null: it has not.")

    @classmethod
    def from_domain(cls, delivery: domain.Delivery) -> Self:
        """From the domain's value."""
        return cls(
            id=delivery.id,
            webhook=delivery.webhook,
            event=delivery.event,
            seq=delivery.seq,
            kind=delivery.kind,
            model=delivery.model,
            state=delivery.state,
            attempts=list(map(Attempt.from_domain, delivery.attempts)),
            next_at=delivery.next_at,
            created_at=delivery.created_at,
            finished_at=delivery.finished_at,
        )


class Deliveries(Page[Delivery]):
    """Deliveries, the newest first."""

    model_config = example({"items": [_DELIVERY], "next_cursor": None})
