"""``?format=bundle``: a version with everything that shows where it comes from, over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from httpx import Response

from espalier.formats.bundle import verify_bundle
from espalier.formats.canonical import sha256_digest
from espalier.formats.note import VerifierKey
from tests.api.conftest import House, content_digest, opened, problem
from tests.lineages import Lineage

PATH = "/v1/models/gas/versions/{}/checkpoint?format=bundle"


@pytest.fixture
def line(house: House) -> Lineage:
    line = Lineage(house.store)
    line.publish()
    line.publish()
    return line


def get(house: House, ref: object = "champion", **headers: str) -> Response:
    return house.http.get(PATH.format(ref), headers=headers)


def test_it_verifies_with_the_key_of_the_log(house: House, line: Lineage, tmp_path: Path) -> None:
    answer = get(house)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="gas-2.zip"'
    assert answer.headers["ETag"] == f'"{sha256_digest(answer.content)}"'
    assert answer.headers["Content-Digest"] == answer.headers["Repr-Digest"] == content_digest(answer.content)
    assert answer.headers["Cache-Control"] == "no-cache", "the next one is proved against a longer log"
    assert answer.headers["Espalier-Alias-Revision"] == "2"
    (tmp_path / "x.zip").write_bytes(answer.content)
    keys = [VerifierKey.parse(key) for key in house.http.get("/v1/audit/keys").json()["keys"]]
    found = verify_bundle(tmp_path / "x.zip", keys)
    assert (found.model, found.version, len(found.lineage)) == ("gas", 2, 2)
    assert house.staged() == []


def test_ranges_conditions_and_head(house: House, line: Lineage) -> None:
    whole = get(house)
    tag = whole.headers["ETag"]
    part = get(house, Range="bytes=100-199", **{"If-Range": tag})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    held = get(house, **{"If-None-Match": tag})
    assert (held.status_code, held.content, held.headers["ETag"]) == (304, b"", tag)
    head = house.http.head(PATH.format(2))
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole.content)))
    line.publish()
    resumed = get(house, 2, Range="bytes=100-", **{"If-Range": tag})
    assert resumed.status_code == 200, "the log has grown, and the bundle with it: a part of the new one would not fit"
    assert resumed.content != whole.content
    assert house.staged() == []


def test_what_cannot_be_had_is_a_problem_and_leaves_nothing(house: House, line: Lineage) -> None:
    problem(get(house, 9), 404, "unknown-version")
    problem(house.http.get("/v1/models/other/versions/1/checkpoint?format=bundle"), 404, "unknown-model")
    problem(house.http.get("/v1/models/gas/versions/1/checkpoint?format=zip"), 422, "invalid-request")
    problem(get(house, Range="bytes=99999999-"), 416, "range-not-satisfiable")
    assert house.staged() == []


def test_a_damaged_checkpoint_is_not_handed_out(house: House, line: Lineage) -> None:
    assert line.last is not None
    path = house.store.blobs.path(line.last.checkpoint)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!!")
    problem(get(house), 500, "corrupt-blob")
    assert house.staged() == []


def test_a_log_that_was_set_back_is_not_signed(house: House, line: Lineage) -> None:
    assert get(house).status_code == 200
    (house.settings.data_dir / "log" / "checkpoint").write_text("nonsense\n")
    problem(get(house), 500, "fault")
    assert house.http.get("/v1/models/gas/versions/1/checkpoint").status_code == 200, (
        "the bytes alone need no signature"
    )
    assert house.staged() == []


def test_two_processes_of_one_deployment_give_the_same_bytes(house: House, line: Lineage) -> None:
    first = get(house).content
    with opened(house.settings) as other:
        assert get(other).content == first


def test_entries_go_on_after_a_number(house: House, line: Lineage) -> None:
    items = house.http.get("/v1/audit?after=3&limit=2").json()
    assert [item["seq"] for item in items["items"]] == [4, 5]
    more = house.http.get("/v1/audit", params={"after": 3, "limit": 2, "cursor": items["next_cursor"]}).json()
    assert [item["seq"] for item in more["items"]] == [6, 7]
    assert house.http.get("/v1/audit?after=9999").json()["items"] == []
    problem(house.http.get("/v1/audit?after=-1"), 422, "invalid-request")
