"""Webhooks: how a delivery is signed, and how its receiver checks that.

Knows: the headers and signatures of Standard Webhooks (symmetric: HMAC-SHA256), and the members of CloudEvents 1.0 in
JSON. Must never know: how a delivery travels, or what an event means.

Laws:
    * A delivery is taken or refused by the bytes that arrived, before anything in them is believed.
    * Signatures are compared in constant time.
    * What was signed long ago is refused: whoever kept a copy cannot send it again later. Within the window a receiver
      tells repetitions by the event's id, which is the same at every attempt.

The signature is over ``<webhook-id>.<webhook-timestamp>.<body>``; the header ``webhook-signature`` holds one
``v1,<base64>`` for each secret in force, separated by spaces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import WebhookRejected

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
"""The headers of a delivery."""

MEDIA_TYPE = "application/cloudevents+json"
PREFIX = "whsec_"
TOLERANCE_SECONDS = 300.0

_SECRET = re.compile(r"(whsec_)?([A-Za-z0-9+/]{32,88}={0,2})")


@dataclass(frozen=True)
class Event:
    """What a service says that happened.

    Attributes:
        id: the same at every attempt to deliver it, and of no other event.
        type: ``espalier.`` and the kind of the audit entry, such as ``espalier.version.published``.
        source: which service.
        time: when it happened, RFC 3339 in UTC.
        subject: the model's name; None where it is about no model.
        data: what is short of the audit entry.
    """

    id: str
    type: str
    source: str
    time: str
    subject: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def signature_headers(id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers that a delivery bears.

    Args:
        id: of the event.
        timestamp: of the attempt, in seconds since 1970.
        body: the bytes that are sent.
        secrets: every secret in force.

    Raises:
        ValueError: a secret is none.
    """
    signatures = " ".join(_signature(id, str(timestamp), body, secret) for secret in secrets)
    return {ID: id, TIMESTAMP: str(timestamp), SIGNATURE: signatures}


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secret: str | Sequence[str],
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> Event:
    """Check a delivery of a webhook, and read it.

    Args:
        headers: of the request; their case does not matter.
        body: of the request, byte for byte as it came.
        secret: ``whsec_...``, or several of them while one takes the place of another.
        tolerance: how many seconds the sender's clock and this one, and the way between them, may come to.
        now: seconds since 1970; None: by this machine's clock.

    Raises:
        WebhookRejected: it was not signed with the secret, was signed too long ago, or is no event: answer it with 400.
        ValueError: the secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]:
        raise WebhookRejected(f"the header {missing[0]} is missing: this is no delivery of a webhook")
    id, timestamp = given[ID], given[TIMESTAMP]
    _check_time(timestamp, time.time() if now is None else now, tolerance)
    secrets = [secret] if isinstance(secret, str) else list(secret)
    wanted = [_signature(id, timestamp, body, each) for each in secrets]
    found = given[SIGNATURE].split(" ")
    if not any(hmac.compare_digest(one.encode(), other.encode()) for one in wanted for other in found):
        raise WebhookRejected("no signature is by this secret: compare the secret, and hand over the body as it came")
    return _event(id, body)


def _check_time(timestamp: str, now: float, tolerance: float) -> None:
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise WebhookRejected(f"the header {TIMESTAMP} is no number of seconds")
    apart = now - int(timestamp)
    if abs(apart) > tolerance:
        raise WebhookRejected(
            f"it was signed {abs(apart):.0f} s {'ago' if apart > 0 else 'from now'}, and {tolerance:g} s are allowed: "
            "set this machine's clock, or it is a repetition"
        )


def _event(id: str, body: bytes) -> Event:
    try:
        document = json.loads(body)
        if document["specversion"] != "1.0" or document["id"] != id:
            raise WebhookRejected("the body is not the CloudEvent 1.0 that its headers name")
        type, source, at = (str(document[name]) for name in ("type", "source", "time"))
        return Event(id, type, source, at, document.get("subject"), dict(document["data"]))
    except (ValueError, LookupError, TypeError) as error:
        raise WebhookRejected("the body is no CloudEvent") from error


def _signature(id: str, timestamp: str, body: bytes, secret: str) -> str:
    signed = b".".join((id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    found = _SECRET.fullmatch(secret)
    try:
        key = base64.b64decode(found[2], validate=True) if found else b""
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook's secret is {PREFIX} and 24 to 64 bytes in base64: take it as it was told")
    return key
