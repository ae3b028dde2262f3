"""Decisions over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.config import Settings
from tests.api.conftest import House, opened, problem

PATH = "/v1/models/gas/decisions"
AT = "2030-03-02T09:30:00Z"


@pytest.fixture
def grown(house: House) -> House:
    house.create()
    house.publish(1)
    house.publish(2)
    return house


def digest(house: House, version: int = 1) -> str:
    return house.http.get(f"/v1/models/gas/versions/{version}").json()["checkpoint"]["digest"]


def batch(house: House, *answers: str, version: int = 1, **more: Any) -> dict[str, Any]:
    made = [{"version": version, "answer": answer, "made_at": AT, **more} for answer in answers]
    return {"checkpoints": {str(version): digest(house, version)}, "decisions": made}


def test_a_batch_is_kept_and_found(grown: House) -> None:
    body = batch(grown, "cat", "dog", confidence=0.25, example="line-3/7")
    answer = grown.http.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    kept = answer.json()
    assert (kept["count"], kept["last"] - kept["first"]) == (2, 1)
    found = grown.http.get(PATH, params={"example": "line-3/7", "version": 1}).json()
    assert [item["answer"] for item in found["items"]] == ["dog", "cat"]
    one = found["items"][0]
    assert (one["checkpoint"], one["confidence"], one["made_at"]) == (digest(grown), 0.25, AT)
    (entry,) = grown.http.get("/v1/audit", params={"kind": "decisions.recorded"}).json()["items"]
    assert entry["document"]["parameters"]["digest"] == kept["digest"]
    first = grown.http.get(PATH, params={"limit": 1}).json()
    rest = grown.http.get(PATH, params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == [kept["last"], kept["first"]]


def test_the_same_batch_under_one_key_is_kept_once(grown: House) -> None:
    body = batch(grown, "cat")
    answers = [grown.http.post(PATH, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert len(grown.http.get(PATH).json()["items"]) == 1
    body["decisions"][0]["answer"] = "dog"
    problem(grown.http.post(PATH, json=body, headers={"Idempotency-Key": "k"}), 422, "idempotency-key-reused")


def test_one_wrong_stamp_refuses_all(grown: House) -> None:
    good, other = batch(grown, "cat"), batch(grown, "dog", version=2)
    mixed = {
        "checkpoints": {"1": digest(grown), "2": digest(grown, 1)},
        "decisions": good["decisions"] + other["decisions"],
    }
    problem(grown.http.post(PATH, json=mixed), 422, "invalid-stamp")
    unknown = {"checkpoints": {"1": digest(grown), "9": digest(grown)}, "decisions": [{"version": 9, "answer": "cat"}]}
    problem(grown.http.post(PATH, json=unknown), 422, "invalid-stamp")
    problem(grown.http.post(PATH, json={**good, "checkpoints": {}}), 422, "invalid-stamp")
    problem(grown.http.post("/v1/models/air/decisions", json=good), 404, "unknown-model")
    assert grown.http.get(PATH).json()["items"] == []
    assert grown.http.get("/v1/audit", params={"kind": "decisions.recorded"}).json()["items"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": ""},
        {"answer": "x" * 256},
        {"answer": "cat", "confidence": 1.5},
        {"answer": "cat", "confidence": -0.1},
        {"answer": "cat", "made_at": "2030-03-02T09:30:00"},
        {"answer": "cat", "made_at": 1494012000},
        {"answer": "cat", "made_at": "0001-01-01T00:00:00+23:59"},
        {"answer": "cat", "example": "x" * 256},
        {"answer": "cat", "verdict": "guilty"},
        {"answer": 3},
        {},
    ],
)
def test_decisions_that_are_none(grown: House, wrong: dict[str, Any]) -> None:
    body = {"checkpoints": {"1": digest(grown)}, "decisions": [{"version": 1, **wrong}]}
    problem(grown.http.post(PATH, json=body), 422, "invalid-request")


def test_batches_that_are_none(grown: House) -> None:
    stamps = {"1": digest(grown)}
    many = {"checkpoints": stamps, "decisions": [{"version": 1, "answer": "c"}] * 10_001}
    assert grown.http.post(PATH, json=many).status_code == 422
    problem(grown.http.post(PATH, json={"checkpoints": stamps, "decisions": []}), 422, "invalid-request")
    problem(
        grown.http.post(PATH, content=b"[NaN]", headers={"Content-Type": "application/json"}), 400, "malformed-json"
    )
    heavy = json.dumps({"checkpoints": stamps, "decisions": [{"version": 1, "answer": "c" * 255}] * 10_000})
    problem(grown.http.post(PATH, content=heavy, headers={"Content-Type": "application/json"}), 413, "body-too-large")
    for query in (
        "version=-1",
        "since=yesterday",
        "since=0.0",
        "since=1494012000",
        "until=2026-03-02",
        "until=0001-01-01T00:00:00%2B23:59",
        "limit=0",
    ):
        problem(grown.http.get(f"{PATH}?{query}"), 422, "invalid-request")
    problem(grown.http.get(PATH, params={"cursor": "ZGVjaXNpb25zOjk"}), 400, "invalid-cursor")


def test_ten_thousand_at_once(grown: House) -> None:
    body = {"checkpoints": {"1": digest(grown)}, "decisions": [{"version": 1, "answer": "c"}] * 10_000}
    assert grown.http.post(PATH, json=body).json()["count"] == 10_000


def test_decisions_need_a_key_that_may_ingest(settings: Settings) -> None:
    with opened(Settings(**{**settings.model_dump(), "api_key": "a-long-key"})) as house:
        admin = {"Authorization": "Bearer a-long-key"}
        house.http.post("/v1/models", json={"name": "gas"}, headers=admin).raise_for_status()
        made = house.http.post("/v1/keys", json={"name": "reads", "scopes": ["read"]}, headers=admin).json()
        reads = {"Authorization": f"Bearer {made['key']}"}
        problem(house.http.post(PATH, json={}, headers=reads), 403, "scope-missing")
        assert house.http.get(PATH, headers=reads).status_code == 200
        problem(house.http.get(PATH), 401, "key-required")
