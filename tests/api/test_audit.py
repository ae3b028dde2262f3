"""The log over HTTP."""

from __future__ import annotations

import pytest

from espalier.formats.proof import verify_log
from tests.api.conftest import House, problem


def test_entries_verify_on_the_client(house: House) -> None:
    house.create()
    house.publish()
    entries = house.http.get("/v1/audit?limit=1000").json()["items"]
    head = house.http.get("/v1/audit/head").json()
    assert head["size"] == len(entries)
    verify_log(entries, head["size"], head["root"])
    assert house.http.get("/v1/audit/verify").json() == {**head, "verified": True}
    one = house.http.get(f"/v1/audit/{entries[1]['seq']}").json()
    assert one == entries[1]


def test_filters_and_cursors(house: House) -> None:
    house.create("a")
    house.create("b")
    house.upload(name="a")
    kinds = [entry["kind"] for entry in house.http.get("/v1/audit?model=a").json()["items"]]
    assert kinds[0] == "model.created"
    assert "megabatch.accepted" in kinds
    created = house.http.get("/v1/audit?kind=model.created").json()["items"]
    assert [entry["model"] for entry in created] == ["a", "b"]
    page = house.http.get("/v1/audit?limit=1").json()
    rest = house.http.get(f"/v1/audit?limit=1000&cursor={page['next_cursor']}").json()["items"]
    assert [entry["seq"] for entry in page["items"] + rest] == [
        entry["seq"] for entry in house.http.get("/v1/audit?limit=1000").json()["items"]
    ]
    assert house.http.get("/v1/audit?kind=no.such").json()["items"] == []


@pytest.mark.parametrize("query", ["model=%00", "model=UPPER", "kind=%00", "kind=A", "kind=a..b", "kind=' OR 1=1"])
def test_filters_that_cannot_be(house: House, query: str) -> None:
    problem(house.http.get(f"/v1/audit?{query}"), 422, "invalid-request")
