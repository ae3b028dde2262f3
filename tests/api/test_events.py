"""Event streams: what happens, as it happens, from where a caller left off."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from app.api import broadcast
from app.api.broadcast import Broadcast, Stream, Wanted
from app.api.routes import events
from tests.api.conftest import House, problem
from tests.api.test_dependencies import Served, until
from tests.api.test_polling import WIRES, changed, grow, serving


@dataclass
class Reader:
    """Reads one stream from a thread of its own."""

    lines: list[str] = field(default_factory=list)
    status: int = 0
    ended: bool = False
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    @property
    def blocks(self) -> list[dict[str, str]]:
        """Events and what else came, as names and values; comments are left out."""
        blocks, block = [], {}
        for line in self.lines:
            name, colon, value = line.partition(": ")
            if colon and name:
                block[name] = value
            elif not line and block:
                blocks.append(block)
                block = {}
        return blocks

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(block["data"]) for block in self.blocks if "data" in block]

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]


@contextmanager
def reading(served: Served, path: str = "/v1/events", **headers: str) -> Iterator[Reader]:
    found, client = Reader(), httpx.Client(timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}

    def read() -> None:
        try:
            with client.stream("GET", served.url + path, headers=sent) as answer:
                found.status, found.headers = answer.status_code, answer.headers
                for line in answer.iter_lines():
                    found.lines.append(line)
        except httpx.TransportError:
            pass
        found.ended = True

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: found.ended or bool(found.blocks))
    try:
        yield found
    finally:
        served.app.state.broadcast.lose()  # ends what is still open
        thread.join(10)
        client.close()
    assert not thread.is_alive()


@pytest.fixture
def served(house: House) -> Iterator[Served]:
    """The service, at a second process."""
    with serving(house.settings) as found:
        yield found


def streams(served: Served) -> int:
    return len(served.app.state.broadcast._streams)


def pause(house: House, reason: str = "wait", name: str = "gas") -> None:
    house.http.post(f"/v1/models/{name}/pause", json={"reason": reason}).raise_for_status()


def resume(house: House, name: str = "gas") -> None:
    house.http.post(f"/v1/models/{name}/resume", json={"reason": "go on"}).raise_for_status()


@WIRES
def test_what_happens_is_told(house: House, http: Any) -> None:
    with serving(house.settings, http) as served, reading(served) as stream:
        assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert stream.headers["Cache-Control"] == "no-cache"
        assert stream.blocks == [{"retry": "2000", "id": "0"}]
        house.create()
        pause(house, "line 3\nis down")
        until(lambda: len(stream.events) == 2)
        entries = house.http.get("/v1/audit").json()["items"]
        assert [block["id"] for block in stream.blocks[1:]] == ["1", "2"]
        assert [block["event"] for block in stream.blocks[1:]] == [entry["kind"] for entry in entries]
        assert stream.events[1] == {
            "seq": 2,
            "kind": "model.paused",
            "time": entries[1]["time"],
            "model": "gas",
            "actor": "local",
            "reason": "line 3\nis down",
            "parameters": {},
        }


def test_an_alias_that_moves_is_told_with_its_numbers(house: House, served: Served) -> None:
    grow(house)
    with reading(served, "/v1/models/gas/events?kind=alias.moved&kind=model.rolled_back") as stream:
        house.http.post("/v1/models/gas/rollback", json={"reason": "worse"}, headers=house.revision())
        until(lambda: len(stream.events) == 2)
    assert [event["kind"] for event in stream.events] == ["alias.moved", "model.rolled_back"]
    assert stream.events[0]["parameters"] == {"alias": "champion", "from": 2, "revision": 3, "to": 1}


def test_streams_hold_what_was_asked_for(house: House, served: Served) -> None:
    house.create()
    house.create("other")
    with (
        reading(served, "/v1/events?model=gas") as of_gas,
        reading(served, "/v1/events?kind=model.paused") as pauses,
        reading(served, "/v1/models/other/events") as of_other,
    ):
        for name in ("gas", "other"):
            pause(house, name=name)
            resume(house, name)
        until(lambda: len(of_gas.events) + len(pauses.events) + len(of_other.events) == 6)
    assert [(event["model"], event["kind"]) for event in of_gas.events + pauses.events + of_other.events] == [
        ("gas", "model.paused"),
        ("gas", "model.resumed"),
        ("gas", "model.paused"),
        ("other", "model.paused"),
        ("other", "model.paused"),
        ("other", "model.resumed"),
    ]


@pytest.mark.parametrize("last", [0, 1, 3, 5])
def test_a_stream_is_taken_up_where_it_was_left(
    house: House, served: Served, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(events, "_PAGE", 2)
    house.create()
    for _ in range(2):
        pause(house)
        resume(house)
    until(lambda: served.app.state.broadcast._seen == 5)
    with reading(served, last_event_id=str(last)) as stream:
        pause(house)
        until(lambda: 6 in stream.seqs)
    assert stream.seqs == list(range(last + 1, 7))
    assert stream.blocks[0]["id"] == str(last)


def test_a_filtered_stream_is_taken_up_too(house: House, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAGE", 1)
    house.create("other")
    house.create()
    for _ in range(2):
        pause(house)
        resume(house)
    for path in ("/v1/models/gas/events?kind=model.paused", "/v1/events?kind=model.paused&kind=model.lost"):
        with reading(served, path, last_event_id="1") as stream:
            until(lambda stream=stream: len(stream.seqs) >= 2)  # type: ignore[misc]
        assert stream.seqs == [3, 5]


def test_a_number_of_another_log_begins_at_the_end_of_this_one(house: House, served: Served) -> None:
    house.create()
    with reading(served, last_event_id="900") as stream:
        assert stream.blocks[0]["id"] == "1"
        pause(house)
        until(lambda: stream.seqs == [2])


def test_every_stream_misses_nothing_while_much_happens(house: House, served: Served) -> None:
    house.create()
    with reading(served, last_event_id="0") as early:
        for number in range(10):
            pause(house, str(number))
            resume(house)
            if number == 5:
                late = reading(served, last_event_id="0")
                joined = late.__enter__()
        until(lambda: early.seqs[-1] == joined.seqs[-1] == 21)
        late.__exit__(None, None, None)
    assert early.seqs == joined.seqs == list(range(1, 22))


def test_a_silent_stream_says_that_it_lives(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "HEARTBEAT_SECONDS", 0.02)
    with serving(house.settings) as served, reading(served) as stream:
        until(lambda: stream.lines.count(":") >= 3)
    assert stream.events == []


def test_faulty_questions(house: House) -> None:
    problem(house.http.get("/v1/models/nobody/events"), 404, "unknown-model")
    problem(house.http.get("/v1/events?model=No"), 422, "invalid-request")
    for last in ("x", "-1", str(2**60)):
        problem(house.http.get("/v1/events", headers={"Last-Event-ID": last}), 422, "invalid-request")
    assert house.http.head("/v1/events").headers["Content-Type"] == "text/event-stream; charset=utf-8"


def test_a_stream_needs_the_key(house: House) -> None:
    with serving(changed(house.settings, api_key="a-long-key")) as served:
        assert httpx.get(f"{served.url}/v1/events").status_code == 401
        with reading(served, Authorization="Bearer a-long-key") as stream:
            assert stream.status == 200


def test_a_caller_that_goes_away_is_forgotten(house: House, served: Served) -> None:
    with served.connect() as wire:
        wire.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: streams(served) == 1)
    until(lambda: streams(served) == 0)


def test_streams_end_when_the_service_is_left(house: House, served: Served) -> None:
    with reading(served) as stream:
        served.app.state.broadcast.leave()
        until(lambda: stream.ended)
        assert streams(served) == 0
        assert httpx.get(f"{served.url}/v1/events").status_code == 200  # and it has an end


@pytest.mark.slow
def test_who_does_not_read_is_ended_and_not_waited_for(
    house: House, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that reads nothing must cost neither memory without end, nor another one's time."""
    monkeypatch.setattr(broadcast, "MOST_WAITING", 20)
    monkeypatch.setattr(broadcast, "spelled", lambda entry: b"id: %d\ndata: %s\n\n" % (entry.seq, b"x" * 500_000))
    house.create()
    with served.connect() as stuck:
        stuck.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: streams(served) == 1)
        (slow,) = served.app.state.broadcast._streams
        with reading(served) as quick:
            for number in range(30):
                pause(house)
                resume(house)
                until(lambda seq=2 * number + 3: f"id: {seq}" in quick.lines)  # type: ignore[misc]
        assert slow.ended and not slow._waiting


def test_a_stream_that_is_too_far_behind_is_ended() -> None:
    async def run() -> None:
        stream = Stream(Wanted(), 0, lambda: True)
        for _ in range(broadcast.MOST_WAITING):
            stream.put(b"x")
        assert not stream.ended
        stream.put(b"x")
        assert stream.ended
        assert [chunk async for chunk in stream.chunks()] == []

    asyncio.run(run())


def test_nothing_is_kept_for_nobody() -> None:
    unstarted = Broadcast()
    unstarted.follow([])
    unstarted.lose()
    unstarted.leave()
