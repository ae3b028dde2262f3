"""Start, keys, request ids, access log."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.application import create_app
from app.config import Settings
from app.errors import SchemaMismatch
from tests.api.conftest import House, TestClient, problem

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS")
WORDS = {"model": "gas", "ref": "champion", "alias": "champion", "upload": "ab", "key": "line"}
VISITS = {"/sign-in", "/preferences", "/static/1"}
"""The dashboard's door: what a browser without a session may ask for."""

KEY = {"Authorization": "Bearer a-long-key"}


def addresses(app: FastAPI) -> set[str]:
    """Every path of the application, with its parameters filled in."""
    found: set[str] = set()
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        path = getattr(route, "path", None)
        if path is not None:
            found.add(re.sub(r"\{(\w+)(?::path)?\}", lambda named: WORDS.get(named[1], "1"), path))
    return found


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "espalier.example"])
def test_refuses_an_address_that_others_reach_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="ESPALIER_API_KEY"):
        create_app(Settings(data_dir=tmp_path, host=host))
    create_app(Settings(data_dir=tmp_path, host=host, api_key="k"))


def test_refuses_to_start_on_a_database_without_its_schema(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path))
    with pytest.raises(SchemaMismatch, match="espalier migrate"), TestClient(app):
        pytest.fail("it started")


def test_every_address_and_method_needs_the_key(locked_house: House) -> None:
    paths = addresses(locked_house.app) - {"/livez", "/readyz", "/v1/session", *VISITS}
    assert {"/", "/openapi.json", "/v1/models", "/v1/models/gas/versions/champion/checkpoint"} <= paths
    for path in sorted(paths | {"/nowhere", "/v1/models/gas/", "/livez/", "//livez", "/LIVEZ"}):
        for method in METHODS:
            answer = locked_house.http.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            if method != "HEAD":
                problem(answer, 401, "key-required")


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        "Bearer another",
        "Bearer a-long-ke",
        "Bearer a-long-key2",
        "Basic a-long-key",
        "a-long-key",
        "Bearer ключ",
    ],
)
def test_a_wrong_key_is_refused(locked_house: House, authorization: str) -> None:
    answer = locked_house.http.get("/v1/models", headers={"Authorization": authorization.encode()})
    assert problem(answer, 401, "key-required")["detail"]


def test_the_key_admits(locked_house: House) -> None:
    for authorization in ("Bearer a-long-key", "bearer a-long-key", "Bearer  a-long-key"):
        answer = locked_house.http.get("/v1/models", headers={"Authorization": authorization})
        assert answer.status_code == 200
    assert locked_house.http.post("/v1/models", json={"name": "gas"}, headers=KEY).status_code == 201
    entry = locked_house.http.get("/v1/audit", headers=KEY).json()["items"][-1]
    assert entry["actor"] == "key"


def test_health_answers_without_the_key(locked_house: House) -> None:
    assert locked_house.http.get("/livez").json() == {"status": "alive"}
    assert locked_house.http.get("/readyz").json()["status"] == "ready"
    assert locked_house.http.options("/v1/models").status_code == 401
    assert locked_house.http.options("/v1/models", headers=KEY).status_code == 405


def test_a_refused_upload_is_not_read(locked_house: House) -> None:
    def body() -> object:
        pytest.fail("the body was read")
        yield b""

    answer = locked_house.http.post("/v1/models/gas/megabatches", content=body(), headers={"Content-Length": "5"})
    problem(answer, 401, "key-required")


def test_a_page_of_another_origin_may_not_write(house: House) -> None:
    elsewhere = {"Origin": "https://evil.example"}
    problem(house.http.post("/v1/models", json={"name": "gas"}, headers=elsewhere), 403, "cross-origin")
    assert house.http.get("/v1/models", headers=elsewhere).json()["items"] == []
    here = {"Origin": "http://localhost:8000"}
    assert house.http.post("/v1/models", json={"name": "gas"}, headers=here).status_code == 201


@pytest.mark.parametrize("given", ["abc-123", "0af7651916cd43dd8448eb211c80319c", "x" * 128])
def test_a_sane_request_id_is_taken_up_and_audited(house: House, given: str) -> None:
    answer = house.http.post("/v1/models", json={"name": "gas"}, headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    assert house.http.get("/v1/audit").json()["items"][-1]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "{}", "-"])
def test_another_request_id_is_replaced(house: House, given: str) -> None:
    first, second = (house.http.get("/livez", headers={"X-Request-Id": given}).headers["X-Request-Id"] for _ in "12")
    assert re.fullmatch(r"[0-9a-f]{32}", first)
    assert first != second


def test_one_log_line_a_request_names_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app.api.access"):
        house.http.get("/v1/models/nowhere%0Aelse", headers={"X-Request-Id": "abc"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "app.api.access"]
    assert re.fullmatch(r"GET /v1/models/nowhere%0Aelse 422 \d+\.\d ms abc", line)


def test_no_documentation_pages_from_a_cdn(house: House) -> None:
    for path in ("/docs", "/redoc"):
        problem(house.http.get(path), 404, "not-found")


def test_two_applications_in_one_process_do_not_meet(settings: Settings) -> None:
    first = {(tuple(sorted(route.methods or ())), route.path) for route in every_route(create_app(settings))}
    second = every_route(create_app(settings))
    assert len(second) == len(first), "creating an application must not add routes to another"


def every_route(app: FastAPI) -> list[APIRoute]:
    found: list[APIRoute] = []
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute):
            found.append(route)
    return found


def test_the_api_process_stays_light() -> None:
    heavy = ["torch", "sklearn", "apscheduler", "app.service.training", "app.worker"]
    code = f"import sys, app.api.application; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
