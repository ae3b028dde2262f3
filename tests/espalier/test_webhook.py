"""Deliveries as their receiver checks them: the signature, the time, the event."""

from __future__ import annotations

import json

import pytest

import espalier
from espalier.errors import WebhookRejected
from espalier.formats.webhook import signature_headers, verify_webhook

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = 1_700_000_000


def body_of(id: str = "7-abc", **more: object) -> bytes:
    document = {
        "specversion": "1.0", "id": id, "source": "urn:espalier:x", "type": "espalier.alias.moved",
        "time": "2026-03-02T09:30:00Z", "subject": "gas", "data": {"seq": 7},
    }  # fmt: skip
    return json.dumps(document | more).encode()


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its specification's reference libraries."""
    headers = signature_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [OTHER])
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_delivery_is_read_once_it_is_checked() -> None:
    body = body_of()
    event = verify_webhook(signature_headers("7-abc", NOW, body, [SECRET]), body, SECRET, now=NOW + 3)
    assert (event.id, event.type, event.subject, event.data["seq"]) == ("7-abc", "espalier.alias.moved", "gas", 7)
    assert espalier.verify_webhook is verify_webhook


def test_headers_of_any_case_and_any_secret_in_force() -> None:
    body = body_of()
    headers = {name.title(): value for name, value in signature_headers("7-abc", NOW, body, [OTHER, SECRET]).items()}
    for secrets in (SECRET, OTHER, [SECRET], [SECRET, OTHER], SECRET.removeprefix("whsec_")):
        assert verify_webhook(headers, body, secrets, now=NOW).id == "7-abc"


@pytest.mark.parametrize("at", [NOW - 301, NOW + 301, NOW + 86_400])
def test_what_was_signed_long_ago_or_from_now_is_refused(at: int) -> None:
    body = body_of()
    headers = signature_headers("7-abc", NOW, body, [SECRET])
    with pytest.raises(WebhookRejected, match="300 s are allowed"):
        verify_webhook(headers, body, SECRET, now=at)
    assert verify_webhook(headers, body, SECRET, now=at, tolerance=100_000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"webhook-id": "8-abc"}, "no signature"), ({"webhook-timestamp": str(NOW + 1)}, "no signature"),
        ({"webhook-timestamp": "soon"}, "no number"), ({"webhook-timestamp": ""}, "is missing"),
        ({"webhook-signature": ""}, "is missing"), ({"webhook-signature": "v1,AAAA"}, "no signature"),
        ({"webhook-signature": "v1a,x y z"}, "no signature"), ({"webhook-signature": "v1,é"}, "no signature"),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit_are_refused(change: dict[str, str], told: str) -> None:
    body = body_of()
    with pytest.raises(WebhookRejected, match=told):
        verify_webhook(signature_headers("7-abc", NOW, body, [SECRET]) | change, body, SECRET, now=NOW)


def test_every_bit_of_the_body_counts() -> None:
    body = body_of()
    headers = signature_headers("7-abc", NOW, body, [SECRET])
    for place in range(0, len(body), 7):
        changed = bytearray(body)
        changed[place] ^= 1
        with pytest.raises(WebhookRejected):
            verify_webhook(headers, bytes(changed), SECRET, now=NOW)
    with pytest.raises(WebhookRejected):
        verify_webhook(headers, body, OTHER, now=NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"null", body_of(id="other"), body_of(specversion="0.3"),
                                  body_of(data=None)])  # fmt: skip
def test_what_is_signed_and_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRejected):
        verify_webhook(signature_headers("7-abc", NOW, body, [SECRET]), body, SECRET, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "whsec_" + "A" * 200, "secret", "whsec_" + "!" * 40])
def test_a_secret_that_is_none_is_the_callers_fault(secret: str) -> None:
    body = body_of()
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook(signature_headers("7-abc", NOW, body, [SECRET]), body, secret, now=NOW)
