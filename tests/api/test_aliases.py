"""Aliases over HTTP."""

from __future__ import annotations

import pytest

from tests.api.conftest import House, problem

PATH = "/v1/models/gas/aliases/champion"


@pytest.fixture
def grown(house: House) -> House:
    house.create()
    house.publish(1)
    house.publish(2)
    return house


def test_where_it_points(grown: House) -> None:
    answer = grown.http.get(PATH)
    body = answer.json()
    assert (body["model"], body["name"], body["version"], body["revision"]) == ("gas", "champion", 2, 2)
    assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == ('"2"', "no-cache")
    for given in ('"2"', 'W/"2"', '"1", "2"', "*"):
        assert grown.http.get(PATH, headers={"If-None-Match": given}).status_code == 304
    assert grown.http.get(PATH, headers={"If-None-Match": '"1"'}).status_code == 200


def test_where_it_pointed(grown: House) -> None:
    moves = grown.http.get(f"{PATH}/history").json()["items"]
    assert [(move["revision"], move["previous"], move["version"]) for move in moves] == [(2, 1, 2), (1, None, 1)]
    assert {move["actor"] for move in moves} == {"worker-1"}
    then = grown.http.get(PATH, params={"at": moves[1]["moved_at"]})
    assert (then.json()["version"], then.headers["ETag"]) == (1, '"1"')
    assert grown.http.get(PATH, params={"at": "2999-01-01T00:00:00+02:00"}).json()["version"] == 2
    problem(grown.http.get(PATH, params={"at": "2001-01-01T00:00:00Z"}), 404, "unknown-alias")


@pytest.mark.parametrize(
    "at", ["yesterday", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59", ""]
)
def test_times_that_are_none(grown: House, at: str) -> None:
    answer = grown.http.get(PATH, params={"at": at})
    assert answer.status_code in (404, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_history_goes_on_from_its_cursor(grown: House) -> None:
    page = grown.http.get(f"{PATH}/history?limit=1").json()
    rest = grown.http.get(f"{PATH}/history?limit=1&cursor={page['next_cursor']}").json()
    assert [move["revision"] for move in page["items"] + rest["items"]] == [2, 1]
