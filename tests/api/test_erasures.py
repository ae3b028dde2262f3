"""Erasure and quarantine over HTTP: what is answered, refused, and kept nowhere."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from espalier.formats.megabatch import example_ids
from tests.api.conftest import House, examples, problem, upload_bytes

WHY = {"reason": "consent was withdrawn"}
MEGABATCH = "/v1/models/gas/megabatches/1"
ERASURES = "/v1/models/gas/erasures"


def files_with(folder: Path, values: np.ndarray) -> list[Path]:
    rows = [row.tobytes() for row in values]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(row in path.read_bytes() for row in rows)]


def test_a_megabatch_is_erased_and_again_changes_nothing(house: House, tmp_path: Path) -> None:
    house.create()
    for number in (1, 2):
        house.publish(number)
    x, _ = examples(1)
    assert files_with(tmp_path, x)
    done = house.http.delete(MEGABATCH, params={**WHY, "retrain": True}).json()
    assert done["megabatches"][0] | {"digest": ""} == {"megabatch": 1, "digest": "", "erased": 24, "left": 0}
    assert (done["versions"], done["aliases"], done["clean"], done["anew"]) == ([1, 2], {"champion": 2}, None, True)
    assert (done["preview"], done["pending"], done["queued_cycle"]) == (False, False, 3)
    assert files_with(tmp_path, x) == []
    found = house.http.get(MEGABATCH).json()
    assert (found["status"], found["examples"]) == ("erased", 24)
    assert found["erased_at"] is not None
    again = house.http.delete(MEGABATCH, params=WHY).json()
    assert (again["megabatches"], again["already"]) == ([], [1])


def test_no_answer_that_is_kept_for_a_repeated_request_holds_values(house: House, tmp_path: Path) -> None:
    house.create()
    assert house.upload(1, **{"Idempotency-Key": "first"}).status_code == 201
    apart = house.upload(1, **{"Idempotency-Key": "second", "Prefer": "respond-async"})
    assert apart.status_code == 202
    house.http.delete(MEGABATCH, params=WHY).raise_for_status()  # while the second one is being decoded, as a rule
    end = time.monotonic() + 60
    while house.http.get(apart.headers["Location"]).json()["state"] not in ("accepted", "refused"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert files_with(tmp_path, examples(1)[0]) == []
    problem(house.upload(1), 409, "megabatch-erased")
    assert house.staged() == []


def test_a_resumable_upload_leaves_nothing_either(house: House, tmp_path: Path) -> None:
    house.create()
    data = upload_bytes(1)
    tus = {"Tus-Resumable": "1.0.0"}
    made = house.http.post("/v1/models/gas/uploads", headers={**tus, "Upload-Length": str(len(data))})
    part = {**tus, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    house.http.patch(made.headers["Location"], content=data, headers=part).raise_for_status()
    house.http.delete(MEGABATCH, params=WHY).raise_for_status()
    assert files_with(tmp_path, examples(1)[0]) == []


def test_single_examples_by_ids_as_text(house: House) -> None:
    house.create()
    house.upload(1)
    ids = [str(id) for id in example_ids(examples(1)[0])[:2]]
    body = {"samples": [*ids, str(2**64 - 1)], **WHY}
    told = house.http.post(ERASURES, json={**body, "preview": True}).json()
    assert house.http.get(MEGABATCH).json()["examples"] == 24
    done = house.http.post(ERASURES, json=body).json()
    assert told["preview"] and not done["preview"]
    assert told["megabatches"] == done["megabatches"]
    assert (done["megabatches"][0]["erased"], done["absent"]) == (2, [str(2**64 - 1)])
    assert house.http.get(MEGABATCH).json()["examples"] == 22


@pytest.mark.parametrize(
    "body",
    [
        {"megabatches": [], **WHY},
        {"megabatches": [1]},
        {"samples": ["-1"], **WHY},
        {"samples": [str(2**64)], **WHY},
        {"megabatches": [0], **WHY},
        {"megabatches": [1], "reason": ""},
        {"megabatch": [1], **WHY},
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(house: House, body: dict[str, object]) -> None:
    house.create()
    house.upload(1)
    problem(house.http.post(ERASURES, json=body), 422, "invalid-request")
    assert house.http.get(MEGABATCH).json()["status"] == "accepted"


def test_an_erasure_says_why(house: House) -> None:
    house.create()
    house.upload(1)
    problem(house.http.delete(MEGABATCH), 422, "invalid-request")
    problem(house.http.delete("/v1/models/gas/megabatches/9", params=WHY), 404, "unknown-megabatch")
    problem(house.http.delete("/v1/models/steel/megabatches/1", params=WHY), 404, "unknown-model")


def test_the_last_evaluation_example_stays(house: House) -> None:
    house.create()
    house.upload(1)
    headers = {"Content-Type": "application/octet-stream"}
    house.http.put("/v1/models/gas/evaluation-set", content=upload_bytes(2), headers=headers).raise_for_status()
    ids = [str(id) for id in example_ids(examples(2)[0])]
    problem(house.http.post(ERASURES, json={"samples": ids, **WHY}), 409, "evaluation-emptied")


def test_quarantine_and_release(house: House) -> None:
    house.create()
    for seed in (1, 2):
        house.upload(seed)
    done = house.http.post(f"{MEGABATCH}/quarantine", json=WHY).json()
    assert (done["megabatch"]["status"], done["superseded_cycles"], done["queued_cycle"]) == ("quarantined", [1, 2], 3)
    again = house.http.post(f"{MEGABATCH}/quarantine", json=WHY).json()
    assert (again["megabatch"]["status"], again["superseded_cycles"], again["queued_cycle"]) == (
        "quarantined",
        [],
        None,
    )
    problem(house.upload(1), 409, "megabatch-quarantined")
    done = house.http.post(f"{MEGABATCH}/release", json=WHY).json()
    assert (done["megabatch"]["status"], done["superseded_cycles"], done["queued_cycle"]) == ("accepted", [3], 4)
    house.http.delete(MEGABATCH, params=WHY).raise_for_status()
    for verb in ("quarantine", "release", "pin"):
        problem(house.http.post(f"{MEGABATCH}/{verb}", json=WHY), 409, "megabatch-erased")


def test_a_misspelt_question_erases_nothing(house: House) -> None:
    house.create().raise_for_status()
    house.upload(1).raise_for_status()
    document = problem(house.http.delete(f"{MEGABATCH}?reason=asked&previw=true"), 422, "invalid-request")
    assert [fault["pointer"] for fault in document["errors"]] == ["/previw"]
    assert house.http.get(MEGABATCH).json()["status"] == "accepted"
