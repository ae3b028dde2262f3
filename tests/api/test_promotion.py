"""Promotion over HTTP: aliases of one's own, protection, proposals."""

from __future__ import annotations

from typing import Any

import pytest
from httpx import Response

from tests.api.conftest import House, problem

BASE = "/v1/models/gas"
REASON = {"reason": "seen to work"}


@pytest.fixture
def grown(house: House) -> House:
    house.create()
    for seed in (1, 2):
        house.publish(seed)
    return house


def protect(house: House, alias: str = "champion", **terms: Any) -> Response:
    return house.http.put(f"{BASE}/aliases/{alias}/protection", json={**REASON, **terms})


def test_an_alias_of_ones_own(grown: House) -> None:
    path, body = f"{BASE}/aliases/line-3", {"version": 1, **REASON}
    problem(grown.http.put(path, json=body), 428, "precondition-missing")
    made = grown.http.put(path, json=body, headers={"If-Match": '"0"'})
    assert (made.status_code, made.headers["ETag"]) == (200, '"1"')
    assert made.json()["alias"]["version"] == 1 and made.json()["previous"] is None
    assert grown.http.get(path).headers["ETag"] == '"1"'
    polled = grown.http.get(f"{BASE}/versions/line-3")
    assert polled.json()["number"] == 1 and polled.headers["Espalier-Alias-Revision"] == "1"
    problem(grown.http.put(path, json={**body, "version": 2}, headers={"If-Match": '"0"'}), 412, "alias-moved")
    moved = grown.http.put(path, json={**body, "version": 2}, headers={"If-Match": '"1"'})
    assert moved.json()["previous"] == 1
    assert grown.http.get(f"{BASE}/versions/line-3").json()["number"] == 2
    problem(grown.http.put(f"{BASE}/aliases/champion", json=body, headers=grown.revision()), 422, "invalid-name")
    problem(
        grown.http.put(f"{BASE}/aliases/edge", json={**body, "version": 9}, headers={"If-Match": '"0"'}),
        404,
        "unknown-version",
    )


def test_protection_is_seen_and_set(grown: House) -> None:
    path = f"{BASE}/aliases/champion/protection"
    assert grown.http.get(path).json() == {
        "alias": "champion", "approvals": 0, "automatic": True, "set_at": None,
    }  # fmt: skip
    done = protect(grown, approvals=1, automatic=False)
    assert done.status_code == 200 and done.json()["set_at"]
    assert grown.http.get(path).json() == done.json()
    problem(protect(grown, approvals=6), 422, "invalid-request")
    problem(grown.http.put(path, json={"approvals": 1}), 422, "invalid-request")
    problem(protect(grown, alias="latest", approvals=1), 422, "invalid-name")


def test_a_proposal_is_answered_with_202_and_never_approved_by_its_own_maker(grown: House) -> None:
    protect(grown, approvals=1)
    answer = grown.http.post(f"{BASE}/versions/1/promote", json=REASON, headers=grown.revision())
    assert (answer.status_code, answer.headers["Location"]) == (202, f"{BASE}/proposals/1")
    proposal = grown.http.get(answer.headers["Location"]).json()
    assert proposal == answer.json() and proposal["state"] == "open"
    assert grown.http.get(f"{BASE}/aliases/champion").json()["version"] == 2
    problem(grown.http.post(f"{BASE}/proposals/1/approve", json=REASON), 403, "self-approval")
    rejected = grown.http.post(f"{BASE}/proposals/1/reject", json=REASON)
    assert rejected.json()["state"] == "rejected"
    problem(grown.http.post(f"{BASE}/proposals/1/approve", json=REASON), 409, "proposal-closed")
    problem(grown.http.get(f"{BASE}/proposals/2"), 404, "unknown-proposal")
    assert [item["number"] for item in grown.http.get(f"{BASE}/proposals").json()["items"]] == [1]


def test_a_promotion_that_is_refused_changes_nothing(grown: House) -> None:
    withheld = grown.publish(3, passed=False)
    size = grown.http.get("/v1/audit/head").json()["size"]
    path = f"{BASE}/versions/{withheld.number}/promote"
    problem(grown.http.post(path, json=REASON, headers=grown.revision()), 409, "verdict-stands")
    problem(grown.http.post(path, json={"override": True}, headers=grown.revision()), 422, "invalid-request")
    problem(
        grown.http.post(path, json={**REASON, "override": "yes, please"}, headers=grown.revision()),
        422,
        "invalid-request",
    )
    assert grown.http.get("/v1/audit/head").json()["size"] == size
