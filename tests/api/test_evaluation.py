"""The evaluation set over HTTP: the same bodies, limits and problems as an upload of a megabatch has."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from httpx import Response

from espalier.formats import megabatch
from tests.api.conftest import OCTETS, WORKER, House, content_digest, examples, problem, upload_bytes

PATH = "/v1/models/gas/evaluation-set"


@pytest.fixture(autouse=True)
def _gas(house: House) -> Iterator[None]:
    house.create(input={"classes": 3, "shape": [4], "dtype": "float32"})
    yield
    assert house.staged() == [], "something stayed in staging"


def never() -> Iterator[bytes]:
    pytest.fail("the body was read")
    yield b""


def put(house: House, data: bytes | None = None, name: str = "gas", **headers: str) -> Response:
    body = upload_bytes(9) if data is None else data
    return house.http.put(f"/v1/models/{name}/evaluation-set", content=body, headers={**OCTETS, **headers})


def test_a_set_is_put_replaced_and_looked_at(house: House) -> None:
    problem(house.http.get(PATH), 404, "unknown-evaluation-set")
    first = put(house)
    assert first.status_code == 201 and "Idempotency-Replayed" not in first.headers
    body = first.json()
    assert body["histogram"] == {"0": 8, "1": 8, "2": 8}
    assert (body["revision"], body["examples"], body["shape"], body["overlap"]) == (1, 24, [4], 0)
    assert body["digest"] == megabatch.arrays_digest(*examples(9))
    assert house.http.get(PATH).json() == body
    packed = io.BytesIO()
    np.savez_compressed(packed, **dict(zip("xy", examples(9), strict=True)))
    again = put(house, packed.getvalue())
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert again.json() == body
    other = put(house, upload_bytes(8))
    assert (other.status_code, other.json()["revision"]) == (200, 2)
    assert "Idempotency-Replayed" not in other.headers
    kinds = [e["kind"] for e in house.http.get("/v1/audit?model=gas").json()["items"]]
    assert kinds.count("evaluation.set") == 2


def test_megabatches_show_what_is_in_it(house: House) -> None:
    assert house.upload(1).json()["evaluation_overlap"] is None
    x, y = examples(1)
    assert put(house, megabatch.encode(x[:10], y[:10])).json()["overlap"] == 10
    assert house.http.get("/v1/models/gas/megabatches/1").json()["evaluation_overlap"] == 10
    assert house.upload(2).json()["evaluation_overlap"] == 0


def test_its_problems_are_those_of_an_upload(house: House) -> None:
    problem(put(house, name="other"), 404, "unknown-model")
    problem(put(house, b"not npz"), 422, "invalid-megabatch")
    problem(put(house, upload_bytes()[:-50]), 422, "invalid-megabatch")
    x, y = examples()
    assert problem(put(house, megabatch.encode(x, y + 1)), 422, "invalid-megabatch")["reason"] == "label-out-of-range"
    assert problem(put(house, megabatch.encode(x[:, :3], y)), 422, "invalid-megabatch")["reason"] == "wrong-shape"
    problem(put(house, **{"Content-Digest": content_digest(b"other")}), 400, "digest-mismatch")
    problem(put(house, **{"Content-Length": "3"}), 400, "length-mismatch")
    assert put(house, **{"Content-Digest": content_digest(upload_bytes(9))}).status_code == 201


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"Content-Type": "application/json"}, 415, "unsupported-media-type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"Content-Length": "262145"}, 413, "upload-too-large"),
        ({"Content-Digest": "sha-256"}, 400, "malformed-header"),
    ],
)
def test_what_the_headers_rule_out_is_not_read(house: House, headers: dict[str, str], status: int, slug: str) -> None:
    problem(house.http.put(PATH, content=never(), headers={**OCTETS, **headers}), status, slug)


def test_without_a_known_input_it_is_refused_unread_with_the_remedy(house: House) -> None:
    house.create("open")
    answer = house.http.put("/v1/models/open/evaluation-set", content=never(), headers=OCTETS)
    told = problem(answer, 409, "input-unknown")["detail"]
    assert "upload a megabatch first" in told and "input.shape" in told
    house.upload(1, name="open")
    assert put(house, name="open").status_code == 201


def test_a_cycle_shows_which_set_it_pinned(house: House) -> None:
    house.upload(1)
    put(house)
    assert house.http.get("/v1/models/gas/cycles/1").json()["evaluation_revision"] is None
    with house.store.transaction(WORKER) as tx:
        assert tx.ledger.claim_cycle("worker-1", 60) is not None
        tx.audit.append("cycle.started", model="gas")
    assert house.http.get("/v1/models/gas/cycles/1").json()["evaluation_revision"] == 1


def test_it_needs_the_key(locked_house: House) -> None:
    problem(put(locked_house), 401, "key-required")
    problem(locked_house.http.get(PATH), 401, "key-required")
