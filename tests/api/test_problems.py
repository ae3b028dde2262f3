"""One shape for everything that goes wrong."""

from __future__ import annotations

import logging

import pytest
from httpx import Response

from app import errors
from app.api.problems import INTERNAL, TABLE, kind_of, problem_response
from tests.api.conftest import House, problem

JSON = {"Content-Type": "application/json"}


def post(house: House, body: bytes | str, path: str = "/v1/models", **headers: str) -> Response:
    return house.http.post(path, content=body, headers={**JSON, **headers})


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/model", "/v1/models/", "/nowhere", "/v1/models/a%2e%2e%2fb", "/%2e%2e%2fetc"]
)
def test_unknown_addresses(still_house: House, path: str) -> None:
    assert "/openapi.json" in problem(still_house.http.get(path), 404, "not-found")["detail"]


@pytest.mark.parametrize("name", ["UPPER", "a_b", "a%00b", "a%20b", "-a", "a" * 64, "%C3%A4", "..%00"])
def test_names_that_cannot_be(still_house: House, name: str) -> None:
    document = problem(still_house.http.get(f"/v1/models/{name}"), 422, "invalid-request")
    assert document["errors"][0]["in"] == "path"
    assert document["errors"][0]["pointer"] == "/model"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", "GET, HEAD, POST"),
        ("/v1/models/gas/cycles", "GET, HEAD, POST"),
        ("/v1/models/gas/rollback", "POST"),
        ("/livez", "GET, HEAD"),
    ],
)
def test_unknown_methods(still_house: House, path: str, allowed: str) -> None:
    answer = still_house.http.delete(path)
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == allowed


MISSING = [
    ("/v1/models/other", "unknown-model"),
    ("/v1/models/other/megabatches", "unknown-model"),
    ("/v1/models/other/megabatches/1", "unknown-model"),
    ("/v1/models/other/cycles", "unknown-model"),
    ("/v1/models/other/cycles/1", "unknown-model"),
    ("/v1/models/other/versions", "unknown-model"),
    ("/v1/models/other/versions/1", "unknown-model"),
    ("/v1/models/other/versions/champion/checkpoint", "unknown-model"),
    ("/v1/models/other/versions/1/audit", "unknown-model"),
    ("/v1/models/other/versions/1/lineage", "unknown-model"),
    ("/v1/models/other/aliases/champion", "unknown-model"),
    ("/v1/models/other/aliases/champion/history", "unknown-model"),
    ("/v1/models/other/metrics", "unknown-model"),
    ("/v1/models/gas/megabatches/1", "unknown-megabatch"),
    ("/v1/models/gas/megabatches/0", "unknown-megabatch"),
    ("/v1/models/gas/cycles/1", "unknown-cycle"),
    ("/v1/models/gas/versions/1", "unknown-version"),
    ("/v1/models/gas/versions/999999999", "unknown-version"),
    ("/v1/models/gas/versions/champion", "unknown-version"),
    ("/v1/models/gas/versions/latest", "unknown-version"),
    ("/v1/models/gas/versions/beta", "unknown-version"),
    ("/v1/models/gas/versions/1/manifest", "unknown-version"),
    ("/v1/models/gas/aliases/champion", "unknown-alias"),
    ("/v1/models/gas/aliases/champion?at=2026-01-01T00:00:00Z", "unknown-alias"),
    ("/v1/audit/99", "unknown-entry"),
    ("/v1/audit/2147483647", "unknown-entry"),
]


def test_what_does_not_exist(still_house: House) -> None:
    for path, slug in MISSING:
        problem(still_house.http.get(path), 404, slug)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=1001", "/limit"),
        ("limit=ten", "/limit"),
        ("limit=99999999999999999999999", "/limit"),
        (f"cursor={'a' * 401}", "/cursor"),
    ],
)
def test_listing_parameters(still_house: House, query: str, pointer: str) -> None:
    document = problem(still_house.http.get(f"/v1/models?{query}"), 422, "invalid-request")
    assert (document["errors"][0]["in"], document["errors"][0]["pointer"]) == ("query", pointer)


@pytest.mark.parametrize("number", ["2147483648", "-1", "1.5", "x", "9" * 400])
def test_numbers_that_cannot_be(still_house: House, number: str) -> None:
    problem(still_house.http.get(f"/v1/models/gas/cycles/{number}"), 422, "invalid-request")


@pytest.mark.parametrize("cursor", ["", "x", "bW9kZWxz", "Y3ljbGVzOjE", "bW9kZWxzOkE", "%00", "bW9kZWxzOg", "~~~~"])
def test_cursors_of_other_makes(still_house: House, cursor: str) -> None:
    problem(still_house.http.get(f"/v1/models?cursor={cursor}"), 400, "invalid-cursor")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"name": "a", "name": "b"}', "stands twice"),
        ('{"name": "a", "recipe": {"seed": 1, "seed": 2}}', "stands twice"),
        ('{"name": NaN}', "NaN is not JSON"),
        ('{"name": "a", "recipe": {"x": -Infinity}}', "-Infinity is not JSON"),
        ('{"name": "a", "recipe": {"x": 1e999}}', "too large"),
        ('{"name": "a", "recipe": {"x": ' + "1" * 5000 + "}}", "usable JSON"),
        ("[" * 100_000 + "]" * 100_000, "levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "levels"),
        ("[" * 40 + "]" * 40, "32 levels"),
        ('{"name": "a', "usable JSON"),
        ("", None),
        ("nonsense", "usable JSON"),
        (b'{"name": "\xff"}', "UTF-8"),
        ('{"name": "a"}'.encode("utf-16"), "UTF-8"),
        ('{"name": "a", "recipe": {"x": "a\\u0000b"}}', "NUL"),
        ('{"name": "a", "recipe": {"x\\u0000": 1}}', "NUL"),
        ('{"name": "a", "recipe": {"x": "\\ud800"}}', "surrogate"),
    ],
)
def test_json_that_is_none(still_house: House, body: bytes | str, told: str | None) -> None:
    answer = post(still_house, body)
    if told is None:
        assert "JSON body is needed" in problem(answer, 422, "invalid-request")["detail"]
    else:
        assert told in problem(answer, 400, "malformed-json")["detail"]
    assert len(still_house.http.get("/v1/models").json()["items"]) == 1


def test_faults_in_nested_text_have_pointers(still_house: House) -> None:
    document = problem(post(still_house, '{"name": "a", "recipe": {"a/b": ["x", "\\u0000"]}}'), 400, "malformed-json")
    assert document["errors"][0]["pointer"] == "/recipe/a~1b/1"


def test_other_json_values_than_objects(still_house: House) -> None:
    for body in ("[]", "null", "1", '"name"', "true"):
        problem(post(still_house, body), 422, "invalid-request")


def test_unknown_keys_list_the_known_ones(still_house: House) -> None:
    document = problem(post(still_house, '{"name": "a", "nmae": 1, "a/b": 2}'), 422, "invalid-request")
    faults = {fault["pointer"]: fault["detail"] for fault in document["errors"]}
    assert set(faults) == {"/nmae", "/a~1b"}
    assert "name, recipe, input" in faults["/nmae"]
    document = problem(
        post(still_house, '{"name": "a", "input": {"normalisation": {"clp": 1}}}'), 422, "invalid-request"
    )
    assert document["errors"][0]["pointer"] == "/input/normalisation/clp"
    assert "signed_log" in document["errors"][0]["detail"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/events", "/v1/models/gas/events", "/v1/models/gas"])
def test_a_query_with_an_unknown_parameter_is_refused(still_house: House, method: str, path: str) -> None:
    answer = still_house.http.request(method, f"{path}?limt=5&a/b")
    assert answer.status_code == 422
    if method == "GET":
        faults = {fault["pointer"]: fault for fault in problem(answer, 422, "invalid-request")["errors"]}
        assert set(faults) == {"/limt", "/a~1b"} and faults["/limt"]["in"] == "query"
        known = {"/v1/models": "cursor, limit", "/v1/events": "kind, model", "/v1/models/gas": "none"}
        assert f"unknown parameter; known parameters: {known.get(path, 'kind')}" in faults["/limt"]["detail"]


@pytest.mark.parametrize(("path", "name"), [("/v1/models", "limit"), ("/v1/audit", "kind")])
def test_a_parameter_that_is_given_twice_is_refused(still_house: House, path: str, name: str) -> None:
    answer = still_house.http.get(f"{path}?{name}=5&{name}=6")
    [fault] = problem(answer, 422, "invalid-request")["errors"]
    assert fault == {"in": "query", "pointer": f"/{name}", "detail": "given several times: give it once"}


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Upload-Offset", "Content-Type"])
def test_a_header_that_is_sent_twice_is_refused(still_house: House, name: str) -> None:
    headers = [(name, "1"), ("Accept", "text/html"), ("Accept", "application/json"), (name.upper(), "1")]
    answer = still_house.http.post("/v1/models", json={"name": "twice"}, headers=headers)
    assert f"send {name.lower()} once" in problem(answer, 400, "malformed-header")["detail"]
    assert still_house.http.get("/v1/models", headers=[("Accept", "a/b"), ("Accept", "c/d")]).status_code == 200


def test_pointers_into_recipe_and_input(still_house: House) -> None:
    document = problem(post(still_house, '{"name": "a", "recipe": {"schedule": {"tau": 61}}}'), 422, "invalid-recipe")
    assert [fault["pointer"] for fault in document["errors"]] == ["/recipe/schedule/tau"]
    document = problem(post(still_house, '{"name": "a", "recipe": {"sede": 1}}'), 422, "invalid-recipe")
    assert "known keys: preset, seed" in document["errors"][0]["detail"]
    document = problem(post(still_house, '{"name": "a", "input": {"classes": ["x", "x"]}}'), 422, "invalid-input")
    assert [fault["pointer"] for fault in document["errors"]] == ["/input/classes"]


def test_a_union_leaves_no_branch_in_the_pointer(still_house: House) -> None:
    document = problem(post(still_house, '{"name": "a", "input": {"classes": [1]}}'), 422, "invalid-request")
    assert {fault["pointer"] for fault in document["errors"]} == {"/input/classes/0", "/input/classes"}


def test_json_bodies_are_limited(still_house: House) -> None:
    large = '{"name": "' + "a" * 1024 * 1024 + '"}'
    problem(post(still_house, large), 413, "body-too-large")
    problem(
        still_house.http.post("/v1/models", content=iter([large.encode()] * 2), headers=JSON), 413, "body-too-large"
    )
    problem(post(still_house, "{}", **{"Content-Length": "99999999999"}), 413, "body-too-large")


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_json_must_say_that_it_is(still_house: House, media: str | None) -> None:
    headers = {} if media is None else {"Content-Type": media}
    answer = still_house.http.post("/v1/models", content=b'{"name": "a"}', headers=headers)
    assert "application/json" in problem(answer, 415, "unsupported-media-type")["detail"]


def test_json_may_have_parameters(house: House) -> None:
    assert house.http.post(
        "/v1/models", content=b'{"name": "a"}', headers={"Content-Type": "application/json; charset=utf-8"}
    ).is_success


def test_compressed_json_is_refused(still_house: House) -> None:
    problem(post(still_house, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), 415, "unsupported-media-type")


def test_an_unforeseen_error_tells_the_id_and_nothing_else(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.store.dispose()
    del house.app.state.store
    with caplog.at_level(logging.ERROR, "app.api"):
        answer = house.http.get("/v1/models", headers={"X-Request-Id": "find-me"})
    document = problem(answer, 500, "internal")
    assert "find-me" in document["detail"]
    assert "state" not in document["detail"]
    record = next(record for record in caplog.records if record.name == "app.api")
    assert "find-me" in record.getMessage()
    assert record.exc_info is not None


def test_busy_and_full_say_when_to_come_back() -> None:
    busy = problem_response(errors.StoreBusy("try again"), "id")
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    assert problem_response(errors.StorageFull("free space"), "id").status_code == 507


def test_reasons_of_uploads_are_for_programs() -> None:
    answer = problem_response(errors.InvalidMegabatch("not-npz", "send npz"), "id")
    assert b'"reason":"not-npz"' in answer.body


def test_the_nearest_parent_answers_for_a_class_without_a_row() -> None:
    class Later(errors.StoreBusy):
        pass

    assert kind_of(Later) is TABLE[errors.StoreBusy]
    assert kind_of(errors.EspalierError) is INTERNAL
