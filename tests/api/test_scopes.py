"""Who may do what: every route and method, without a key, with each scope, and with a key for another model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Route
from starlette.websockets import WebSocketDisconnect

from app.api import application, scopes
from app.api.guard import Guard, flat
from app.api.scopes import ANY_KEY, FILTERED, SCOPES
from app.api.wire import Wire
from app.config import Settings
from app.domain import Actor, Scope
from app.service import access
from app.service.keyring import LOCAL
from app.store.database import Store
from app.store.migrate import migrate
from tests.api.conftest import OCTETS, House, opened, problem
from tests.api.test_polling import serving

DOOR = {"static_file", "sign_in_page", "sign_in_here", "set_preferences"}
"""How a browser without a session gets one."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "SPAM")
FILLED = {
    "model": "gas",
    "ref": "champion",
    "alias": "champion",
    "key": "nobody",
    "upload": "0" * 32,
    "webhook": "1",
    "delivery": "1",
}


def key_of(store: Store, name: str, *allowed: Scope, models: set[str] | None = None, **more: Any) -> str:
    """A new key's text."""
    only = None if models is None else frozenset(models)
    wanted = access.Wanted(name, frozenset(allowed), only, **more)
    return access.create_key(store, wanted, caller=LOCAL, actor=Actor("local")).text


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Guarded:
    """A service with two models, a key for each scope, and one for the other model."""

    house: House
    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("guarded"), requests_per_minute=0)
    migrate(settings.resolved_database_url)
    with opened(settings) as house:
        for name in ("gas", "other"):
            house.create(name).raise_for_status()
        keys = {scope.value: key_of(house.store, f"only-{scope.value}", scope) for scope in Scope}
        keys["other"] = key_of(
            house.store, "of-other", Scope.READ, Scope.INGEST, Scope.TRAIN, Scope.RELEASE, models={"other"}
        )
        yield Guarded(house, keys)


def every_route(app: FastAPI) -> list[Route]:
    return [route for route in flat(app.routes) if isinstance(route, Route)]


def filled(route: Route) -> str:
    numbered = re.sub(r"\{(number|seq|level|place:path|a|b)\}", "1", route.path)
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: FILLED.get(found[1], "x"), numbered)


def requests_of(app: FastAPI) -> list[tuple[str, str, str]]:
    """(route, method, path) of everything that the application answers."""
    return sorted({(route.name, method, filled(route)) for route in every_route(app) for method in route.methods or ()})


def unread() -> Iterator[bytes]:
    pytest.fail("the body was read")
    yield b""


def test_every_route_and_method_is_in_the_table(guarded: Guarded) -> None:
    names = {route.name for route in every_route(guarded.house.app)}
    assert names == set(SCOPES)
    document = guarded.house.http.get("/openapi.json", headers=bearer(guarded.keys["read"])).json()
    declared = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert declared <= names


def test_only_health_and_sign_in_are_open() -> None:
    assert {name for name, needs in SCOPES.items() if needs is None} == {"livez", "readyz", "sign_in", *DOOR}


def test_without_a_key_everything_is_401(guarded: Guarded) -> None:
    http = guarded.house.http
    known = {(method, path) for name, method, path in requests_of(guarded.house.app) if SCOPES[name] is not None}
    is_open = {(m, path) for name, m, path in requests_of(guarded.house.app) if SCOPES[name] is None}
    assert len(known) > 60
    paths = {path for _, path in known | is_open}
    strange = {"/nowhere", "/v1", "/v1/", "//", "//v1/models", "/v1//models", "/V1/MODELS", "/LIVEZ", "/livez/"}
    strange |= {"//livez", "/livez/../v1/models", "/v1/models%2Fgas", "/v1/models/%2e%2e/keys", "/v1/models/gas/"}
    strange |= {"/v1/models;/livez", "/livez%00", "/v1/keys%0a", "/docs", "/redoc", "/metrics", "/static/x", "/.git"}
    for path in paths | strange | {path + "/" for path in paths}:
        for method in METHODS:
            if (method, path) in is_open:
                continue
            answer = http.request(method, path, headers={"X-HTTP-Method-Override": "GET"})
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            if method != "HEAD":
                problem(answer, 401, "key-required")


def test_the_body_of_a_refused_request_is_not_read(guarded: Guarded) -> None:
    for key in (None, guarded.keys["audit"], guarded.keys["other"]):
        for name, method, path in requests_of(guarded.house.app):
            if method in ("GET", "HEAD", "OPTIONS") or SCOPES[name] in (None, ANY_KEY, Scope.AUDIT):
                continue
            if key == guarded.keys["other"] and "{upload}" in path:
                continue
            headers = {**OCTETS, "Content-Length": "5", "Idempotency-Key": "k", **(bearer(key) if key else {})}
            if key == guarded.keys["other"] and FILLED["upload"] in path:
                continue  # nobody's: 404
            answer = guarded.house.http.request(method, path, headers=headers, content=unread())
            assert answer.status_code == (403 if key else 401), (name, answer.text)


@pytest.mark.parametrize("scope", [scope.value for scope in Scope])
def test_a_scope_allows_exactly_what_the_table_says(guarded: Guarded, scope: str) -> None:
    for name, method, path in requests_of(guarded.house.app):
        if name in ("follow_events", "follow_model"):
            continue  # without an end; below
        needs = SCOPES[name]
        allowed = scope == "admin" or needs in (None, ANY_KEY, scope)
        answer = guarded.house.http.request(method, path, headers=bearer(guarded.keys[scope]))
        refused = answer.status_code == 403
        assert refused != allowed, (name, method, path, answer.status_code, answer.text)
        assert answer.status_code != 401 or name == "sign_in"
        if refused and method != "HEAD":
            assert problem(answer, 403, "scope-missing")["detail"]


def test_events_need_their_scope_too(guarded: Guarded) -> None:
    for path in ("/v1/events", "/v1/models/gas/events"):
        for scope in Scope:
            answer = guarded.house.http.head(path, headers=bearer(guarded.keys[scope.value]))
            assert answer.status_code == (200 if scope in (Scope.READ, Scope.ADMIN) else 403)


def test_a_key_for_another_model_sees_nothing_of_this_one(guarded: Guarded) -> None:
    key = bearer(guarded.keys["other"])
    for name, method, path in requests_of(guarded.house.app):
        if SCOPES[name] is None or name in FILTERED:
            continue
        answer = guarded.house.http.request(method, path, headers=key)
        nobodys = FILLED["upload"] in path
        wanted = 404 if nobodys else 403
        assert answer.status_code == wanted, (name, method, path, answer.text)
        there = path.replace("/models/gas", "/models/other")
        if there != path and "events" not in path and SCOPES[name] not in (Scope.ADMIN, Scope.AUDIT):
            answer = guarded.house.http.request(method, there, headers=key)
            assert answer.status_code != 403, (name, method, there, answer.text)


def test_a_key_for_one_model_is_refused_the_same_whether_a_model_exists(guarded: Guarded) -> None:
    key = bearer(guarded.keys["other"])
    answers = [guarded.house.http.get(f"/v1/models/{name}", headers=key).json() for name in ("gas", "nowhere")]
    for answer in answers:
        answer.pop("request_id")
    assert answers[0] == answers[1]


def test_a_key_for_one_model_lists_and_follows_that_one(guarded: Guarded) -> None:
    key, http = bearer(guarded.keys["other"]), guarded.house.http
    assert [model["name"] for model in http.get("/v1/models", headers=key).json()["items"]] == ["other"]
    assert ">other</a>" in http.get("/", headers=key).text
    assert ">gas</a>" not in http.get("/", headers=key).text
    problem(http.get("/v1/events?model=gas", headers=key), 403, "other-model")
    problem(http.post("/v1/models", json={"name": "third"}, headers=key), 403, "other-model")


def test_a_key_for_one_model_goes_on_with_its_uploads_alone(guarded: Guarded) -> None:
    http, tus = guarded.house.http, {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
    mine, whole = bearer(guarded.keys["other"]), bearer(guarded.keys["ingest"])
    for name, status in (("gas", 403), ("other", 204)):
        begun = http.post(f"/v1/models/{name}/uploads", headers={**whole, **tus})
        assert begun.status_code == 201
        path = begun.headers["Location"]
        for method in ("HEAD", "GET", "PATCH", "POST", "OPTIONS"):
            answer = http.request(method, path, headers={**mine, "Tus-Resumable": "1.0.0"})
            assert (answer.status_code == 403) == (status == 403), (name, method, answer.text)
        assert http.delete(path, headers={**mine, "Tus-Resumable": "1.0.0"}).status_code == status


def test_however_a_path_is_spelled_the_route_that_answers_decides(guarded: Guarded) -> None:
    """Whatever the router takes for ``POST /v1/keys``, a key without ``admin`` may not."""
    for path in ("/v1/keys", "/v1/keys%0a", "/v1%2Fkeys", "/%761/keys", "/v1/keys?x=/livez", "/v1/keys#/livez"):
        answer = guarded.house.http.post(path, json={}, headers=bearer(guarded.keys["read"]))
        assert answer.status_code == 403, path
    for path in ("/v1/keys/", "http://localhost:8000//v1/keys", "/v1//keys", "/V1/keys", "/v1/keys;x", "/v1/keys%20"):
        assert guarded.house.http.post(path, json={}, headers=bearer(guarded.keys["admin"])).status_code == 404, path


def test_the_guard_means_the_route_that_answers(guarded: Guarded) -> None:
    """It tries the likely routes alone; that must never change which one is found."""
    app = guarded.house.app
    guard, routes = Guard(app.routes), every_route(app)
    paths = {path for _, _, path in requests_of(app)}
    paths |= {path + end for path in paths for end in ("/", "\n", "/x", "%", "\n\n")} | {
        "",
        "/",
        "//",
        "\n",
        "/v1/models/\n",
    }
    for method in METHODS:
        for path in paths:
            scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
            meant = [route.name for route in routes if route.matches(scope)[0] is Match.FULL]
            assert guard.place(scope).name == (meant[0] if meant else ""), (method, path)
            behind = {**scope, "path": "/behind" + path, "root_path": "/behind"}
            assert guard.place(behind).name == guard.place(scope).name


def test_what_is_not_there_is_the_same_for_every_key(guarded: Guarded) -> None:
    for key in guarded.keys.values():
        problem(guarded.house.http.get("/nowhere", headers=bearer(key)), 404, "not-found")
        problem(guarded.house.http.patch("/v1/models", headers=bearer(key)), 405, "method-not-allowed")


@pytest.mark.parametrize("http", [Wire, "h11"], ids=["wire", "h11"])
def test_polls_from_memory_ask_for_the_same(settings: Settings, http: Any) -> None:
    paths = ("/v1/models/gas/versions/champion", "/v1/models/gas/versions/1", "/v1/models/gas/aliases/champion")
    with opened(settings) as house:
        for name in ("gas", "other"):
            house.create(name)
        house.publish()
        keys = {scope: key_of(house.store, f"only-{scope.value}", scope) for scope in Scope}
        mine = key_of(house.store, "mine", Scope.READ, models={"gas"})
        others = key_of(house.store, "others", Scope.READ, models={"other"})
        admin = bearer(keys[Scope.ADMIN])
        with serving(settings, http) as served, httpx.Client(base_url=served.url) as client:
            for path in paths:
                for _ in range(2):
                    assert client.get(path, headers=admin).status_code == 200
                tag = client.get(path, headers=admin).headers["ETag"]
                assert served.app.state.polls.at(path) is not None
                for given in ({}, {"If-None-Match": tag}, {"Prefer": "wait=1"}):
                    assert client.get(path, headers=given).status_code == 401
                    assert client.get(path, headers={**given, **bearer(others)}).status_code == 403
                    assert client.get(path, headers={**given, **bearer(mine)}).status_code in (200, 304)
                    for scope, key in keys.items():
                        allowed = scope in (Scope.READ, Scope.ADMIN)
                        answer = client.get(path, headers={**given, **bearer(key)})
                        assert (answer.status_code in (200, 304)) == allowed, (path, scope)
                        assert allowed or answer.status_code == 403
            house.http.post("/v1/keys/mine/revoke", json={"reason": "gone"}, headers=admin).raise_for_status()
            served.app.state.polls.catch_up()
            assert client.get(paths[0], headers=bearer(mine)).status_code == 401


def test_polls_from_memory_know_when_a_key_is_over(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/v1/models/gas/versions/champion"
    with opened(settings) as house:
        house.create()
        house.publish()
        with serving(settings) as served, httpx.Client(base_url=served.url) as client:
            store: Store = served.app.state.store
            key = key_of(store, "short", Scope.READ, expires_at=store.clock() + timedelta(hours=1))
            limited = key_of(store, "slow", Scope.READ, requests_per_minute=3)
            assert [client.get(path, headers=bearer(limited)).status_code for _ in range(5)] == [200] * 3 + [429] * 2
            assert client.get(path, headers=bearer(key)).status_code == 200
            clock = store.clock
            monkeypatch.setattr(store, "clock", lambda: clock() + timedelta(hours=2))
            assert client.get(path, headers=bearer(key)).status_code == 401


# -- the application does not start with a hole ------------------------------------------------------------------------


def test_a_route_without_a_scope_keeps_the_service_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = APIRouter()

    @added.get("/v1/backdoor")
    def backdoor() -> str:
        return "in"

    monkeypatch.setattr(application, "_ROUTERS", [*application._ROUTERS, added])
    with pytest.raises(ValueError, match="backdoor"):
        application.create_app(Settings(data_dir=tmp_path))


def test_a_scope_without_a_route_keeps_the_service_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "SCOPES", {**SCOPES, "gone": Scope.READ})
    with pytest.raises(ValueError, match="gone"):
        application.create_app(Settings(data_dir=tmp_path))


def test_what_the_guard_cannot_read_keeps_the_service_from_starting() -> None:
    with pytest.raises(ValueError, match="no plain route"):
        Guard([Mount("/files", app=PlainTextResponse("x"))])


def test_get_and_head_of_a_path_need_the_same(guarded: Guarded) -> None:
    needs: dict[tuple[str, str], object] = {}
    for route in every_route(guarded.house.app):
        for method in route.methods or ():
            needs[method, route.path] = SCOPES[route.name]
    gets = [path for method, path in needs if method == "GET"]
    assert len(gets) > 30
    assert all(needs.get(("HEAD", path)) == needs["GET", path] for path in gets)


def test_nothing_but_http_comes_past_the_keys(still_house: House) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, still_house.http.websocket_connect("/v1/events"):
        pytest.fail("it was let in")
    assert refused.value.code == 1008
