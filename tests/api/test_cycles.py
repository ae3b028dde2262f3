"""Cycles over HTTP."""

from __future__ import annotations

from app.domain import Phase, Progress
from tests.api.conftest import WORKER, House, problem

PATH = "/v1/models/gas/cycles"


def test_train_now(house: House) -> None:
    house.create(recipe={"trigger": {"name": "manual"}})
    problem(house.http.post(PATH), 409, "nothing-to-train")
    house.upload()
    answer = house.http.post(PATH, json={"reason": "now"})
    assert (answer.status_code, answer.headers["Location"]) == (202, f"{PATH}/1")
    body = answer.json()
    assert (body["state"], body["trigger"], body["through"], body["progress"]) == ("queued", "manual", 1, None)
    assert house.http.get(answer.headers["Location"]).json() == body
    assert house.http.post(PATH).json() == body, "one that waits already is answered as it is"
    entry = house.http.get("/v1/audit?kind=cycle.requested").json()["items"][0]
    assert entry["document"]["reason"] == "now"


def test_bodies_of_requests(house: House) -> None:
    house.create(recipe={"trigger": {"name": "manual"}})
    house.upload()
    problem(house.http.post(PATH, json={"why": "x"}), 422, "invalid-request")
    problem(house.http.post(PATH, content=b"{"), 415, "unsupported-media-type")
    assert house.http.post(PATH, json={}).status_code == 202


def test_progress_of_a_running_cycle(house: House) -> None:
    house.create()
    house.upload()
    with house.store.transaction(WORKER) as tx:
        claim = tx.ledger.claim_cycle("worker-1", 60)
        assert claim is not None
        tx.audit.append("cycle.started", model="gas")
    with house.store.transaction(WORKER) as tx:
        tx.ledger.renew(claim, Progress(Phase.TRAIN, 1, 2, 3, 4, 0.5, 0.25), 60)
    body = house.http.get(f"{PATH}/1").json()
    assert body["state"] == "running"
    assert body["progress"] == {
        "phase": "train", "epoch": 1, "epochs": 2, "step": 3, "steps": 4, "loss": 0.5, "density": 0.25
    }  # fmt: skip
    assert house.http.get("/v1/models/gas").json()["running_cycle"] == 1
    assert house.http.get("/readyz").json()["worker"]["running_cycles"] == 1


def test_cycles_are_listed_newest_first(house: House) -> None:
    house.create()
    for seed in (1, 2, 3):
        house.upload(seed)
    page = house.http.get(f"{PATH}?limit=2").json()
    rest = house.http.get(f"{PATH}?limit=2&cursor={page['next_cursor']}").json()
    assert [cycle["number"] for cycle in page["items"] + rest["items"]] == [3, 2, 1]
