"""The page of keys: what it shows, what its forms make and end, and where the text of a key stands."""

from __future__ import annotations

import html
import re

import pytest

from app.api.routes import keying
from app.domain import Scope
from tests.api.conftest import House
from tests.api.test_pages import BROWSER, PART, SAME, key_of, sign_in, text_of

FORM = {"name": "line-3", "scope": ["read", "ingest"], "models": "", "days": "30"}


@pytest.fixture
def admin(house: House) -> House:
    """A service with a model, whose browser is signed in with a key that may do everything."""
    house.create()
    sign_in(house, key_of(house, "anna", Scope.ADMIN))
    return house


def test_a_key_is_shown_once(admin: House) -> None:
    question = text_of(admin.http.get("/keys/new", headers=PART))
    assert "Make a key" in question and "send megabatches" in question and "This service is open" not in question
    answer = admin.http.post("/keys", data={**FORM, "models": "gas"}, headers={**SAME, **PART})
    (text,) = set(re.findall(r"esp_\w+_[\w-]+", text_of(answer)))
    assert f'data-copy="{text}"' in answer.text
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["HX-Trigger"] == "espalier-changed"
    page = admin.http.get("/keys")
    assert text not in page.text
    for said in ("line-3", "made by anna", "valid", "read, ingest", "gas"):
        assert said in text_of(page), said
    made = admin.http.get("/v1/keys/line-3").json()
    assert (made["scopes"], made["models"]) == (["ingest", "read"], ["gas"]) and made["expires_at"] is not None
    bearer = {"Authorization": f"Bearer {text}"}
    admin.http.cookies.clear()
    assert admin.http.get("/v1/models/gas", headers=bearer).status_code == 200


def test_the_first_key_closes_the_service_and_is_not_lost_by_that(house: House) -> None:
    assert "No keys yet" in text_of(house.http.get("/keys"))
    assert "This service is open" in text_of(house.http.get("/keys/new", headers=PART))
    answer = house.http.post("/keys", data={**FORM, "scope": "admin", "days": "0"}, headers={**SAME, **PART})
    assert "HX-Trigger" not in answer.headers
    (text,) = set(re.findall(r"esp_\w+_[\w-]+", text_of(answer)))
    assert house.http.get("/keys", headers=BROWSER, follow_redirects=False).status_code == 303
    sign_in(house, text)
    assert "line-3" in text_of(house.http.get("/keys"))


@pytest.mark.parametrize(
    "wrong",
    [{"name": "Line 3"}, {"name": ""}, {"scope": []}, {"scope": "root"}, {"days": "7"}, {"models": "nowhere"}],
)
def test_a_key_that_cannot_be_is_refused(admin: House, wrong: dict[str, object]) -> None:
    answer = admin.http.post("/keys", data={**FORM, **wrong}, headers={**SAME, **PART})
    assert answer.status_code in (404, 422) and "Nothing was changed" in answer.text
    assert [key["name"] for key in admin.http.get("/v1/keys").json()["items"]] == ["anna"]


def test_a_key_is_revoked_with_a_reason(admin: House) -> None:
    key_of(admin, "old", Scope.READ)
    assert "refused at once" in text_of(admin.http.get("/keys/old/revoke", headers=PART))
    nothing = admin.http.post("/keys/old/revoke", data={"reason": " "}, headers={**SAME, **PART})
    assert nothing.status_code == 422 and admin.http.get("/v1/keys/old").json()["revoked_at"] is None
    done = admin.http.post("/keys/old/revoke", data={"reason": "<b>lost</b>"}, headers={**SAME, **PART})
    assert "The key old is revoked" in text_of(done)
    page = admin.http.get("/keys")
    assert "revoked" in text_of(page) and "&lt;b&gt;lost" in page.text and 'href="/keys/old/revoke"' not in page.text


def test_whoever_revokes_their_own_key_is_told(admin: House) -> None:
    assert "you will be signed out" in text_of(admin.http.get("/keys/anna/revoke", headers=PART))
    admin.http.post("/keys/anna/revoke", data={"reason": "leaving"}, headers={**SAME, **PART}).raise_for_status()
    assert admin.http.get("/keys", headers=BROWSER, follow_redirects=False).status_code == 303


def test_keys_are_paged(admin: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keying, "ROWS", 1)
    key_of(admin, "ben", Scope.READ)
    first = admin.http.get("/keys").text
    assert "anna" in first and "revoke-ben" not in first
    after = html.unescape(re.findall(r'href="([^"]+after=[^"]+)"', first)[-1])
    assert "revoke-ben" in admin.http.get(after).text


def test_keys_are_for_administrators(admin: House) -> None:
    sign_in(admin, key_of(admin, "reader-1", Scope.READ, Scope.AUDIT))
    assert 'href="/keys"' not in admin.http.get("/").text
    for path in ("/keys", "/keys/new", "/keys/anna/revoke"):
        assert admin.http.get(path, headers=BROWSER).status_code == 403
    for path in ("/keys", "/keys/anna/revoke"):
        assert admin.http.post(path, data=FORM, headers={**SAME, **PART}).status_code == 403
        assert admin.http.post(path, data=FORM, headers={"Origin": "https://evil.example"}).status_code == 403
