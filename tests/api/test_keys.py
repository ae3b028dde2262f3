"""Keys and sessions over HTTP; the headers of every answer; what is never written anywhere."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.api.middleware import COOKIE
from app.api.wire import Wire
from app.config import Settings
from app.domain import Scope
from app.service.access import keys_exist
from app.store.migrate import migrate
from app.store.tables import idempotency_keys
from app.worker.logs import UtcFormatter
from tests.api.conftest import OCTETS, House, opened, problem
from tests.api.test_polling import serving, until, waiting
from tests.api.test_scopes import bearer, key_of

HERE = {"Origin": "http://localhost:8000"}
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@pytest.fixture
def admin(house: House) -> dict[str, str]:
    """The header of the first key."""
    return bearer(key_of(house.store, "admin", Scope.ADMIN))


@dataclass
class Closed:
    """A service for requests that change nothing, with a key that may do all, and a browser that is signed in."""

    house: House
    admin: dict[str, str]
    cookie: dict[str, str]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("closed"))
    migrate(settings.resolved_database_url)
    with opened(settings) as house:
        admin = bearer(key_of(house.store, "admin", Scope.ADMIN))
        person = key_of(house.store, "person", Scope.READ, Scope.TRAIN)
        session = house.http.post("/v1/session", json={"key": person}).cookies[COOKIE]
        house.http.cookies.clear()
        yield Closed(house, admin, {"Cookie": f"{COOKIE}={session}"})


def created(house: House, admin: dict[str, str], **body: Any) -> Any:
    answer = house.http.post("/v1/keys", json={"name": "line-3", "scopes": ["read"], **body}, headers=admin)
    assert answer.status_code == 201, answer.text
    return answer.json()


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_and_revoked(house: House, admin: dict[str, str]) -> None:
    house.http.post("/v1/models", json={"name": "gas"}, headers=admin).raise_for_status()
    ends = (datetime.now(UTC) + timedelta(days=90)).isoformat()
    made = created(house, admin, scopes=["read", "ingest"], models=["gas"], expires_at=ends, requests_per_minute=600)
    text = made.pop("key")
    assert re.fullmatch(r"esp_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", text)
    assert (made["scopes"], made["models"], made["created_by"]) == (["ingest", "read"], ["gas"], "admin")
    assert house.http.get("/v1/keys/line-3", headers=admin).json() == made
    listed = house.http.get("/v1/keys", headers=admin).json()["items"]
    assert [key["name"] for key in listed] == ["admin", "line-3"]
    assert text not in json.dumps(listed)
    mine = house.http.get("/v1/session", headers=bearer(text)).json()
    assert (mine["name"], mine["scopes"], mine["models"]) == ("line-3", ["ingest", "read"], ["gas"])
    ended = house.http.post("/v1/keys/line-3/revoke", json={"reason": "lost"}, headers=admin).json()
    assert ended["revoked_reason"] == "lost"
    problem(house.http.get("/v1/models", headers=bearer(text)), 401, "key-required")
    entries = house.http.get("/v1/audit", headers=admin).json()["items"]
    assert [entry["kind"] for entry in entries if entry["kind"].startswith("key.")] == [
        "key.created",
        "key.created",
        "key.revoked",
    ]


def test_the_name_of_a_key_is_the_actor(house: House, admin: dict[str, str]) -> None:
    text = created(house, admin, name="pipeline", scopes=["train"])["key"]
    house.http.post("/v1/models", json={"name": "gas"}, headers=bearer(text)).raise_for_status()
    entry = house.http.get("/v1/audit?kind=model.created", headers=admin).json()["items"][0]
    assert entry["actor"] == "pipeline"


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"name": "worker-1"}, 422, "invalid-name"),
        ({"name": "UPPER"}, 422, "invalid-name"),
        ({"name": "a\u0000"}, 400, "malformed-json"),
        ({"name": "admin"}, 409, "key-name-taken"),
        ({"scopes": []}, 422, "invalid-request"),
        ({"scopes": ["everything"]}, 422, "invalid-request"),
        ({"models": []}, 422, "invalid-request"),
        ({"models": ["nowhere"]}, 404, "unknown-model"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 422, "bad-input"),
        ({"expires_at": "2020-01-01T00:00:00"}, 422, "invalid-request"),
        ({"requests_per_minute": -1}, 422, "invalid-request"),
        ({"hash": "x"}, 422, "invalid-request"),
    ],
)
def test_what_cannot_be_a_key_changes_nothing(closed: Closed, body: dict[str, Any], status: int, slug: str) -> None:
    house, admin = closed.house, closed.admin
    before = house.http.get("/v1/audit/head", headers=admin).json()
    answer = house.http.post("/v1/keys", json={"name": "line-3", "scopes": ["read"], **body}, headers=admin)
    problem(answer, status, slug)
    assert house.http.get("/v1/audit/head", headers=admin).json() == before


def test_a_key_that_is_not_there(house: House, admin: dict[str, str]) -> None:
    problem(house.http.get("/v1/keys/nobody", headers=admin), 404, "unknown-key")
    revoke = house.http.post("/v1/keys/nobody/revoke", json={"reason": "x"}, headers=admin)
    problem(revoke, 404, "unknown-key")


def test_an_idempotency_key_keeps_no_secret(house: House, admin: dict[str, str]) -> None:
    body, key = {"name": "line-3", "scopes": ["read"]}, {"Idempotency-Key": "once", **admin}
    text = house.http.post("/v1/keys", json=body, headers=key).json()["key"]
    problem(house.http.post("/v1/keys", json=body, headers=key), 409, "key-name-taken")
    session = house.http.post("/v1/session", json={"key": text}, headers={"Idempotency-Key": "two"})
    again = house.http.post("/v1/session", json={"key": text}, headers={"Idempotency-Key": "two"})
    assert session.cookies[COOKIE] != again.cookies[COOKIE]
    with house.store._engine.connect() as connection:
        assert connection.execute(sa.select(idempotency_keys)).all() == []


def test_a_service_that_was_open_is_closed_by_the_first_key(house: House) -> None:
    assert house.http.get("/v1/session").json()["name"] == "local"
    house.create().raise_for_status()
    text = house.http.post("/v1/keys", json={"name": "first", "scopes": ["admin"]}).json()["key"]
    problem(house.http.get("/v1/models"), 401, "key-required")
    assert house.http.get("/v1/models", headers=bearer(text)).status_code == 200
    house.http.post("/v1/keys/first/revoke", json={"reason": "x"}, headers=bearer(text)).raise_for_status()
    for headers in ({}, bearer(text)):
        problem(house.http.get("/v1/models", headers=headers), 401, "key-required")
    with opened(house.settings) as restarted:
        problem(restarted.http.get("/v1/models"), 401, "key-required")


def test_other_machines_are_let_near_a_service_with_created_keys(house: House) -> None:
    everywhere = Settings(**{**house.settings.model_dump(), "host": "0.0.0.0"})
    assert not keys_exist(everywhere)
    with pytest.raises(ValueError, match="espalier admin-key"), opened(everywhere):
        pytest.fail("it started")
    text = key_of(house.store, "first", Scope.ADMIN)
    assert keys_exist(everywhere)
    with opened(everywhere) as found:
        problem(found.http.get("/v1/models"), 401, "key-required")
        assert found.http.get("/v1/models", headers=bearer(text)).status_code == 200


def test_without_a_database_there_are_no_keys(tmp_path: Path) -> None:
    assert not keys_exist(Settings(data_dir=tmp_path))
    assert not keys_exist(Settings(data_dir=tmp_path, database_url="postgresql+psycopg://nobody@127.0.0.1:1/x"))


# -- two processes, and limits -----------------------------------------------------------------------------------------


def test_a_revocation_reaches_another_process(house: House, admin: dict[str, str]) -> None:
    text = created(house, admin)["key"]
    with serving(house.settings) as served, httpx.Client(base_url=served.url, headers=bearer(text)) as other:
        until(lambda: other.get("/v1/models").status_code == 200)
        with other.stream("GET", "/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("retry")
            house.http.post("/v1/keys/line-3/revoke", json={"reason": "lost"}, headers=admin).raise_for_status()
            told = list(lines)
        assert not [line for line in told if "key.revoked" in line], "it is told nothing more"
        assert other.get("/v1/models").status_code == 401


def test_a_long_poll_ends_with_its_key(house: House, admin: dict[str, str]) -> None:
    house.http.post("/v1/models", json={"name": "gas"}, headers=admin).raise_for_status()
    house.publish()
    house.publish(2)
    text = created(house, admin)["key"]
    path = "/v1/models/gas/versions/champion"
    with serving(house.settings) as served, ThreadPoolExecutor() as pool:
        tag = httpx.get(served.url + path, headers=bearer(text)).headers["ETag"]
        asked = {**bearer(text), "Prefer": "wait=25", "If-None-Match": tag}
        answered = pool.submit(httpx.get, served.url + path, headers=asked, timeout=30)
        until(lambda: waiting(served) == 1)
        house.http.post("/v1/keys/line-3/revoke", json={"reason": "lost"}, headers=admin).raise_for_status()
        alias = house.http.get("/v1/models/gas/aliases/champion", headers=admin).headers["ETag"]
        moved = house.http.post(
            "/v1/models/gas/rollback", json={"reason": "worse"}, headers={**admin, "If-Match": alias}
        )
        assert moved.status_code == 200, moved.text
        assert answered.result().status_code == 401


def test_a_key_that_asks_too_often_is_told_when_to_go_on(house: House, admin: dict[str, str]) -> None:
    text = created(house, admin, requests_per_minute=3)["key"]
    for _ in range(3):
        assert house.http.get("/v1/models", headers=bearer(text)).status_code == 200
    answer = house.http.get("/v1/models", headers=bearer(text))
    problem(answer, 429, "too-many-requests")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert house.http.get("/v1/models", headers=admin).status_code == 200


def test_wrong_keys_are_limited_by_address(settings: Settings) -> None:
    with opened(Settings(**{**settings.model_dump(), "api_key": "s3cret-key", "wrong_keys_per_minute": 5})) as house:
        for _ in range(5):
            problem(house.http.get("/v1/models", headers=bearer("wrong")), 401, "key-required")
        answer = house.http.get("/v1/models", headers=bearer("wrong"))
        problem(answer, 429, "too-many-requests")
        assert int(answer.headers["Retry-After"]) >= 1
        problem(house.http.post("/v1/session", json={"key": "wrong"}), 429, "too-many-requests")
        problem(house.http.get("/v1/models"), 401, "key-required")
        assert house.http.get("/livez").status_code == 200


# -- sessions ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(house: House, admin: dict[str, str]) -> Iterator[str]:
    """A browser that is signed in as ``person``; its cookie stays in the client."""
    text = created(house, admin, name="person", scopes=["read", "train"])["key"]
    answer = house.http.post("/v1/session", json={"key": text}, headers=HERE)
    assert answer.status_code == 200, answer.text
    yield answer.cookies[COOKIE]
    house.http.cookies.clear()


def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_cannot_use(house: House, admin: dict[str, str]) -> None:
    text = created(house, admin)["key"]
    for headers, secure in (({}, False), ({"X-Forwarded-Proto": "https"}, True)):
        answer = house.http.post("/v1/session", json={"key": text}, headers=headers)
        cookie = answer.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert ("Secure" in cookie) == secure
        assert re.search(r"Max-Age=(\d+)", cookie)[1] in {str(12 * 3600 - n) for n in range(30)}  # type: ignore[index]
        assert len(answer.cookies[COOKIE]) == 43 if not secure else True
        assert text not in answer.text and text not in cookie
        assert answer.json()["name"] == "line-3"
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_session_does_what_its_key_may(house: House, session: str) -> None:
    mine = house.http.get("/v1/session").json()
    assert (mine["name"], mine["scopes"]) == ("person", ["read", "train"]) and mine["expires_at"]
    assert house.http.get("/v1/models").status_code == 200
    problem(house.http.get("/v1/keys"), 403, "scope-missing")
    made = house.http.post("/v1/models", json={"name": "gas"}, headers=HERE)
    assert made.status_code == 201
    assert house.http.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8001"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {**HERE, "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://[::1"},
    ],
)
def test_a_session_changes_nothing_from_elsewhere(closed: Closed, headers: dict[str, str]) -> None:
    house, headers = closed.house, {**headers, **closed.cookie}
    problem(house.http.post("/v1/models", json={"name": "gas"}, headers=headers), 403, "cross-origin")
    problem(house.http.delete("/v1/session", headers=headers), 403, "cross-origin")
    assert house.http.get("/v1/models", headers=headers).json()["items"] == []


def test_a_page_may_also_say_where_it_is_from_by_fetch_metadata(house: House, session: str) -> None:
    answer = house.http.post("/v1/models", json={"name": "gas"}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 201


def test_a_key_beside_a_cookie_counts_and_needs_no_origin(house: House, admin: dict[str, str], session: str) -> None:
    assert house.http.get("/v1/session", headers=admin).json()["name"] == "admin"
    assert house.http.post("/v1/models", json={"name": "gas"}, headers=admin).status_code == 201
    problem(house.http.get("/v1/models", headers=bearer("wrong")), 401, "key-required")


def test_signing_out_ends_the_session(house: House, session: str) -> None:
    answer = house.http.delete("/v1/session", headers=HERE)
    assert answer.status_code == 204 and "Max-Age=0" in answer.headers["Set-Cookie"]
    house.http.cookies.set(COOKIE, session)
    problem(house.http.get("/v1/models"), 401, "key-required")


def test_a_session_ends_with_its_key_and_in_every_process(house: House, admin: dict[str, str], session: str) -> None:
    with opened(house.settings) as other:
        other.http.cookies.set(COOKIE, session)
        assert other.http.get("/v1/models").status_code == 200
        house.http.post("/v1/keys/person/revoke", json={"reason": "left"}, headers=admin).raise_for_status()
        problem(house.http.get("/v1/models"), 401, "key-required")
        problem(other.http.get("/v1/models"), 401, "key-required")


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "ключ", "a\x00b", "x" * 4000])
def test_a_session_that_is_none(closed: Closed, cookie: str) -> None:
    header = f"{COOKIE}={cookie}".encode()
    problem(closed.house.http.get("/v1/models", headers={"Cookie": header}), 401, "key-required")


@pytest.mark.parametrize(
    ("body", "status"), [({}, 422), ({"key": ""}, 422), ({"key": 5}, 422), ({"key": "wrong"}, 401), ([], 422)]
)
def test_who_cannot_sign_in(closed: Closed, body: Any, status: int) -> None:
    answer = closed.house.http.post("/v1/session", json=body)
    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers


def test_another_site_cannot_sign_a_browser_in(house: House, admin: dict[str, str]) -> None:
    text = created(house, admin)["key"]
    answer = house.http.post("/v1/session", json={"key": text}, headers={"Origin": "https://evil.example"})
    problem(answer, 403, "cross-origin")


def test_an_open_service_has_no_sessions(house: House) -> None:
    problem(house.http.post("/v1/session", json={"key": "x"}), 401, "key-required")


# -- an open service answers to its own names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1", "127.8.9.1:80", "[::1]:8000", "LOCALHOST:1", "localhost."]
)
def test_loopback_names_are_answered(still_house: House, host: str) -> None:
    assert still_house.http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::1", "10.0.0.1"]
)
def test_other_names_are_not(still_house: House, host: str) -> None:
    for path in ("/v1/models", "/", "/openapi.json", "/nowhere"):
        problem(still_house.http.get(path, headers={"Host": host}), 421, "misdirected")
    problem(still_house.http.post("/v1/models", json={"name": "x"}, headers={"Host": host}), 421, "misdirected")


@pytest.mark.parametrize("http", [Wire, "h11"], ids=["wire", "h11"])
def test_polls_from_memory_keep_to_their_names_too(house: House, http: Any) -> None:
    house.create()
    house.publish()
    path = "/v1/models/gas/versions/champion"
    with serving(house.settings, http) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(3):
            assert client.get(path).status_code == 200
            assert client.get(path, headers={"Host": "evil.example"}).status_code == 421


def test_with_a_key_any_name_will_do(locked_house: House) -> None:
    answer = locked_house.http.get("/v1/models", headers={"Host": "espalier.example", **bearer("a-long-key")})
    assert answer.status_code == 200


# -- headers -----------------------------------------------------------------------------------------------------------


def hardened(answer: httpx.Response, *, page: bool = False) -> None:
    """A page lets the browser say to its own forms where they come from; nothing else says it to anybody."""
    wanted = SECURITY | ({"Referrer-Policy": "same-origin"} if page else {})
    assert {name: answer.headers.get(name) for name in SECURITY} == wanted
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["Cache-Control"]
    for name in (*SECURITY, "Content-Security-Policy", "Cache-Control", "X-Request-Id"):
        assert len(answer.headers.get_list(name)) == 1, name


def test_every_answer_is_hardened(house: House) -> None:
    house.create()
    house.publish()
    for path in (
        *("/", "/livez", "/readyz", "/openapi.json", "/v1/models", "/v1/models/gas", "/v1/audit", "/nowhere"),
        *("/v1/models/gas/versions/1", "/v1/models/gas/versions/1/checkpoint", "/v1/models/gas/versions/champion"),
        *("/v1/models/UPPER", "/v1/models?limit=0", "/v1/models/gas/versions/1/checkpoint?format=dense"),
    ):
        for method in ("GET", "HEAD", "PATCH"):
            answer = house.http.request(method, path)
            hardened(answer, page=path == "/" and answer.is_success)
            assert "Strict-Transport-Security" not in answer.headers
    secure = house.http.get("/nowhere", headers={"X-Forwarded-Proto": "https"})
    assert secure.headers["Strict-Transport-Security"].startswith("max-age=")


def test_refusals_and_faults_are_hardened(locked_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    hardened(locked_house.http.get("/v1/models"))
    hardened(locked_house.http.post("/v1/models", headers=bearer("a-long-key")))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("app.service.models.list_models", fail)
    answer = locked_house.http.get("/v1/models", headers=bearer("a-long-key"))
    assert answer.status_code == 500
    hardened(answer)


@pytest.mark.parametrize("http", [Wire, "h11"], ids=["wire", "h11"])
def test_polls_from_memory_are_hardened(house: House, http: Any) -> None:
    house.create()
    house.publish()
    path = "/v1/models/gas/versions/champion"
    with serving(house.settings, http) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(3):
            answer = client.get(path)
            hardened(answer)
            hardened(client.get(path, headers={"If-None-Match": answer.headers["ETag"]}))
        secure = client.get(path, headers={"X-Forwarded-Proto": "https"})
        assert secure.headers["Strict-Transport-Security"].startswith("max-age=")


# -- what is never written ---------------------------------------------------------------------------------------------


def test_a_key_is_in_no_line_of_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "the-key-of-the-settings"
    with opened(Settings(**{**settings.model_dump(), "api_key": own})) as house:
        text = key_of(house.store, "admin", Scope.ADMIN)
        house.http.post("/v1/models", json={"name": "gas"}, headers=bearer(text)).raise_for_status()
        with caplog.at_level(logging.DEBUG):
            for key in (text, own):
                for path in (f"/v1/models/{key}", f"/{key}", f"/v1/models?limit={key}", f"/v1/audit?cursor={key}"):
                    house.http.get(path, headers=bearer(key))
                    house.http.get(path)
                house.http.post("/v1/session", json={"key": key})
                house.http.post("/v1/session", json={"key": [key]})
                house.http.post("/v1/session", content=key, headers={"Content-Type": "application/json"})
                house.upload(data=key.encode(), **bearer(key))
                house.http.get("/v1/models", headers={"Cookie": f"{COOKIE}={key}", "X-Request-Id": "r-1"})
                house.http.get("/v1/models", headers={"Authorization": f"Basic {key}"})

                def fail(*_: object, said: str = key, **__: object) -> None:
                    raise RuntimeError(f"something holds {said}")

                with monkeypatch.context() as patched:
                    patched.setattr("app.service.models.list_models", fail)
                    answer = house.http.get("/v1/models", headers=bearer(key))
                    assert answer.status_code == 500 and key not in answer.text
        formatter = UtcFormatter([own])
        lines = [
            formatter.format(record) for record in caplog.records if not record.name.startswith(("httpx", "httpc"))
        ]
        access = [record.getMessage() for record in caplog.records if record.name == "app.api.access"]
    secret = text.split("_", 2)[2]
    assert len(access) > 20
    for line in [*lines, *access]:
        assert secret not in line and own not in line, line
    assert any("Traceback" in line and "something holds [hidden]" in line for line in lines)


def test_settings_show_no_secret() -> None:
    found = Settings(api_key="s3cret-key", database_url="postgresql+psycopg://user:hidden-too@127.0.0.1/x")
    for shown in (
        repr(found),
        str(found),
        found.model_dump_json(include={"api_key"}),
        repr(found.model_dump()["api_key"]),
    ):
        assert "s3cret-key" not in shown and "hidden-too" not in shown


def test_an_upload_with_the_wrong_kind_of_key_is_not_taken(house: House, admin: dict[str, str]) -> None:
    house.http.post("/v1/models", json={"name": "gas"}, headers=admin).raise_for_status()
    text = created(house, admin)["key"]
    answer = house.http.post("/v1/models/gas/megabatches", content=b"x", headers={**OCTETS, **bearer(text)})
    problem(answer, 403, "scope-missing")
    assert house.staged() == []
