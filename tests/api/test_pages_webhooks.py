"""The pages of webhooks: what they show, what their forms do, and where a secret stands."""

from __future__ import annotations

import html
import re

import pytest

from app.api.routes import hooking
from app.domain import DeliveryState, Scope
from app.service import webhooks
from tests.api.conftest import WORKER, House
from tests.api.test_pages import BROWSER, PART, SAME, key_of, sign_in, text_of

FORM = {"url": "https://hooks.example.com/t0p-secret", "description": "tells line 3", "kinds": "", "models": ""}
ASKING = {**SAME, **PART}


@pytest.fixture
def hooked(house: House) -> House:
    """A service with one webhook."""
    house.create()
    house.http.post("/webhooks", data=FORM, headers=ASKING).raise_for_status()
    return house


def move(house: House, what: str, **form: str) -> str:
    return text_of(house.http.post(f"/webhooks/1/{what}", data={"sent": "yes", **form}, headers=ASKING))


def test_a_secret_is_shown_once(house: House) -> None:
    house.create()
    assert "No webhooks yet" in text_of(house.http.get("/webhooks"))
    assert "public address" in text_of(house.http.get("/webhooks/new", headers=PART))
    form = {**FORM, "kinds": "version.published, alias.moved", "models": "gas"}
    answer = house.http.post("/webhooks", data=form, headers=ASKING)
    (secret,) = re.findall(r"whsec_[\w+/=]+", text_of(answer))
    assert html.escape(f'data-copy="{secret}"', quote=False) in answer.text
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["HX-Trigger"] == "espalier-changed"
    listed, page = house.http.get("/webhooks"), house.http.get("/webhooks/1")
    assert secret not in listed.text + page.text
    assert "t0p-secret" not in listed.text and "t0p-secret" in page.text
    for said in ("https://hooks.example.com", "enabled", "alias.moved, version.published", "gas", "tells line 3"):
        assert said in text_of(listed), said


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": ""},
        {"url": "ftp://hooks.example.com"},
        {"url": "http://127.0.0.1/x"},
        {"kinds": "No Kind"},
        {"models": "nowhere"},
    ],
)
def test_a_webhook_that_cannot_be_is_refused(house: House, wrong: dict[str, str]) -> None:
    answer = house.http.post("/webhooks", data={**FORM, **wrong}, headers=ASKING)
    assert answer.status_code in (404, 422) and "Nothing was changed" in answer.text
    assert house.http.get("/v1/webhooks").json()["items"] == []


def test_a_webhook_is_disabled_and_enabled_with_reasons(hooked: House) -> None:
    assert "sent nothing but tests" in text_of(hooked.http.get("/webhooks/1/disable", headers=PART))
    assert hooked.http.post("/webhooks/1/disable", data={"reason": " "}, headers=ASKING).status_code == 422
    assert "is disabled" in move(hooked, "disable", reason="the receiver moves")
    page = text_of(hooked.http.get("/webhooks/1"))
    assert "“the receiver moves”" in page and "Enable…" in page and "Disable…" not in page
    assert "Skip what it missed" in text_of(hooked.http.get("/webhooks/1/enable", headers=PART))
    assert "is enabled" in move(hooked, "enable", reason="moved", skip_missed="yes")
    hook = hooked.http.get("/v1/webhooks/1").json()
    assert hook["enabled"] and hook["sent_through"] == hooked.http.get("/v1/audit/head").json()["size"] - 1


def test_a_secret_is_rotated(hooked: House) -> None:
    assert "1 day" in text_of(hooked.http.get("/webhooks/1/rotate", headers=PART))
    (before,) = webhooks.get_webhook(hooked.store, 1).secrets
    done = move(hooked, "rotate", days="7")
    (shown,) = re.findall(r"whsec_[\w+/=]+", done)
    new, former = webhooks.get_webhook(hooked.store, 1).secrets
    assert new.text == shown and former.text == before.text != shown
    assert hooked.http.post("/webhooks/1/rotate", data={"days": "3"}, headers=ASKING).status_code == 422


def test_a_test_is_seen_among_deliveries_and_sent_again(hooked: House) -> None:
    assert "has not been told anything" in text_of(hooked.http.get("/webhooks/1"))
    assert "A test waits" in move(hooked, "test")
    page = hooked.http.get("/webhooks/1")
    assert "webhook.test" in text_of(page) and "waiting" in text_of(page) and "every 5s" in page.text
    with hooked.store.transaction(WORKER) as tx:
        (pending,) = tx.webhooks.pending(tx.webhooks.webhook(1))
        tx.webhooks.settle(pending, None, DeliveryState.FAILED)
    page = hooked.http.get("/webhooks/1?state=failed")
    assert "every 5s" not in page.text
    (path,) = set(re.findall(r'href="(/webhooks/1/deliveries/\d+/redeliver)"', page.text))
    assert "webhook.test is sent to https://hooks.example.com again" in text_of(hooked.http.get(path, headers=PART))
    assert "waits to be sent" in text_of(hooked.http.post(path, headers=ASKING))
    assert hooked.http.get("/v1/webhooks/1/deliveries?state=pending").json()["items"] != []
    assert "webhook.test" not in text_of(hooked.http.get("/webhooks/1?state=delivered"))


def test_deliveries_are_paged(hooked: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooking, "ROWS", 1)
    for _ in range(2):
        move(hooked, "test")
    first = hooked.http.get("/webhooks/1").text
    older = html.unescape(re.findall(r'href="([^"]+before=\d+)"', first)[-1])
    shown = re.compile(r'id="redeliver-(\d+)"')
    assert shown.findall(first) != shown.findall(hooked.http.get(older).text)
    part = hooked.http.get(older, headers={**PART, "HX-Target": "webhook"}).text
    assert part.lstrip().startswith('<div id="webhook"') and "before=" in part


def test_a_webhook_is_deleted(hooked: House) -> None:
    assert "cannot be brought back" in text_of(hooked.http.get("/webhooks/1/delete", headers=PART))
    assert "Webhook 1 to https://hooks.example.com is deleted" in move(hooked, "delete")
    assert hooked.http.get("/webhooks/1", headers=BROWSER).status_code == 404
    assert hooked.http.get("/webhooks/1/delete", headers=BROWSER).status_code == 404


def test_what_cannot_be_asked_is_refused(hooked: House) -> None:
    for path in ("/webhooks/1/explode", "/webhooks/1?state=odd", "/webhooks/0", "/webhooks?after=x"):
        assert hooked.http.get(path, headers=BROWSER).status_code in (404, 422), path


def test_webhooks_are_for_administrators(hooked: House) -> None:
    sign_in(hooked, key_of(hooked, "reader-1", Scope.READ, Scope.AUDIT))
    assert 'href="/webhooks"' not in hooked.http.get("/").text
    for path in ("/webhooks", "/webhooks/new", "/webhooks/1", "/webhooks/1/test"):
        assert hooked.http.get(path, headers=BROWSER).status_code == 403
    for path in ("/webhooks", "/webhooks/1/test", "/webhooks/1/deliveries/1/redeliver"):
        assert hooked.http.post(path, data=FORM, headers=ASKING).status_code == 403
        assert hooked.http.post(path, data=FORM, headers={"Origin": "https://evil.example"}).status_code == 403
