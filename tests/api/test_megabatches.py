"""Uploads: what is refused before and while reading, what is answered, and what stays behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from espalier.formats import megabatch
from tests.api.conftest import OCTETS, House, content_digest, examples, problem, upload_bytes

PATH = "/v1/models/gas/megabatches"


@pytest.fixture(autouse=True)
def _gas(house: House) -> Iterator[None]:
    house.create()
    yield
    assert house.staged() == [], "something stayed in staging"


def never() -> Iterator[bytes]:
    pytest.fail("the body was read")
    yield b""


def test_an_upload_is_answered_with_its_megabatch(house: House) -> None:
    answer = house.upload()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{PATH}/1"
    body = answer.json()
    assert body["histogram"] == {"0": 8, "1": 8, "2": 8}
    assert (body["number"], body["examples"], body["shape"], body["dtype"], body["cycle"]) == (1, 24, [4], "float32", 1)
    again = house.http.get(answer.headers["Location"]).json()
    assert again == {**body, "cycle": None}
    assert house.http.get("/v1/models/gas/cycles/1").json()["state"] == "queued"


def test_the_same_arrays_again_are_answered_with_the_first(house: House) -> None:
    first = house.upload().json()
    x, y = examples()
    packed = io.BytesIO()
    np.savez_compressed(packed, y=y, x=x)
    for data in (upload_bytes(), packed.getvalue()):
        answer = house.upload(data=data)
        assert (answer.status_code, answer.headers["Idempotency-Replayed"]) == (200, "true")
        assert answer.json() == {**first, "cycle": None}
        assert answer.headers["Location"] == f"{PATH}/1"
    assert len(house.http.get(PATH).json()["items"]) == 1


def test_declared_class_names_stand_in_the_histogram(house: House) -> None:
    house.create("named", input={"classes": ["ethanol", "ethylene", "acetone", "toluene"]})
    answer = house.upload(name="named")
    assert answer.json()["histogram"] == {"ethanol": 8, "ethylene": 8, "acetone": 8, "toluene": 0}


@pytest.mark.parametrize(
    "media", ["application/octet-stream", "application/x-npz", "application/zip", "Application/ZIP; x=1"]
)
def test_content_types(house: House, media: str) -> None:
    assert house.upload(**{"Content-Type": media}).status_code == 201


def test_no_content_type_at_all(house: House) -> None:
    assert house.http.post(PATH, content=upload_bytes()).status_code == 201


@pytest.mark.parametrize(
    "media", ["multipart/form-data; boundary=x", "application/json", "text/html", "image/png", "x"]
)
def test_other_content_types_are_refused_unread(house: House, media: str) -> None:
    answer = house.http.post(PATH, content=never(), headers={"Content-Type": media})
    assert "application/octet-stream" in problem(answer, 415, "unsupported-media-type")["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_encoded_bodies_are_refused_unread(house: House, encoding: str) -> None:
    answer = house.http.post(PATH, content=never(), headers={**OCTETS, "Content-Encoding": encoding})
    problem(answer, 415, "unsupported-media-type")


def test_an_unknown_model_is_refused_unread(house: House) -> None:
    problem(house.http.post("/v1/models/other/megabatches", content=never(), headers=OCTETS), 404, "unknown-model")
    answer = house.http.post("/v1/models/UPPER/megabatches", content=never(), headers=OCTETS)
    problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("length", ["262145", "99999999999999"])
def test_a_declared_length_over_the_limit_is_refused_unread(house: House, length: str) -> None:
    answer = house.http.post(PATH, content=never(), headers={**OCTETS, "Content-Length": length})
    assert "262144 bytes" in problem(answer, 413, "upload-too-large")["detail"]


@pytest.mark.parametrize("length", ["-1", "1e3", "", "9" * 30, "0x10"])
def test_a_length_that_is_none_is_refused_unread(house: House, length: str) -> None:
    answer = house.http.post(PATH, content=never(), headers={**OCTETS, "Content-Length": length})
    problem(answer, 400, "malformed-header")


def test_an_undeclared_length_over_the_limit_is_refused_while_reading(house: House) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(8192)

    problem(house.http.post(PATH, content=body(), headers=OCTETS), 413, "upload-too-large")


@pytest.mark.parametrize("declared", [1, -1])
def test_a_wrong_length_is_refused(house: House, declared: int) -> None:
    data = upload_bytes()
    answer = house.upload(data=data, **{"Content-Length": str(len(data) + declared)})
    problem(answer, 400, "length-mismatch")
    assert house.http.get(PATH).json()["items"] == []


def test_a_right_digest_is_accepted(house: House) -> None:
    data = upload_bytes()
    right = content_digest(data)
    assert house.upload(data=data, **{"Content-Digest": f"sha-512=:AAAA:, {right}; q=1"}).status_code == 201
    assert house.upload(data=data, **{"Content-Digest": "sha-512=:AAAA:"}).status_code == 200


def test_a_wrong_digest_is_refused(house: House) -> None:
    answer = house.upload(**{"Content-Digest": content_digest(b"something else")})
    assert "Content-Digest says sha256:" in problem(answer, 400, "digest-mismatch")["detail"]
    assert house.http.get(PATH).json()["items"] == []


@pytest.mark.parametrize("digest", ["sha-256", "sha-256=abc", "sha-256=:abc:", "sha-256=:!:", f"sha-256=:{'A' * 44}:"])
def test_a_digest_that_is_none_is_refused_unread(house: House, digest: str) -> None:
    answer = house.http.post(PATH, content=never(), headers={**OCTETS, "Content-Digest": digest})
    problem(answer, 400, "malformed-header")


@pytest.mark.parametrize("data", [b"", b"not npz", upload_bytes()[:-50]])
def test_bytes_that_are_no_megabatch(house: House, data: bytes) -> None:
    document = problem(house.upload(data=data), 422, "invalid-megabatch")
    assert document["reason"]
    assert house.http.get(PATH).json()["items"] == []


def test_listing_goes_on_from_its_cursor(house: House) -> None:
    for seed in range(1, 6):
        house.upload(seed)
    numbers: list[int] = []
    query = "?limit=2"
    for _ in range(3):
        page = house.http.get(PATH + query).json()
        numbers += [item["number"] for item in page["items"]]
        query = f"?limit=2&cursor={page['next_cursor']}"
    assert numbers == [1, 2, 3, 4, 5]
    assert page["next_cursor"] is None
    first = house.http.get(f"{PATH}?limit=2").json()["next_cursor"]
    problem(house.http.get(f"/v1/models/gas/cycles?cursor={first}"), 400, "invalid-cursor")


def test_uploads_at_once_are_all_kept(house: House) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(house.upload, [1, 2, 3, 1]))
    assert sorted(answer.status_code for answer in answers) == [200, 201, 201, 201]
    assert [item["number"] for item in house.http.get(PATH).json()["items"]] == [1, 2, 3]


def test_pins_are_set_and_lifted_with_a_reason(house: House) -> None:
    house.upload()
    reason = {"reason": "the rare failures of March"}
    assert house.http.get(f"{PATH}/1").json()["pinned"] is False
    for _ in range(2):
        answer = house.http.post(f"{PATH}/1/pin", json=reason)
        assert (answer.status_code, answer.json()["pinned"]) == (200, True)
    assert house.http.get(PATH).json()["items"][0]["pinned"] is True
    answer = house.http.post(f"{PATH}/1/unpin", json=reason)
    assert (answer.status_code, answer.json()["pinned"]) == (200, False)
    entries = house.http.get("/v1/audit?model=gas").json()["items"][-2:]
    assert [entry["kind"] for entry in entries] == ["megabatch.pinned", "megabatch.unpinned"]
    assert {entry["document"]["reason"] for entry in entries} == {reason["reason"]}


def test_a_pin_that_cannot_be_says_why(house: House) -> None:
    house.upload()
    for verb in ("pin", "unpin"):
        problem(house.http.post(f"{PATH}/2/{verb}", json={"reason": "x"}), 404, "unknown-megabatch")
        problem(house.http.post(f"/v1/models/other/megabatches/1/{verb}", json={"reason": "x"}), 404, "unknown-model")
        problem(house.http.post(f"{PATH}/1/{verb}", json={}), 422, "invalid-request")
        problem(house.http.post(f"{PATH}/1/{verb}", json={"reason": "x", "until": 3}), 422, "invalid-request")


def test_an_unseen_label_is_refused_with_both_remedies_or_extends_the_classes(house: House) -> None:
    house.upload()
    x, y = examples(2, classes=5)
    document = problem(house.upload(data=megabatch.encode(x, y)), 422, "invalid-megabatch")
    assert document["reason"] == "label-out-of-range"
    assert "label 4" in document["detail"]
    assert "input.classes" in document["detail"] and "input.unseen_classes" in document["detail"]
    created = house.create("grows", input={"classes": ["a", "b", "c"], "unseen_classes": "extend"}).json()
    assert created["input"]["unseen_classes"] == "extend"
    house.upload(name="grows")
    answer = house.upload(name="grows", data=megabatch.encode(x, y))
    assert answer.status_code == 201
    assert answer.json()["histogram"] == {"a": 5, "b": 5, "c": 5, "class-3": 5, "class-4": 4}
    assert house.http.get("/v1/models/grows/megabatches/1").json()["histogram"] == {
        "a": 8, "b": 8, "c": 8, "class-3": 0, "class-4": 0
    }  # fmt: skip
    assert house.http.get("/v1/models/grows").json()["input"]["classes"][-1] == "class-4"
    assert house.create("grows", input={"classes": ["a", "b", "c"], "unseen_classes": "extend"}).status_code == 200
    problem(house.create("wrong", input={"unseen_classes": "perhaps"}), 422, "invalid-request")
