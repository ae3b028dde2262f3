"""Webhooks over HTTP: made, changed, looked at; what is refused; what is told once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.config import Settings
from app.service import webhooks
from app.service.agreement import examine_rows
from tests.api.conftest import House, opened, problem

URL = "https://hooks.example.com/espalier/secret-path"


@pytest.fixture
def hooked(settings: Settings) -> Iterator[House]:
    """A service that lets webhooks lead to one private network."""
    with opened(Settings(**{**settings.model_dump(), "webhook_private_addresses": "10.1.0.0/16"})) as found:
        yield found


def made(house: House, **body: Any) -> Any:
    answer = house.http.post("/v1/webhooks", json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def kinds(house: House) -> list[str]:
    return [entry["kind"] for entry in house.http.get("/v1/audit?limit=1000").json()["items"]]


def test_a_webhook_from_first_to_last(house: House) -> None:
    house.create()
    answer = house.http.post(
        "/v1/webhooks",
        json={"url": URL, "kinds": ["version.published", "alias.moved"], "models": ["gas"], "description": "line 3"},
        headers={"Idempotency-Key": "k"},
    )
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Location"] == "/v1/webhooks/1"
    document = answer.json()
    secret = document.pop("secret")
    assert secret.startswith("whsec_") and len(secret) == 50
    assert house.http.get("/v1/webhooks/1").json() == document
    assert document["kinds"] == ["alias.moved", "version.published"] and document["enabled"]
    assert house.http.get("/v1/webhooks").json() == {"items": [document], "next_cursor": None}

    changed = house.http.patch("/v1/webhooks/1", json={"kinds": ["cycle.failed"], "models": None}).json()
    assert (changed["kinds"], changed["models"], changed["description"]) == (["cycle.failed"], None, "line 3")
    assert house.http.patch("/v1/webhooks/1", json={}).json() == changed

    off = house.http.post("/v1/webhooks/1/disable", json={"reason": "noise"}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "noise")
    on = house.http.post("/v1/webhooks/1/enable", json={"reason": "quiet", "skip_missed": True}).json()
    assert (on["enabled"], on["disabled_reason"]) == (True, None)

    rotated = house.http.post("/v1/webhooks/1/rotate-secret", json={})
    assert rotated.headers["Cache-Control"] == "no-store"
    assert rotated.json()["secret"] not in (None, secret) and rotated.json()["former_secrets_until"]
    at_once = house.http.post("/v1/webhooks/1/rotate-secret", json={"overlap_seconds": 0}).json()
    assert at_once["former_secrets_until"] is None

    deleted = house.http.delete("/v1/webhooks/1")
    assert (deleted.status_code, deleted.content) == (204, b"")
    problem(house.http.get("/v1/webhooks/1"), 404, "unknown-webhook")
    assert made(house)["id"] == 2, "an id is never given twice"
    assert [kind for kind in kinds(house) if kind.startswith("webhook.")] == [
        *("webhook.created", "webhook.changed", "webhook.disabled", "webhook.enabled"),
        *("webhook.secret-rotated", "webhook.secret-rotated", "webhook.deleted", "webhook.created"),
    ]


def test_neither_the_log_nor_any_later_answer_holds_a_secret_or_the_path(house: House) -> None:
    secrets = [made(house)["secret"], house.http.post("/v1/webhooks/1/rotate-secret", json={}).json()["secret"]]
    log = house.http.get("/v1/audit?limit=1000").text
    listed = house.http.get("/v1/webhooks").text
    for secret in secrets:
        assert secret not in log + listed and secret.removeprefix("whsec_") not in log + listed
    assert "secret-path" not in log and "https://hooks.example.com" in log


def test_a_request_that_is_repeated_is_told_no_secret(house: House) -> None:
    first = house.http.post("/v1/webhooks", json={"url": URL}, headers={"Idempotency-Key": "k"})
    again = house.http.post("/v1/webhooks", json={"url": URL}, headers={"Idempotency-Key": "k"})
    assert first.json()["secret"] not in again.text


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({}, 422, "invalid-request"),
        ({"url": ""}, 422, "invalid-request"),
        ({"url": "x" * 3000}, 422, "invalid-request"),
        ({"url": "ftp://example.com"}, 422, "invalid-webhook"),
        ({"url": "http://localhost:8000/"}, 422, "invalid-webhook"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, 422, "invalid-webhook"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, 422, "invalid-webhook"),
        ({"url": "https://user:secret@example.com/"}, 422, "invalid-webhook"),
        ({"url": URL, "kinds": []}, 422, "invalid-request"),
        ({"url": URL, "kinds": ["everything"]}, 422, "invalid-request"),
        ({"url": URL, "models": ["nowhere"]}, 404, "unknown-model"),
        ({"url": URL, "secret": "mine"}, 422, "invalid-request"),
    ],
)
def test_what_cannot_be_a_webhook_is_refused_and_changes_nothing(
    house: House, body: dict[str, Any], status: int, slug: str
) -> None:
    said = problem(house.http.post("/v1/webhooks", json=body), status, slug)
    assert "secret@" not in said["detail"]
    made(house)
    if body and "secret" not in body:
        problem(house.http.patch("/v1/webhooks/1", json=body), status, slug)
    assert house.http.get("/v1/webhooks").json()["items"][0]["url"] == URL
    assert kinds(house) == ["webhook.created"]


def test_private_networks_are_allowed_one_by_one(hooked: House) -> None:
    made(hooked, url="http://10.1.2.3:9000/hook")
    problem(hooked.http.post("/v1/webhooks", json={"url": "http://10.2.0.1/"}), 422, "invalid-webhook")


def test_tests_and_redeliveries_wait_for_a_worker(house: House) -> None:
    made(house)
    asked = house.http.post("/v1/webhooks/1/test")
    assert asked.status_code == 202
    test = asked.json()
    assert (test["kind"], test["state"], test["attempts"], test["seq"]) == ("webhook.test", "pending", [], None)
    assert house.http.get(f"/v1/webhooks/1/deliveries/{test['id']}").json() == test
    assert house.http.post(f"/v1/webhooks/1/deliveries/{test['id']}/redeliver").status_code == 202
    for path in ("/v1/webhooks/1/deliveries/99", "/v1/webhooks/1/deliveries/9007199254740991"):
        problem(house.http.get(path), 404, "unknown-delivery")
        problem(house.http.post(path + "/redeliver"), 404, "unknown-delivery")
    problem(house.http.post("/v1/webhooks/2/test"), 404, "unknown-webhook")
    problem(house.http.get("/v1/webhooks/2147483647/deliveries"), 404, "unknown-webhook")


def test_deliveries_come_page_by_page_the_newest_first(house: House) -> None:
    made(house)
    ids = [house.http.post("/v1/webhooks/1/test").json()["id"] for _ in range(5)]
    first = house.http.get("/v1/webhooks/1/deliveries?limit=3").json()
    last = house.http.get("/v1/webhooks/1/deliveries", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in first["items"] + last["items"]] == ids[::-1]
    assert last["next_cursor"] is None
    assert house.http.get("/v1/webhooks/1/deliveries?state=failed").json()["items"] == []
    assert len(house.http.get("/v1/webhooks/1/deliveries?state=pending").json()["items"]) == 5
    problem(house.http.get("/v1/webhooks/1/deliveries?state=odd"), 422, "invalid-request")
    problem(house.http.get("/v1/webhooks/1/deliveries?cursor=abc"), 400, "invalid-cursor")
    assert house.http.head("/v1/webhooks/1/deliveries").status_code == 200


def test_there_are_so_many_webhooks_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MOST_WEBHOOKS", 2)
    for _ in range(2):
        made(house)
    problem(house.http.post("/v1/webhooks", json={"url": URL}), 409, "conflict")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("disable", {}),
        ("enable", {"reason": ""}),
        ("rotate-secret", {"overlap_seconds": -1}),
        ("rotate-secret", {"overlap_seconds": 10**9}),
    ],
)
def test_bodies_that_cannot_be_are_refused(house: House, path: str, body: dict[str, Any]) -> None:
    made(house)
    before = house.http.get("/v1/webhooks/1").json()
    problem(house.http.post(f"/v1/webhooks/1/{path}", json=body), 422, "invalid-request")
    assert house.http.get("/v1/webhooks/1").json() == before


def test_rows_are_what_the_log_says(house: House) -> None:
    made(house)
    house.http.post("/v1/webhooks/1/rotate-secret", json={})
    house.http.post("/v1/webhooks/1/disable", json={"reason": "noise"})
    assert list(examine_rows(house.store)) == []
    house.http.delete("/v1/webhooks/1")
    assert list(examine_rows(house.store)) == []
