"""What an auditor asks, over HTTP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from httpx import Response

from app.service.lease import Running
from app.service.training import run_next_cycle
from espalier.formats import checkpoint, megabatch
from espalier.formats.canonical import sha256_digest
from espalier.formats.custody import Use, decode_answers, decode_samples
from tests.api.conftest import RECIPE, House, examples, problem
from tests.custody import FRESH, HELD_BACK, OLD, make_recorded

SAMPLES = "/v1/models/gas/versions/champion/samples"
BIG = 2**64 - 1


@pytest.fixture
def grown(house: House) -> House:
    """Two megabatches; version 1 is older than the record, version 2 saw the first, version 3 both."""
    house.create()
    house.publish(1)
    house.publish(2)
    with house.store.reading() as tx:
        model = tx.ledger.model("gas")
    answered = {4: (0, 0, 0.5), 5: (1, 0, 0.75), BIG: (2, 2, 1.0)}
    make_recorded(house.store, model, {1: {11: FRESH, BIG: HELD_BACK}}, evaluation=answered, classes=("a", "b", "c"))
    answered = {4: (0, 1, 0.5), 5: (1, 1, 0.75), BIG: (2, 2, 1.0)}
    second = {1: {11: OLD | Use.KEPT}, 2: {21: FRESH, 22: FRESH}}
    make_recorded(house.store, model, second, evaluation=answered, classes=("a", "b", "c"))
    return house


def everything(house: House, path: str, **params: object) -> list[dict]:
    items, cursor = [], None
    while True:
        page = house.http.get(path, params={**params, "limit": 1, **({"cursor": cursor} if cursor else {})}).json()
        items += page["items"]
        if (cursor := page["next_cursor"]) is None:
            return items


def test_the_versions_of_a_megabatch(grown: House) -> None:
    path = "/v1/models/gas/megabatches/1/versions"
    answer = grown.http.get(path).json()
    assert (answer["megabatch"], answer["status"], answer["next_cursor"]) == (1, "accepted", None)
    assert answer["items"] == [
        {"version": 3, "uses": ["trained", "validation", "new"]},
        {"version": 4, "uses": ["trained", "replayed", "kept"]},
    ]
    assert everything(grown, path) == answer["items"]
    assert [item["version"] for item in everything(grown, "/v1/models/gas/megabatches/2/versions")] == [4]
    problem(grown.http.get("/v1/models/gas/megabatches/9/versions"), 404, "unknown-megabatch")
    problem(grown.http.get("/v1/models/air/megabatches/1/versions"), 404, "unknown-model")


def test_the_megabatches_and_samples_of_a_version(grown: House) -> None:
    seen = grown.http.get("/v1/models/gas/versions/4/megabatches").json()
    assert [(item["megabatch"], item["counts"]) for item in seen["items"]] == [
        (1, {"trained": 1, "replayed": 1, "kept": 1}),
        (2, {"trained": 2, "new": 2}),
    ]
    items = grown.http.get(SAMPLES).json()["items"]
    assert [(item["megabatch"], item["id"], item["uses"], item["erased"]) for item in items] == [
        (1, "11", ["trained", "replayed", "kept"], False),
        (2, "21", ["trained", "new"], False),
        (2, "22", ["trained", "new"], False),
    ]
    assert [item["id"] for item in everything(grown, SAMPLES, megabatch=2, use="new")] == ["21", "22"]
    line = grown.http.get(SAMPLES, params={"lineage": True}).json()
    assert [(item["version"], item["id"]) for item in line["items"]][3:] == [(3, "11"), (3, str(BIG))]
    assert line["unrecorded"] == [2, 1]
    assert everything(grown, SAMPLES, lineage=True) == line["items"]
    problem(grown.http.get("/v1/models/gas/versions/1/samples"), 404, "not-recorded")


@pytest.mark.parametrize(
    "query", ["use=drunk", "megabatch=0", "megabatch=x", "lineage=perhaps", "limit=0", "use=trained&limit=9999999"]
)
def test_questions_that_are_none(grown: House, query: str) -> None:
    problem(grown.http.get(f"{SAMPLES}?{query}"), 422, "invalid-request")


@pytest.mark.parametrize("cursor", ["x", "c2FtcGxlczo", "c2FtcGxlczoxLXg", "c2FtcGxlczotMQ", "dXNlczox"])
def test_cursors_of_other_listings(grown: House, cursor: str) -> None:
    problem(grown.http.get(SAMPLES, params={"cursor": cursor}), 400, "invalid-cursor")


def test_the_whole_record(grown: House) -> None:
    answer = grown.http.get("/v1/models/gas/versions/4/records/samples")
    assert answer.headers["ETag"] == f'"{sha256_digest(answer.content)}"'
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    ids, use = decode_samples(answer.content)[1]
    assert (ids.tolist(), use.tolist()) == ([11], [OLD | Use.KEPT])
    answers = decode_answers(grown.http.get("/v1/models/gas/versions/4/records/answers").content)
    np.testing.assert_array_equal(answers.answers, [1, 1, 2])
    again = grown.http.get(answer.request.url.path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    part = grown.http.get(answer.request.url.path, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, answer.content[:8])
    problem(grown.http.get("/v1/models/gas/versions/4/records/falls"), 404, "not-recorded")
    problem(grown.http.get("/v1/models/gas/versions/4/records/secrets"), 422, "invalid-request")


def diff(house: House, before: object = 3, now: object = "champion", **params: object) -> Response:
    return house.http.get(f"/v1/models/gas/versions/{before}/diff/{now}", params=params)


def test_what_changed_its_answer(grown: House) -> None:
    found = diff(grown).json()
    assert (found["model"], found["before"], found["now"], found["density"]) == (
        "gas",
        3,
        4,
        {"before": 0.6, "now": 0.6},
    )
    assert found["metrics"]["validation_accuracy"] == {"before": 0.1 + 0.2, "now": 0.1 + 0.2, "change": 0.0}
    (evaluation,) = found["answers"]
    counts = {"examples": 3, "fixed": 1, "broken": 1, "changed": 0, "unchanged": 1}
    assert evaluation["total"] == {**counts, "accuracy": {"before": 2 / 3, "now": 2 / 3}}
    assert evaluation["by_class"].keys() == {"a", "b", "c"}
    assert found["items"][0] == {
        "source": "evaluation",
        "id": "4",
        "kind": "broken",
        "label": "a",
        "answers": {"before": "a", "now": "b"},
        "confidence": {"before": 0.5, "now": 0.5},
        "erased": False,
    }
    assert [item["id"] for item in diff(grown, kind=["fixed"]).json()["items"]] == ["5"]
    assert [item["id"] for item in diff(grown, kind=["unchanged", "fixed"]).json()["items"]] == ["5", str(BIG)]
    assert [item["id"] for item in diff(grown, **{"class": "a"}).json()["items"]] == ["4"]
    assert diff(grown, source="validation").json()["items"] == []
    assert everything(grown, "/v1/models/gas/versions/3/diff/4") == found["items"]


def test_comparisons_that_cannot_be(grown: House) -> None:
    problem(diff(grown, 1), 404, "not-recorded")
    problem(diff(grown, 9), 404, "unknown-version")
    problem(diff(grown, kind="worse"), 422, "invalid-request")
    problem(diff(grown, "A!", 3), 422, "invalid-request")


def test_who_made_it_the_champion_then_and_why(grown: House) -> None:
    path = "/v1/models/gas/aliases/champion"
    moved = grown.http.get(f"{path}/history").json()["items"][-1]
    then = grown.http.get(path, params={"at": moved["moved_at"]}).json()
    assert (then["version"], then["actor"], then["reason"]) == (1, "worker-1", "passed")
    assert grown.http.get(path).json()["actor"] is None


@pytest.fixture
def trained(house: House) -> House:
    """Three versions, each made by a real cycle out of an upload."""
    training = {"epochs": 2, "minibatch": 16, "least_steps": 0}
    recipe = {**RECIPE, "training": training, "guardrails": [], "validation_share": 0.4}
    house.create(recipe=recipe).raise_for_status()
    for seed in (1, 2, 3):
        house.upload(data=megabatch.encode(*examples(seed, n=90))).raise_for_status()
        running = Running("worker-1")
        ended = run_next_cycle(house.store, house.settings, running=running, device=torch.device("cpu"))
        assert ended is not None and ended.version == seed, ended
    return house


def test_after_real_cycles_an_auditor_gets_every_answer(trained: House) -> None:
    """What is told over HTTP is what was uploaded, and what the checkpoints themselves answer."""
    path = "/v1/models/gas/versions"
    x, y = (np.concatenate(parts) for parts in zip(*(examples(seed, n=90) for seed in (1, 2)), strict=True))
    ids = megabatch.example_ids(x)
    held = megabatch.is_validation(ids, 0.4)
    answers = {n: decode_answers(trained.http.get(f"{path}/{n}/records/answers").content) for n in (2, 3)}
    assert sorted(ids[held].tolist()) == answers[2].ids.tolist()
    saved = {n: checkpoint.decode(trained.http.get(f"{path}/{n}/checkpoint").content) for n in (2, 3)}
    before, now = (saved[n].predict(x[held]) for n in (2, 3))
    diff = trained.http.get(f"{path}/2/diff/3", params={"limit": 100}).json()
    changed = {
        str(id): (int(label), int(old), int(new))
        for id, label, old, new in zip(ids[held].tolist(), y[held], before, now, strict=True)
        if old != new
    }
    assert {item["id"] for item in diff["items"]} == changed.keys()
    used = everything(trained, f"{path}/3/samples", use="trained", megabatch=3)
    third = megabatch.example_ids(examples(3, n=90)[0])
    assert {item["id"] for item in used} == set(map(str, third[~megabatch.is_validation(third, 0.4)].tolist()))
    assert [item["version"] for item in everything(trained, "/v1/models/gas/megabatches/1/versions")] == [1, 2, 3]


def test_after_real_cycles_the_champion_of_any_time_is_known(trained: House) -> None:
    history = trained.http.get("/v1/models/gas/aliases/champion/history").json()["items"]
    assert sorted(move["version"] for move in history) == [1, 2, 3]
    for move in history:
        found = trained.http.get("/v1/models/gas/aliases/champion", params={"at": move["moved_at"]})
        assert found.json()["version"] == move["version"], found.text
