"""Polling, downloads, promotion, rollback."""

from __future__ import annotations

import hashlib

import pytest

from app.domain import Actor
from app.service.retention import retain
from espalier.formats import checkpoint
from tests.api.conftest import House, content_digest, problem

PATH = "/v1/models/gas/versions"
FOREVER = "private, max-age=31536000, immutable"


@pytest.fixture
def grown(house: House) -> House:
    """A model with three versions."""
    house.create()
    for seed in (1, 2, 3):
        house.publish(seed)
    return house


def test_a_version_by_number_and_by_alias(grown: House) -> None:
    by_number = grown.http.get(f"{PATH}/3")
    assert by_number.headers["Cache-Control"] == FOREVER
    assert "Espalier-Alias-Revision" not in by_number.headers
    body = by_number.json()
    assert by_number.headers["ETag"] == f'"{body["checkpoint"]["digest"]}"'
    assert body["density"] == body["kept"] / body["total"] == body["layers"][0]["density"]
    by_alias = grown.http.get(f"{PATH}/champion")
    assert by_alias.json() == body
    assert by_alias.headers["Cache-Control"] == "no-cache"
    assert by_alias.headers["Espalier-Alias-Revision"] == "3"
    latest = grown.http.get(f"{PATH}/latest")
    assert (latest.json(), latest.headers["Cache-Control"]) == (body, "no-cache")


def test_private_where_a_key_is_needed(locked_house: House) -> None:
    locked_house.http.headers["Authorization"] = "Bearer a-long-key"
    locked_house.create()
    locked_house.publish()
    assert locked_house.http.get(f"{PATH}/1").headers["Cache-Control"] == FOREVER.replace("public", "private")


@pytest.mark.parametrize("path", ["champion", "3", "champion/checkpoint", "3/checkpoint", "3/manifest"])
def test_not_modified(grown: House, path: str) -> None:
    first = grown.http.get(f"{PATH}/{path}")
    for form in ("{}", "W/{}", '"other", {}', '"other",W/{} , "more"', "*", '"a, b", {}'):
        answer = grown.http.get(f"{PATH}/{path}", headers={"If-None-Match": form.format(first.headers["ETag"])})
        assert (answer.status_code, answer.content) == (304, b""), form
        for header in ("ETag", "Cache-Control", "Espalier-Alias-Revision"):
            assert answer.headers.get(header) == first.headers.get(header)
        assert "Content-Type" not in answer.headers


def test_modified(grown: House) -> None:
    for given in ('"other"', "", "nonsense", 'W/"other"', '"*"', '"sha256'):
        for path in ("champion", "champion/checkpoint"):
            assert grown.http.get(f"{PATH}/{path}", headers={"If-None-Match": given}).status_code == 200, given


def test_a_poll_writes_nothing(grown: House) -> None:
    before = grown.http.get("/v1/audit/head").json(), grown.http.get("/v1/models/gas").json()
    etag = grown.http.get(f"{PATH}/champion").headers["ETag"]
    for _ in range(3):
        grown.http.get(f"{PATH}/champion", headers={"If-None-Match": etag})
    assert (grown.http.get("/v1/audit/head").json(), grown.http.get("/v1/models/gas").json()) == before


def test_an_alias_that_moved_is_modified(grown: House) -> None:
    etag = grown.http.get(f"{PATH}/champion").headers["ETag"]
    grown.http.post("/v1/models/gas/rollback", json={"reason": "worse"}, headers=grown.revision())
    answer = grown.http.get(f"{PATH}/champion", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.json()["number"], answer.headers["Espalier-Alias-Revision"]) == (200, 2, "4")


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_a_download_is_whole_and_named_by_digest(grown: House, form: str) -> None:
    answer = grown.http.get(f"{PATH}/3/checkpoint", params={"format": form})
    data = answer.content
    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"sha256:{hashlib.sha256(data).hexdigest()}"'
    assert answer.headers["Content-Digest"] == answer.headers["Repr-Digest"] == content_digest(data)
    assert answer.headers["Content-Length"] == str(len(data))
    assert answer.headers["Content-Disposition"] == 'attachment; filename="gas-3.safetensors"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Cache-Control"] == FOREVER
    assert "Last-Modified" not in answer.headers
    if form == "sparse":
        assert checkpoint.decode(data).manifest["version"] == 3
        assert grown.http.get(f"{PATH}/3/manifest").json() == checkpoint.decode(data).manifest
    head = grown.http.head(f"{PATH}/3/checkpoint", params={"format": form})
    assert head.content == b""
    ignored = {"X-Request-Id"}
    assert {k: v for k, v in head.headers.items() if k.title() not in ignored} == {
        k: v for k, v in answer.headers.items() if k.title() not in ignored
    }


def test_another_form_is_refused(grown: House) -> None:
    problem(grown.http.get(f"{PATH}/3/checkpoint?format=onnx"), 422, "invalid-request")


RANGES = [
    ("bytes=0-9", 0, 9),
    ("bytes=10-", 10, -1),
    ("bytes=-5", -5, -1),
    ("bytes=0-99999999", 0, -1),
    ("Bytes = 3-3", 3, 3),
    ("bytes=-999999", 0, -1),
]
NO_RANGES = ["bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=--1"]


def test_one_range(grown: House) -> None:
    whole = grown.http.get(f"{PATH}/champion/checkpoint")
    size = len(whole.content)
    for given, begin, end in RANGES:
        first, last = begin % size, end % size
        answer = grown.http.get(f"{PATH}/champion/checkpoint", headers={"Range": given})
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert answer.content == whole.content[first : last + 1]
        assert answer.headers["Content-Length"] == str(len(answer.content))
        assert answer.headers["Repr-Digest"] == whole.headers["Repr-Digest"]
        assert "Content-Digest" not in answer.headers
        assert answer.headers["ETag"] == whole.headers["ETag"]
        assert grown.http.head(f"{PATH}/champion/checkpoint", headers={"Range": given}).content == b""


def test_other_ranges_are_ignored(grown: House) -> None:
    whole = grown.http.get(f"{PATH}/3/checkpoint")
    for given in [*NO_RANGES, "bytes=" + ",".join(["0-1"] * 10_000)]:
        answer = grown.http.get(f"{PATH}/3/checkpoint", headers={"Range": given})
        assert (answer.status_code, answer.content) == (200, whole.content), given[:40]


def test_a_range_outside_is_a_problem(grown: House) -> None:
    size = len(grown.http.get(f"{PATH}/3/checkpoint").content)
    for given in ("bytes=999999-", "bytes=999999-9999999", "bytes=-0"):
        answer = grown.http.get(f"{PATH}/3/checkpoint", headers={"Range": given})
        problem(answer, 416, "range-not-satisfiable")
        assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_a_resumed_download_starts_anew_when_the_alias_has_moved(grown: House) -> None:
    old = grown.http.get(f"{PATH}/2/checkpoint").headers["ETag"]
    whole = grown.http.get(f"{PATH}/3/checkpoint")
    current = {"Range": "bytes=5-", "If-Range": whole.headers["ETag"]}
    assert grown.http.get(f"{PATH}/champion/checkpoint", headers=current).status_code == 206
    for stale in (old, f"W/{whole.headers['ETag']}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = grown.http.get(f"{PATH}/champion/checkpoint", headers={"Range": "bytes=5-", "If-Range": stale})
        assert (answer.status_code, answer.content) == (200, whole.content)


def test_missing_and_truncated_bytes_are_never_served(grown: House) -> None:
    for number, spoil, slug in ((1, "unlink", "missing-blob"), (2, "truncate", "corrupt-blob")):
        digest = grown.http.get(f"{PATH}/{number}").json()["checkpoint"]["digest"]
        path = grown.store.blobs.path(digest)
        if spoil == "unlink":
            path.unlink()
        else:
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1])
        problem(grown.http.get(f"{PATH}/{number}/checkpoint"), 500, slug)


def test_listings(grown: House) -> None:
    page = grown.http.get(f"{PATH}?limit=2").json()
    rest = grown.http.get(f"{PATH}?limit=2&cursor={page['next_cursor']}").json()
    assert [item["number"] for item in page["items"] + rest["items"]] == [3, 2, 1]
    assert rest["next_cursor"] is None
    assert [item["number"] for item in grown.http.get(f"{PATH}/champion/lineage").json()["items"]] == [3, 2, 1]
    first = grown.http.get(f"{PATH}/champion/lineage?limit=2").json()
    assert [item["number"] for item in first["items"]] == [3, 2]
    rest = grown.http.get(f"{PATH}/champion/lineage", params={"cursor": first["next_cursor"]}).json()
    assert ([item["number"] for item in rest["items"]], rest["next_cursor"]) == ([1], None)


def test_the_log_of_a_version(grown: House) -> None:
    entries = grown.http.get(f"{PATH}/2/audit").json()["items"]
    assert {"cycle.started", "version.published"} <= {entry["kind"] for entry in entries}
    assert all(entry["model"] == "gas" for entry in entries)


def test_the_time_line(grown: House) -> None:
    moments = grown.http.get("/v1/models/gas/metrics").json()["items"]
    assert [moment["version"] for moment in moments] == [1, 2, 3]
    assert [moment["champion_now"] for moment in moments] == [False, False, True]
    assert moments[0]["metrics"] == {"validation_accuracy": 0.75}


def test_rollback(grown: House) -> None:
    answer = grown.http.post(
        "/v1/models/gas/rollback", json={"reason": "line 3", "to": 1, "quarantine": [3, 3]}, headers=grown.revision()
    )
    body = answer.json()
    assert answer.status_code == 200, body
    assert (body["previous"], body["version"]["number"], body["alias"]["version"], body["quarantined"]) == (
        3,
        1,
        1,
        [3],
    )
    assert (body["superseded_cycles"], body["queued_cycle"]) == ([], None)
    densities = [grown.http.get(f"{PATH}/{number}").json()["density"] for number in (3, 1)]
    assert [body["density_before"], body["density_after"]] == densities
    assert grown.http.get("/v1/models/gas/megabatches/3").json()["status"] == "quarantined"
    assert grown.http.get("/v1/models/gas").json()["champion_revision"] == body["alias"]["revision"]
    problem(grown.upload(3), 409, "megabatch-quarantined")


def test_a_swept_version_is_shown_and_gone(grown: House) -> None:
    before = grown.http.get(f"{PATH}/1")
    assert (before.json()["swept_at"], before.json()["swept_reason"]) == (None, None)
    assert retain(grown.store, grown.settings.model_copy(update={"keep_versions": 1}), Actor("tester")) == 1
    after = grown.http.get(f"{PATH}/1", headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert after.json()["swept_reason"] == "retention keeps the newest 1, and what is needed"
    assert after.json()["metrics"] == before.json()["metrics"]
    assert grown.http.get(f"{PATH}/1/manifest").status_code == 200
    moves = [("rollback", {"reason": "x", "to": 1}), ("versions/1/promote", {"reason": "x"})]
    answers = [grown.http.get(f"{PATH}/1/checkpoint{query}") for query in ("", "?format=dense")]
    answers += [grown.http.post(f"/v1/models/gas/{p}", json=body, headers=grown.revision()) for p, body in moves]
    for answer in answers:
        assert "retention keeps the newest 1" in problem(answer, 410, "version-swept")["detail"]
    assert [v["swept_at"] is None for v in grown.http.get(PATH).json()["items"]] == [True, True, False]


@pytest.mark.parametrize("to", ["1", 1])
def test_rollback_takes_a_number_in_either_form(grown: House, to: object) -> None:
    answer = grown.http.post("/v1/models/gas/rollback", json={"reason": "worse", "to": to}, headers=grown.revision())
    assert answer.json()["version"]["number"] == 1


def test_rollback_to_what_is_no_ancestor(grown: House) -> None:
    for to, slug, status in (
        (3, "not-an-ancestor", 422),
        (9, "unknown-version", 404),
        ("beta", "unknown-version", 404),
    ):
        answer = grown.http.post("/v1/models/gas/rollback", json={"reason": "x", "to": to}, headers=grown.revision())
        problem(answer, status, slug)
    answer = grown.http.post(
        "/v1/models/gas/rollback", json={"reason": "x", "quarantine": [9]}, headers=grown.revision()
    )
    problem(answer, 404, "unknown-megabatch")
    assert grown.http.get(f"{PATH}/champion").json()["number"] == 3


@pytest.mark.parametrize("move", ["rollback", "versions/2/promote"])
def test_moves_need_the_revision_that_was_seen(grown: House, move: str) -> None:
    path, body = f"/v1/models/gas/{move}", {"reason": "worse"}
    assert "If-Match" in problem(grown.http.post(path, json=body), 428, "precondition-missing")["detail"]
    for stale in ('"2"', '"0"', '"999999999"'):
        problem(grown.http.post(path, json=body, headers={"If-Match": stale}), 412, "alias-moved")
    for wrong in ("*", "3", 'W/"3"', '"3", "4"', '"x"', '""', '"-3"', '"9999999999999"', f'"{"9" * 300}"'):
        answer = grown.http.post(path, json=body, headers={"If-Match": wrong})
        assert "If-Match: " in problem(answer, 400, "malformed-header")["detail"]
    assert grown.http.get(f"{PATH}/champion").json()["number"] == 3
    assert grown.http.post(path, json=body, headers={"If-Match": '"3"'}).status_code == 200


@pytest.mark.parametrize("move", ["rollback", "versions/2/promote"])
def test_moves_need_a_reason(grown: House, move: str) -> None:
    bodies: list[dict[str, object]] = [{}, {"reason": ""}, {"reason": None}, {"reason": "x" * 2001}, {"reason": 1}]
    for body in bodies:
        answer = grown.http.post(f"/v1/models/gas/{move}", json=body, headers=grown.revision())
        assert problem(answer, 422, "invalid-request")["errors"][0]["pointer"] == "/reason"


def test_promotion_overrides_a_verdict_and_says_so(grown: House) -> None:
    withheld = grown.publish(4, passed=False)
    assert grown.http.get(f"{PATH}/champion").json()["number"] == 3
    assert grown.http.get(f"{PATH}/latest").json()["number"] in (3, 4)
    path, body = f"{PATH}/{withheld.number}/promote", {"reason": "judged by hand"}
    problem(grown.http.post(path, json=body, headers=grown.revision()), 409, "verdict-stands")
    answer = grown.http.post(path, json={**body, "override": True}, headers=grown.revision())
    assert answer.json()["alias"]["version"] == 4
    assert answer.json()["previous"] == 3
    kinds = [entry["kind"] for entry in grown.http.get("/v1/audit?model=gas&limit=1000").json()["items"]]
    assert "guardrail.overridden" in kinds
    problem(grown.http.post(f"{PATH}/4/promote", json={"reason": "again"}, headers=grown.revision()), 409, "conflict")


def test_a_first_champion_is_promoted_from_revision_zero(house: House) -> None:
    house.create()
    house.publish(1, passed=False)
    body = {"reason": "first", "override": True}
    answer = house.http.post(f"{PATH}/1/promote", json=body, headers={"If-Match": '"0"'})
    assert (answer.status_code, answer.json()["previous"]) == (200, None), answer.text
