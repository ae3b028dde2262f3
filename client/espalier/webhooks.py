"""Webhooks: addresses that are told what happens.

Knows: how they are made, changed, tried out and listed, with their deliveries. Must never know: how a delivery is
signed (``formats.webhook``), or when one is tried again; the service does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from espalier.records import Record
from espalier.resources import every, made, one
from espalier.transport import Transport, json_of, path_of


@dataclass(frozen=True)
class Webhook(Record):
    """A webhook, without its secret. ``kinds`` None: of all kinds; ``models`` None: of all models."""

    id: int
    url: str
    description: str
    kinds: tuple[str, ...] | None
    models: tuple[str, ...] | None
    enabled: bool
    sent_through: int
    created_by: str
    created_at: datetime
    changed_at: datetime
    disabled_reason: str | None = None
    former_secrets_until: datetime | None = None


@dataclass(frozen=True)
class CreatedWebhook(Webhook):
    """A webhook with a new secret, which the service tells this once."""

    secret: str = field(kw_only=True, repr=False)


@dataclass(frozen=True)
class Attempt(Record):
    """One request to a receiver. ``status`` None: it did not answer; ``error`` None: it arrived."""

    at: datetime
    seconds: float
    status: int | None = None
    error: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Delivery(Record):
    """An event on its way to a webhook, or at its end: ``pending``, ``delivered``, ``failed`` or ``skipped``."""

    id: int
    webhook: int
    event: str
    kind: str
    state: str
    attempts: tuple[Attempt, ...]
    created_at: datetime
    seq: int | None = None
    model: str | None = None
    next_at: datetime | None = None
    finished_at: datetime | None = None


class Webhooks:
    """``client.webhooks``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def create(
        self,
        url: str,
        *,
        kinds: Collection[str] | None = None,
        models: Collection[str] | None = None,
        description: str = "",
    ) -> CreatedWebhook:
        """Make a webhook. Its secret is told this once; a request whose answer was lost is not repeated.

        Args:
            url: where deliveries are posted to.
            kinds: kinds of audit entries that it is told of; None: all.
            models: models whose entries it is told of; None: all.
            description: what it is for.

        Raises:
            ApiProblem: with status 422 for an address that nothing may be sent to.
        """
        body = {"url": url, "description": description, "kinds": _listed(kinds), "models": _listed(models)}
        return made(self._http, CreatedWebhook, path_of("webhooks"), body)

    def list(self) -> Iterator[Webhook]:
        """Every webhook, in the order in which they were made."""
        return every(self._http, Webhook, path_of("webhooks"))

    def get(self, id: int) -> Webhook:
        """One webhook."""
        return one(self._http, Webhook, path_of("webhooks", id))

    def change(
        self,
        id: int,
        *,
        url: str | None = None,
        kinds: Collection[str] | None = (),
        models: Collection[str] | None = (),
        description: str | None = None,
    ) -> Webhook:
        """Change a webhook; what is left out stays. It holds for whatever was not sent yet.

        Args:
            id: which.
            url, description: None: as before.
            kinds, models: None: all; empty: as before.
        """
        given: dict[str, object] = {"url": url, "description": description}
        body = {name: value for name, value in given.items() if value is not None}
        filters = {"kinds": _listed(kinds), "models": _listed(models)}
        body |= {name: value for name, value in filters.items() if value != []}
        return Webhook.from_json(json_of(self._http.request("PATCH", path_of("webhooks", id), json=body)))

    def enable(self, id: int, reason: str, *, skip_missed: bool = False) -> Webhook:
        """Go on where a webhook stopped, or, skipping what it missed, with what comes from now on."""
        body = {"reason": reason, "skip_missed": skip_missed}
        return made(self._http, Webhook, path_of("webhooks", id, "enable"), body)

    def disable(self, id: int, reason: str) -> Webhook:
        """Send a webhook nothing but tests and what is redelivered."""
        return made(self._http, Webhook, path_of("webhooks", id, "disable"), {"reason": reason})

    def delete(self, id: int) -> None:
        """Forget a webhook, its secrets and its deliveries."""
        self._http.request("DELETE", path_of("webhooks", id))

    def rotate_secret(self, id: int, overlap: timedelta = timedelta(days=1)) -> CreatedWebhook:
        """Give a webhook a new secret, told this once; until the overlap is over the former one signs, too."""
        body = {"overlap_seconds": overlap.total_seconds()}
        return made(self._http, CreatedWebhook, path_of("webhooks", id, "rotate-secret"), body)

    def test(self, id: int) -> Delivery:
        """Send a webhook an event that says nothing, once; ``delivery`` tells how that went."""
        return made(self._http, Delivery, path_of("webhooks", id, "test"), {})

    def deliveries(self, id: int, *, state: str | None = None, limit: int | None = None) -> Iterator[Delivery]:
        """Deliveries of a webhook, the newest first: ``limit`` of them, or all; in one state, or any."""
        return every(self._http, Delivery, path_of("webhooks", id, "deliveries"), limit, state=state)

    def delivery(self, id: int, delivery: int) -> Delivery:
        """One delivery, with its attempts."""
        return one(self._http, Delivery, path_of("webhooks", id, "deliveries", delivery))

    def redeliver(self, id: int, delivery: int) -> Delivery:
        """Send an event once more, now, under the same id."""
        return made(self._http, Delivery, path_of("webhooks", id, "deliveries", delivery, "redeliver"), {})


def _listed(names: Collection[str] | None) -> list[str] | None:
    return None if names is None else [*names]
