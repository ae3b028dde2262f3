"""Resumable uploads over HTTP: tus 1.0.0 and the IETF draft, on the same resources."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response

from app.api.routes import uploads as route
from app.config import Settings
from app.domain import Actor, UploadState
from tests.api.conftest import House, content_digest, opened, problem, upload_bytes

SANDBOXED = True

PATH = "/v1/models/gas/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
TUS_PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
DRAFT_PART = {"Content-Type": "application/partial-upload"}
IANA = "https://iana.org/assignments/http-problem-types#"


@pytest.fixture(autouse=True)
def _gas(house: House) -> Iterator[None]:
    house.create()
    yield
    assert house.staged() == []


def partials(house: House) -> list[str]:
    return sorted(path.name for path in (house.store.blobs.root / "uploads").iterdir())


def metadata(**values: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def begin(house: House, length: int | None = None, **headers: str) -> str:
    told = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    answer = house.http.post(PATH, headers={**TUS, **told, **headers})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    return str(answer.headers["Location"])


def patch(house: House, path: str, offset: int, data: bytes, **headers: str) -> Response:
    return house.http.patch(path, content=data, headers={**TUS_PART, "Upload-Offset": str(offset), **headers})


def draft(house: House, path: str, offset: int, data: bytes, complete: bool, **headers: str) -> Response:
    told = {**DRAFT_PART, "Upload-Offset": str(offset), "Upload-Complete": "?1" if complete else "?0"}
    return house.http.patch(path, content=data, headers={**told, **headers})


def accepted(house: House) -> list[dict[str, Any]]:
    return list(house.http.get("/v1/audit?kind=megabatch.accepted").json()["items"])


# -- tus ---------------------------------------------------------------------------------------------------------------


def test_tus_says_what_it_can(house: House) -> None:
    for path in (PATH, "/v1/uploads/abc"):
        answer = house.http.options(path)
        assert answer.status_code == 204
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert answer.headers["Tus-Max-Size"] == str(256 * 1024)
        assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
        extensions = set(answer.headers["Tus-Extension"].split(","))
        assert {"creation", "creation-with-upload", "creation-defer-length", "checksum", "expiration"} <= extensions
        assert "termination" in extensions
        assert "application/partial-upload" in answer.headers["Accept-Patch"]
        assert answer.headers["Upload-Limit"].startswith("max-size=262144")


def test_tus_in_parts_gives_the_megabatch_that_one_request_gives(house: House) -> None:
    data = upload_bytes()
    said = metadata(filename="monday.npz", sha256=hashlib.sha256(data).hexdigest())
    path = begin(house, len(data), **{"Upload-Metadata": said})
    for start in range(0, len(data), 200):
        head = house.http.head(path, headers=TUS)
        assert (head.status_code, head.headers["Upload-Offset"]) == (200, str(start))
        assert head.headers["Upload-Length"] == str(len(data))
        assert head.headers["Upload-Metadata"] == said
        assert head.headers["Cache-Control"] == "no-store"
        assert head.headers["Upload-Expires"].endswith("GMT")
        answer = patch(house, path, start, data[start : start + 200])
        assert answer.status_code == 204, answer.text
        assert answer.headers["Upload-Offset"] == str(min(start + 200, len(data)))
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert answer.headers["Espalier-Megabatch"] == "1"
    assert answer.headers["Location"] == "/v1/models/gas/megabatches/1"
    assert partials(house) == []
    view = house.http.get(path).json()
    assert (view["state"], view["offset"], view["length"], view["megabatch"]) == ("accepted", len(data), len(data), 1)
    assert house.http.head(path, headers=TUS).headers["Espalier-Megabatch"] == "1"
    again = house.upload(data=data)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")


def test_tus_with_its_first_bytes_and_no_length_at_first(house: House) -> None:
    data = upload_bytes()
    headers = {**TUS_PART, "Upload-Defer-Length": "1"}
    begun = house.http.post(PATH, content=data[:100], headers=headers)
    assert (begun.status_code, begun.headers["Upload-Offset"]) == (201, "100")
    path = begun.headers["Location"]
    assert house.http.head(path, headers=TUS).headers["Upload-Defer-Length"] == "1"
    answer = patch(house, path, 100, data[100:200])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "200")
    problem(patch(house, path, 200, data[200:], **{"Upload-Length": "150"}), 400, "length-mismatch")
    answer = patch(house, path, 200, data[200:], **{"Upload-Length": str(len(data))})
    assert answer.headers["Espalier-Megabatch"] == "1"


def test_tus_whole_with_its_creation(house: House) -> None:
    data = upload_bytes()
    answer = house.http.post(PATH, content=data, headers={**TUS_PART, "Upload-Length": str(len(data))})
    assert (answer.status_code, answer.headers["Espalier-Megabatch"]) == (201, "1")
    assert answer.headers["Location"].startswith("/v1/uploads/")


def test_another_offset_is_refused_with_the_right_one(house: House) -> None:
    data = upload_bytes()
    path = begin(house, len(data))
    patch(house, path, 0, data[:100])
    for offset in (0, 99, 101, 10**9):
        answer = patch(house, path, offset, data[100:])
        problem(answer, 409, "offset-mismatch")
        assert answer.headers["Upload-Offset"] == "100"
    assert patch(house, path, 100, data[100:]).status_code == 204


def test_a_version_or_type_that_tus_does_not_know_is_refused(house: House) -> None:
    answer = house.http.post(PATH, headers={"Tus-Resumable": "0.2.2", "Upload-Length": "5"})
    problem(answer, 412, "tus-version")
    assert answer.headers["Tus-Version"] == "1.0.0"
    path = begin(house, 5)
    answer = house.http.patch(path, content=b"12345", headers={**TUS, "Upload-Offset": "0"})
    problem(answer, 415, "unsupported-media-type")
    no_version = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    problem(house.http.patch(path, content=b"12345", headers=no_version), 412, "tus-version")
    for offset in ("", "x", "-1", "1.5"):
        problem(patch(house, path, 0, b"12345", **{"Upload-Offset": offset}), 400, "malformed-header")
    headers = {**TUS_PART}
    problem(house.http.patch(path, content=b"12345", headers=headers), 400, "malformed-header")


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_part_with_a_wrong_checksum_is_dropped_whole(house: House, algorithm: str) -> None:
    data = upload_bytes()

    def checksum(part: bytes) -> dict[str, str]:
        return {"Upload-Checksum": f"{algorithm} {base64.b64encode(hashlib.new(algorithm, part).digest()).decode()}"}

    path = begin(house, len(data))
    assert patch(house, path, 0, data[:100], **checksum(data[:100])).status_code == 204
    problem(patch(house, path, 100, data[100:], **checksum(b"another")), 460, "checksum-mismatch")
    assert house.http.head(path, headers=TUS).headers["Upload-Offset"] == "100"
    problem(patch(house, path, 100, b"", **{"Upload-Checksum": "md5 abc="}), 400, "malformed-header")
    answer = patch(house, path, 100, data[100:], **checksum(data[100:]))
    assert answer.headers["Espalier-Megabatch"] == "1"


def test_termination(house: House) -> None:
    path = begin(house, 1000)
    patch(house, path, 0, bytes(10))
    assert len(partials(house)) == 1
    answer = house.http.delete(path, headers=TUS)
    assert (answer.status_code, answer.headers["Tus-Resumable"]) == (204, "1.0.0")
    assert partials(house) == []
    for method in ("GET", "DELETE"):
        problem(house.http.request(method, path), 404, "unknown-upload")
    problem(patch(house, path, 10, bytes(990)), 404, "unknown-upload")
    assert house.http.head(path, headers=TUS).status_code == 404


def test_a_proxy_that_knows_only_post(house: House) -> None:
    data = upload_bytes()
    path = begin(house, len(data))
    headers = {**TUS_PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert house.http.post(path, content=data, headers=headers).headers["Espalier-Megabatch"] == "1"
    headers = {**TUS, "X-HTTP-Method-Override": "DELETE"}
    assert house.http.post(path, headers=headers).status_code == 204
    problem(house.http.post(path, headers=TUS), 400, "malformed-header")


# -- the IETF draft ----------------------------------------------------------------------------------------------------


def test_the_draft_in_parts_is_answered_with_the_megabatch(house: House) -> None:
    data = upload_bytes()
    headers = {"Upload-Complete": "?0", "Upload-Length": str(len(data)), "Repr-Digest": content_digest(data)}
    begun = house.http.post(PATH, content=data[:100], headers=headers)
    assert begun.status_code == 201
    assert "Tus-Resumable" not in begun.headers
    path = begun.headers["Location"]
    assert begun.headers["Upload-Limit"].startswith("max-size=262144, max-age=8")
    head = house.http.head(path)
    assert (head.status_code, head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == (204, "100", "?0")
    assert (head.headers["Upload-Length"], head.headers["Cache-Control"]) == (str(len(data)), "no-store")
    middle = draft(house, path, 100, data[100:200], False)
    assert (middle.status_code, middle.headers["Upload-Complete"]) == (204, "?0")
    last = draft(house, path, 200, data[200:], True)
    assert (last.status_code, last.headers["Upload-Complete"]) == (201, "?1")
    assert last.headers["Location"] == "/v1/models/gas/megabatches/1"
    assert (last.json()["number"], last.json()["examples"], last.json()["cycle"]) == (1, 24, 1)
    head = house.http.head(path)
    assert (head.headers["Upload-Complete"], head.headers["Upload-Offset"]) == ("?1", str(len(data)))


def test_the_draft_completes_only_when_told(house: House) -> None:
    data = upload_bytes()
    path = house.http.post(PATH, headers={"Upload-Complete": "?0"}).headers["Location"]
    assert draft(house, path, 0, data, False, **{"Upload-Length": str(len(data))}).status_code == 204
    assert house.http.get(path).json()["state"] == "open"
    last = draft(house, path, len(data), b"", True)
    assert (last.status_code, last.json()["number"]) == (201, 1)
    again = draft(house, path, len(data), b"", True)
    assert (again.status_code, again.json()["number"]) == (200, 1)
    refused = draft(house, path, len(data), b"more", True)
    assert (refused.status_code, refused.json()["type"]) == (400, IANA + "completed-upload")


def test_the_draft_whole_in_one_request(house: House) -> None:
    data = upload_bytes()
    headers = {"Upload-Complete": "?1", "Content-Digest": content_digest(data)}
    answer = house.http.post(PATH, content=data, headers=headers)
    assert (answer.status_code, answer.headers["Upload-Complete"], answer.json()["number"]) == (201, "?1", 1)


def test_the_drafts_problems(house: House) -> None:
    data = upload_bytes()
    headers = {"Upload-Complete": "?0", "Upload-Length": str(len(data))}
    path = house.http.post(PATH, headers=headers).headers["Location"]
    answer = draft(house, path, 7, data[7:], True)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "0")
    document = answer.json()
    assert (document["type"], document["expected-offset"], document["provided-offset"]) == (
        IANA + "mismatching-upload-offset",
        0,
        7,
    )
    for said in ({"Upload-Length": "5"}, {}):
        answer = draft(house, path, 0, data[:50], True, **said)
        assert (answer.status_code, answer.json()["type"]) == (400, IANA + "inconsistent-upload-length")
    answer = draft(house, path, 0, data + b"more", False)
    assert (answer.status_code, answer.json()["type"]) == (400, IANA + "inconsistent-upload-length")
    headers = {"Upload-Offset": "0", "Upload-Complete": "?1", "Content-Type": "application/octet-stream"}
    problem(house.http.patch(path, content=data, headers=headers), 415, "unsupported-media-type")
    headers = {**DRAFT_PART, "Upload-Offset": "0"}
    problem(house.http.patch(path, content=data, headers=headers), 400, "malformed-header")
    assert draft(house, path, 0, data, True).status_code == 201


def test_neither_protocol_is_told_of_both(house: House) -> None:
    document = problem(house.http.post(PATH, content=b"x"), 400, "malformed-header")
    assert "Tus-Resumable" in document["detail"] and "Upload-Complete" in document["detail"]


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_a_refused_upload_says_so_however_often_it_is_asked(house: House) -> None:
    data = b"not a megabatch at all"
    path = begin(house, len(data))
    first = problem(patch(house, path, 0, data), 422, "invalid-megabatch")
    for answer in (patch(house, path, 0, data), patch(house, path, len(data), b""), draft(house, path, 0, data, True)):
        again = problem(answer, 422, "invalid-megabatch")
        assert (again["reason"], again["detail"]) == (first["reason"], first["detail"])
    assert house.http.head(path, headers=TUS).status_code == 422
    view = house.http.get(path).json()
    assert (view["state"], view["problem"]["status"]) == ("refused", 422)
    assert view["problem"]["type"] == "urn:espalier:problem:invalid-megabatch"
    assert (view["problem"]["reason"], view["problem"]["detail"]) == (first["reason"], first["detail"])
    assert partials(house) == []
    assert house.http.get("/v1/models/gas/megabatches").json()["items"] == []


def test_a_wrong_digest_of_the_whole_is_refused(house: House) -> None:
    data = upload_bytes()
    wrong = hashlib.sha256(b"another").hexdigest()
    path = begin(house, len(data), **{"Upload-Metadata": metadata(sha256=wrong)})
    problem(patch(house, path, 0, data), 400, "digest-mismatch")
    headers = {"Upload-Complete": "?0", "Repr-Digest": content_digest(b"another")}
    path = house.http.post(PATH, headers=headers).headers["Location"]
    answer = draft(house, path, 0, data, True)
    problem(answer, 400, "digest-mismatch")
    assert answer.headers["Upload-Complete"] == "?1"
    assert house.http.get("/v1/models/gas/megabatches").json()["items"] == []


@pytest.mark.parametrize("ask", ["HEAD", "GET", "PATCH"])
def test_what_a_killed_process_left_complete_is_finished_once(house: House, ask: str) -> None:
    data = upload_bytes()
    path = begin(house, len(data))
    patch(house, path, 0, data[:-1])
    upload = path.rpartition("/")[2]
    with (house.store.blobs.root / "uploads" / upload).open("ab") as file:  # as if killed right after the row
        file.write(data[-1:])
    with house.store.transaction(Actor("tester")) as tx:
        found = tx.uploads.get(upload)
        tx.uploads.advance(upload, len(data), found.expires_at, complete=True)
    if ask == "PATCH":
        assert patch(house, path, len(data), b"").headers["Espalier-Megabatch"] == "1"
    elif ask == "HEAD":
        assert house.http.head(path, headers=TUS).headers["Espalier-Megabatch"] == "1"
    else:
        views = (house.http.get(path).json() for _ in itertools.count())
        assert next(view for view in views if view["state"] != "complete")["megabatch"] == 1
    assert len(accepted(house)) == 1


def test_asked_for_later_it_is_answered_with_202_and_can_be_polled(house: House) -> None:
    data = upload_bytes()
    answer = house.upload(data=data, Prefer="respond-async, wait=5")
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")
    path = answer.headers["Location"]
    assert answer.json()["state"] == "complete"
    views = (house.http.get(path).json() for _ in itertools.count())
    assert next(view for view in views if view["state"] != "complete")["megabatch"] == 1
    refused = house.upload(data=b"nonsense", Prefer="respond-async")
    views = (house.http.get(refused.headers["Location"]).json() for _ in itertools.count())
    assert next(view for view in views if view["state"] != "complete")["problem"]["status"] == 422


def test_a_large_body_is_answered_with_202(settings: Settings) -> None:
    with opened(Settings(**{**settings.model_dump(), "respond_async_bytes": 100})) as house:
        house.create("large")
        assert house.upload(name="large").status_code == 202


# -- limits ------------------------------------------------------------------------------------------------------------


def test_too_large_an_upload_is_refused_when_it_is_begun(house: House) -> None:
    answer = house.http.post(PATH, headers={**TUS, "Upload-Length": "262145"})
    problem(answer, 413, "upload-too-large")
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    answer = house.http.post(PATH, headers={"Upload-Complete": "?0", "Upload-Length": "262145"})
    problem(answer, 413, "upload-too-large")
    assert answer.headers["Upload-Limit"].startswith("max-size=262144")
    assert partials(house) == []


def test_too_large_an_upload_without_a_length_is_cut_off(house: House) -> None:
    path = begin(house)

    def body() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(8192)

    answer = house.http.patch(path, content=body(), headers={**TUS_PART, "Upload-Offset": "0"})
    problem(answer, 413, "upload-too-large")
    assert house.http.get(path).json()["state"] == "open"


def test_more_than_the_declared_length_is_refused(house: House) -> None:
    path = begin(house, 100)
    problem(patch(house, path, 0, bytes(101)), 400, "length-mismatch")
    answer = house.http.patch(path, content=iter([bytes(101)]), headers={**TUS_PART, "Upload-Offset": "0"})
    problem(answer, 400, "length-mismatch")
    assert house.http.get(path).json()["state"] == "open"


@pytest.mark.parametrize(
    "headers",
    [
        TUS,
        {**TUS, "Upload-Length": "5", "Upload-Defer-Length": "1"},
        {**TUS, "Upload-Defer-Length": "2"},
        {**TUS, "Upload-Length": "five"},
        {**TUS, "Upload-Length": "-5"},
        {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename !!!"},
        {**TUS, "Upload-Length": "5", "Upload-Metadata": metadata(sha256="beef")},
        {"Upload-Complete": "?0", "Repr-Digest": "sha-256=:short:"},
    ],
)
def test_headers_that_say_nothing_are_refused(house: House, headers: dict[str, str]) -> None:
    problem(house.http.post(PATH, headers=headers), 400, "malformed-header")
    assert partials(house) == []


def test_unknown_uploads_and_models_are_not_found(house: House) -> None:
    problem(house.http.post("/v1/models/other/uploads", headers={**TUS, "Upload-Length": "5"}), 404, "unknown-model")
    for upload in ("0" * 32, "x", "..", "a%2Fb", "%00"):
        assert house.http.get(f"/v1/uploads/{upload}").status_code == 404
    assert partials(house) == []


def test_a_quota_of_open_uploads_and_bytes(settings: Settings) -> None:
    small = Settings(**{**settings.model_dump(), "max_open_uploads": 2, "max_staged_bytes": 2000})
    with opened(small) as house:
        house.create("few")
        path = "/v1/models/few/uploads"
        problem(house.http.post(path, headers={**TUS, "Upload-Length": "2001"}), 429, "too-many-uploads")
        first = house.http.post(path, headers={**TUS, "Upload-Length": "5"}).headers["Location"]
        house.http.post(path, headers={**TUS, "Upload-Length": "5"})
        answer = house.http.post(path, headers={**TUS, "Upload-Length": "5"})
        problem(answer, 429, "too-many-uploads")
        assert answer.headers["Retry-After"] == "10"
        house.http.delete(first, headers=TUS)
        assert house.http.post(path, headers={**TUS, "Upload-Length": "5"}).status_code == 201


def test_more_than_the_disk_holds_is_refused_unread(settings: Settings) -> None:
    wide = Settings(**{**settings.model_dump(), "max_upload_bytes": 2**60, "max_staged_bytes": 2**62})
    with opened(wide) as house:
        house.create("wide")

        def never() -> Iterator[bytes]:
            pytest.fail("the body was read")
            yield b""

        answer = house.http.post("/v1/models/wide/uploads", headers={**TUS, "Upload-Length": str(10**15 - 1)})
        problem(answer, 507, "storage-full")
        headers = {"Content-Length": str(10**15)}
        problem(house.http.post("/v1/models/wide/megabatches", content=never(), headers=headers), 507, "storage-full")


def test_an_expired_upload_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begin(house, 100)
    patch(house, path, 0, bytes(10))
    clock = house.store.clock
    monkeypatch.setattr(house.store, "clock", lambda: clock() + timedelta(hours=25))
    problem(house.http.get(path), 410, "upload-expired")
    problem(patch(house, path, 10, bytes(90)), 410, "upload-expired")
    begin(house, 5)  # beginning another forgets it
    problem(house.http.get(path), 404, "unknown-upload")
    assert len(partials(house)) == 1


def test_a_part_beside_another_is_refused_and_nothing_is_lost(house: House) -> None:
    data = upload_bytes()
    path = begin(house, len(data))
    with house.store.partials.held(path.rpartition("/")[2]):
        problem(patch(house, path, 0, data), 423, "upload-busy")
    assert patch(house, path, 0, data).status_code == 204
    assert len(accepted(house)) == 1


def test_finishing_waits_for_whoever_is_at_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_LONGEST_HEAD", 0.1)
    data = upload_bytes()
    path = begin(house, len(data) + 1)
    patch(house, path, 0, data)
    upload = path.rpartition("/")[2]
    with house.store.transaction(Actor("tester")) as tx:
        tx.uploads.advance(upload, len(data), tx.uploads.get(upload).expires_at, length=len(data), complete=True)
    with house.store.partials.held(upload):
        head = house.http.head(path, headers=TUS)
        assert (head.status_code, head.headers["Retry-After"]) == (423, "1")
        assert house.http.get(path).json()["state"] == UploadState.COMPLETE
    assert patch(house, path, len(data), b"").headers["Espalier-Megabatch"] == "1"
    assert len(accepted(house)) == 1
