"""Idempotency keys: the first answer again, other content refused, nothing doubled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response

from app.domain import Actor
from app.service import replays
from tests.api.conftest import OCTETS, RECIPE, House, content_digest, problem, upload_bytes

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
PATH = "/v1/models/gas/megabatches"
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(autouse=True)
def _gas(house: House) -> None:
    house.create()


def same(first: Response, again: Response) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    for name in ("Location", "ETag", "Content-Type", "Upload-Offset"):
        assert again.headers.get(name) == first.headers.get(name)


def kinds(house: House) -> list[str]:
    return [entry["kind"] for entry in house.http.get("/v1/audit").json()["items"]]


def test_the_same_megabatch_under_one_key_gets_the_first_answer(house: House) -> None:
    first = house.upload(**KEY)
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    same(first, house.upload(**KEY))
    same(first, house.upload(**KEY, **{"Content-Digest": content_digest(upload_bytes())}))
    bare = {"Idempotency-Key": KEY["Idempotency-Key"].strip('"')}
    same(first, house.upload(**bare))
    problem(house.upload(2, **KEY), 422, "idempotency-key-reused")
    digest = {"Content-Digest": content_digest(upload_bytes(2))}
    problem(house.upload(2, **KEY, **digest), 422, "idempotency-key-reused")
    problem(house.upload(name="other", **KEY), 422, "idempotency-key-reused")
    assert house.upload(2, **{"Idempotency-Key": "another"}).json()["number"] == 2
    assert kinds(house).count("megabatch.accepted") == 2


def requests(house: House) -> Iterator[tuple[str, dict[str, Any]]]:
    version = house.publish(1).number
    house.publish(2)
    reason = {"json": {"reason": "because"}}
    yield "/v1/models", {"json": {"name": "new", "recipe": RECIPE}}
    yield f"{PATH}/1/pin", reason
    yield f"{PATH}/1/unpin", reason
    yield "/v1/models/gas/rollback", {**reason, "headers": house.revision()}
    yield f"/v1/models/gas/versions/{version + 1}/promote", {**reason, "headers": house.revision()}
    yield "/v1/models/gas/pause", reason
    yield "/v1/models/gas/resume", reason
    house._take_in(3, "gas")
    yield "/v1/models/gas/cycles", {"json": {}}
    yield "/v1/models/gas/uploads", {"headers": {**TUS, "Upload-Length": "5"}}


def test_every_post_that_changes_something_is_covered(house: House) -> None:
    for number, (path, given) in enumerate(requests(house)):
        key = {"Idempotency-Key": f"key-{number}"}
        headers = {**given.pop("headers", {}), **key}
        first = house.http.post(path, headers=headers, **given)
        assert first.is_success, (path, first.text)
        before = kinds(house)
        same(first, house.http.post(path, headers=headers, **given))
        assert kinds(house) == before, path
        if given.get("json"):
            other = {**given["json"], "reason": "another", "name": "another"}
            problem(house.http.post(path, headers=headers, json=other), 422, "idempotency-key-reused")


def test_a_key_belongs_to_its_actor(locked_house: House) -> None:
    with locked_house.store.transaction(Actor("somebody else")) as tx:
        tx.replays.claim("somebody else", "mine", tx.now + timedelta(hours=1))
    headers = {"Authorization": "Bearer a-long-key", "Idempotency-Key": "mine"}
    assert locked_house.http.post("/v1/models", json={"name": "own"}, headers=headers).status_code == 201


def test_while_the_first_request_runs_another_is_told_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert replays.claim(house.store, "running", actor=Actor("local")) is None
    answer = house.upload(**{"Idempotency-Key": "running"})
    problem(answer, 409, "idempotency-key-in-use")
    assert answer.headers["Retry-After"] == "1"
    clock = house.store.clock
    seconds = itertools.count(int(replays.CLAIM_SECONDS) - 2)
    monkeypatch.setattr(house.store, "clock", lambda: clock() + timedelta(seconds=next(seconds)))
    renewed = replays.CLAIM_SECONDS
    replays.renew(house.store, "running", actor=Actor("local"))
    problem(house.upload(**{"Idempotency-Key": "running"}), 409, "idempotency-key-in-use")
    monkeypatch.setattr(house.store, "clock", lambda: clock() + timedelta(seconds=2 * renewed + 10))
    assert house.upload(**{"Idempotency-Key": "running"}).status_code == 201, "whoever ran it is gone"


def test_a_refusal_is_not_kept(house: House) -> None:
    problem(house.upload(data=b"nonsense", **KEY), 422, "invalid-megabatch")
    problem(
        house.http.post(PATH, content=b"x", headers={**KEY, "Content-Type": "text/html"}), 415, "unsupported-media-type"
    )
    problem(house.http.post("/v1/models", json={"name": "UPPER"}, headers=KEY), 422, "invalid-name")
    assert house.upload(**KEY).status_code == 201


def test_an_answer_is_forgotten_after_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.upload(**KEY)
    clock = house.store.clock
    monkeypatch.setattr(house.store, "clock", lambda: clock() + timedelta(hours=25))
    assert house.upload(2, **KEY).status_code == 201


def test_an_effect_whose_answer_was_not_kept_is_found_by_its_natural_key(house: House) -> None:
    first = house.upload(**KEY)
    with house.store.transaction(Actor("tester")) as tx:  # as if killed between the effect and its answer
        tx.replays.claim("local", "other", tx.now)
    again = house.upload(**{"Idempotency-Key": "other"})
    assert (again.status_code, again.json()["number"]) == (200, first.json()["number"])
    assert kinds(house).count("megabatch.accepted") == 1


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb", "ключ"])
def test_a_key_that_is_none_is_refused(house: House, key: str) -> None:
    answer = house.http.post(PATH, content=upload_bytes(), headers={**OCTETS, "Idempotency-Key": key.encode()})
    problem(answer, 400, "malformed-header")


def test_a_json_body_over_the_limit_is_refused_as_ever(house: House) -> None:
    body = b'{"name": "' + b"x" * 1_100_000 + b'"}'
    headers = {**KEY, "Content-Type": "application/json"}
    problem(house.http.post("/v1/models", content=body, headers=headers), 413, "body-too-large")
