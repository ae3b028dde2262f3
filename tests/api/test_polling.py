"""Polls from memory: the same answers as the route's, never stale, without the database; and long polls."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import Request, Response

from app.api.application import create_app
from app.api.leaving import on_leaving
from app.api.polling import TRUSTED_SECONDS, Polled, Polls
from app.api.representations import Representation
from app.api.schemas import Reason
from app.api.scopes import NEEDS
from app.api.wire import Wire
from app.config import Settings
from app.domain import AuditEntry, Scope
from app.errors import StoreBusy
from tests.api.conftest import House, opened, problem
from tests.api.test_dependencies import Served, until
from tests.conftest import SERVER

VERSION = "/v1/models/gas/versions/champion"
ALIAS = "/v1/models/gas/aliases/champion"
ADDRESSES = [VERSION, ALIAS, "/v1/models/gas/versions/latest", "/v1/models/gas/versions/1"]
WIRES = pytest.mark.parametrize("http", [Wire, "httptools", "h11"], ids=["wire", "httptools", "h11"])


def grow(house: House, versions: int = 2) -> House:
    """A model with versions."""
    assert house.create().status_code == 201
    for seed in range(1, versions + 1):
        house.publish(seed)
    return house


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


@contextmanager
def serving(settings: Settings, http: Any = Wire) -> Iterator[Served]:
    """An application over real connections."""
    app = create_app(settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=http, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started)
        yield Served(app, listening.getsockname()[1])
    finally:
        app.state.polls.leave()
        app.state.broadcast.leave()
        server.should_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def statements(house: House) -> Iterator[list[str]]:
    """What is asked of the database meanwhile, but for the feed's own looks."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread().name != "feed":
            seen.append(statement)

    sa.event.listen(house.store._engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(house.store._engine, "before_cursor_execute", note)


# -- the same answers --------------------------------------------------------------------------------------------------


def requests_of(tags: dict[str, str]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    for path in ADDRESSES:
        for method in ("GET", "HEAD"):
            for given in ("{}", "W/{}", '"other", {}', "*", '"other"', "", "nonsense"):
                yield method, path, [("If-None-Match", given.format(tags[path]))]
            yield method, path, []
            yield method, path, [("If-None-Match", '"other"'), ("If-None-Match", tags[path])]
            yield method, path, [("X-Request-Id", "mine"), ("Accept", "text/html"), ("Connection", "close")]
            yield method, path + "?other=1", [("If-None-Match", tags[path])]
            yield method, path, [("Authorization", "Bearer wrong")]
            yield method, path, [("Authorization", "")]
        for method in ("POST", "DELETE", "OPTIONS"):
            yield method, path, []
        yield "GET", path + "/", []
        yield "GET", path.replace("gas", "g%61s"), [("If-None-Match", tags[path])]
    yield "GET", ALIAS + "?at=2200-01-01T00:00:00Z", []
    yield "GET", ALIAS + "?at=1900-01-01T00:00:00Z", []
    yield "GET", "/v1/models/gas/versions/nobody", []
    yield "GET", "/v1/models/nobody/versions/champion", []


@pytest.mark.slow
@WIRES
def test_memory_answers_as_the_route_does(settings: Settings, http: Any) -> None:
    locked = changed(settings, api_key="a-long-key")
    key = {"Authorization": "Bearer a-long-key"}
    with (
        opened(changed(locked, polled_addresses=0)) as house,
        serving(locked, http) as served,
        httpx.Client(base_url=served.url) as remembered,
        serving(changed(locked, polled_addresses=0), "h11") as plain,
        httpx.Client(base_url=plain.url) as read,
    ):
        house.http.headers.update(key)
        grow(house)
        until(lambda: all(remembered.get(path, headers=key).status_code == 200 for path in ADDRESSES))
        tags = {path: remembered.get(path, headers=key).headers["ETag"] for path in ADDRESSES}
        for method, path, headers in requests_of(tags):
            sent = headers if any(name == "Authorization" for name, _ in headers) else [*headers, *key.items()]
            ours, theirs = (client.request(method, path, headers=sent) for client in (remembered, read))
            assert seen(ours) == seen(theirs), (method, path, headers)
            named = dict(headers).get("X-Request-Id")
            assert named is None or ours.headers["X-Request-Id"] == named


def seen(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    """An answer without what differs from one to the next."""
    own = answer.headers.get("X-Request-Id", "")
    assert re.fullmatch(r"[0-9a-f]{32}|mine", own)
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    if answer.status_code >= 400:
        headers.pop("content-length")
    return answer.status_code, headers, answer.text.replace(own, "ID")


def test_one_log_line_a_poll_names_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    grow(house)
    with serving(house.settings) as served, caplog.at_level(logging.INFO, "app.api.access"):
        for given in ("first", "second"):
            httpx.get(served.url + VERSION, headers={"X-Request-Id": given})
    lines = [record.getMessage() for record in caplog.records if record.name == "app.api.access"]
    assert [re.fullmatch(rf"GET {VERSION} 200 \d+\.\d ms (\w+)", line)[1] for line in lines] == ["first", "second"]


@WIRES
def test_polls_on_one_connection_are_answered_in_order(house: House, http: Any) -> None:
    grow(house)
    with serving(house.settings, http) as served, served.connect() as wire:
        wanted = [VERSION, "/livez", VERSION, ALIAS, "/v1/models", VERSION] * 2
        for path in (VERSION, ALIAS):
            httpx.get(served.url + path).raise_for_status()
        more = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r{n}\r\n" for n, path in enumerate(wanted)]
        wire.sendall(("\r\n".join(more) + "Connection: close\r\n\r\n").encode())
        read = b"".join(iter(lambda: wire.recv(65536), b""))
    assert re.findall(rb"x-request-id: (\w+)", read) == [b"r%d" % n for n in range(len(wanted))]


def test_a_poll_with_a_body_is_read_to_its_end(house: House) -> None:
    grow(house)
    with serving(house.settings) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(3):
            assert client.request("GET", VERSION, content=b"not asked for").status_code == 200
            assert client.get(ALIAS).status_code == 200


# -- the database ------------------------------------------------------------------------------------------------------


def test_a_warm_poll_asks_nothing_of_the_database(house: House) -> None:
    grow(house)
    tags = {path: house.http.get(path).headers["ETag"] for path in ADDRESSES}
    with statements(house) as asked:
        for path, tag in tags.items():
            assert house.http.get(path).status_code == 200
            assert house.http.get(path, headers={"If-None-Match": tag}).status_code == 304
            assert house.http.head(path).status_code == 200
    assert asked == []


def test_without_memory_every_poll_does(settings: Settings) -> None:
    with opened(changed(settings, polled_addresses=0)) as house:
        grow(house)
        house.http.get(VERSION)
        with statements(house) as asked:
            house.http.get(VERSION)
        assert asked


def test_the_process_that_moves_an_alias_is_never_stale(house: House) -> None:
    grow(house, 3)
    for path in ADDRESSES:
        house.http.get(path)
    for number in (1, 2, 3, 1):
        body, headers = {"reason": "try it"}, house.revision()
        house.http.post(f"/v1/models/gas/versions/{number}/promote", json=body, headers=headers).raise_for_status()
        with statements(house) as asked:
            assert house.http.get(VERSION).json()["number"] == number
            alias = house.http.get(ALIAS)
            assert (alias.json()["version"], alias.headers["ETag"]) == (number, f'"{alias.json()["revision"]}"')
        assert asked == []


def test_latest_follows_what_is_published_and_not_what_is_withheld(house: House) -> None:
    grow(house)
    latest = "/v1/models/gas/versions/latest"
    assert house.http.get(latest).json()["number"] == 2
    house.publish(3, passed=False)
    assert house.http.get(latest).json()["number"] == 2
    house.publish(4)
    assert house.http.get(latest).json()["number"] == 4


def test_another_process_is_stale_for_moments_only(settings: Settings) -> None:
    with opened(settings) as here, opened(settings) as there:
        grow(here)
        for house in (here, there):
            assert house.http.get(VERSION).json()["number"] == 2
        here.http.post("/v1/models/gas/rollback", json={"reason": "worse"}, headers=here.revision()).raise_for_status()
        moved = time.monotonic()
        until(lambda: there.http.get(VERSION).json()["number"] == 1)
        assert time.monotonic() - moved < TRUSTED_SECONDS
        with statements(there) as asked:
            assert there.http.get(VERSION).json()["number"] == 1
        assert asked == []


@pytest.mark.parametrize("path", ["cycles/3", "cycles", "versions"])
def test_who_was_told_of_a_cycle_finds_its_version(settings: Settings, path: str) -> None:
    """The worker is another process: without this, a poll after the wait for a cycle could show the version before."""
    slow = changed(settings, refresh_seconds=1.0)
    with opened(slow) as here, opened(slow) as worker:
        grow(here)
        assert here.http.get(VERSION).json()["number"] == 2
        for seed in (3, 4, 5):
            worker.publish(seed)
            here.http.get(f"/v1/models/gas/{path}").raise_for_status()
            assert here.http.get(VERSION).json()["number"] == seed


def test_a_database_out_of_reach_is_said(house: House, database_url: str) -> None:
    """Not at once, since nothing may have changed; but soon, since something may have. And it passes by itself."""
    if house.store.dialect != "postgresql":
        pytest.skip("a server can go away")
    grow(house)
    house.http.get(VERSION).raise_for_status()
    name = sa.make_url(database_url).database
    server = sa.create_engine(str(SERVER), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as admin:
        admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        assert house.http.get(VERSION).status_code == 200
        began = time.monotonic()
        until(lambda: house.http.get(VERSION).status_code == 503)
        assert time.monotonic() - began < TRUSTED_SECONDS + 3
        answer = house.http.get(VERSION)
        problem(answer, 503, "store-busy")
        assert answer.headers["Retry-After"] == "1"
        admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    until(lambda: house.http.get(VERSION).status_code == 200 and house.app.state.polls.trusted)


# -- what is remembered ------------------------------------------------------------------------------------------------


class Looking:
    """A feed whose last look is when it says."""

    looked_at = 0.0


class Room:
    """Polls on a clock that is moved by hand, in a running loop."""

    def __init__(self, most: int = 2) -> None:
        self.time, self.feed = 0.0, Looking()
        self.polls = Polls(most=most, longest_wait=60, clock=lambda: self.time)
        self.polls.start(self.feed)
        self.loads: list[str] = []

    def scope(self, path: str) -> dict[str, Any]:
        return {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], NEEDS: Scope.READ}

    def read(self, path: str, model: str = "gas", *, follows: bool = True) -> Response:
        def load() -> Representation:
            self.loads.append(path)
            return Representation.of(Reason(reason=path), '"1"', {})

        return self.polls.read(Request(self.scope(path)), model, load, follows=follows)

    def knows(self, path: str) -> bool:
        return self.polls.find(self.scope(path)) is not None

    def change(self, model: str) -> None:
        entry = AuditEntry(1, datetime.now(UTC), "alias.moved", "tester", model, {}, "")
        self.polls.follow([entry])


def in_a_loop(scenario: Callable[[], None]) -> Callable[[], None]:
    async def run() -> None:
        scenario()

    return functools.wraps(scenario)(lambda: asyncio.run(run()))


@in_a_loop
def test_nothing_is_answered_from_memory_when_the_last_look_is_long_ago() -> None:
    room = Room()
    room.read("/a")
    room.time = TRUSTED_SECONDS - 0.01
    assert room.knows("/a")
    room.time = TRUSTED_SECONDS
    assert not room.knows("/a")
    assert not isinstance(room.read("/b"), Polled), "nothing is remembered of what nobody keeps in step"
    room.feed.looked_at = TRUSTED_SECONDS
    assert room.knows("/a") and not room.knows("/b")


@in_a_loop
def test_addresses_that_nobody_asks_for_give_way() -> None:
    room = Room()
    for path in ("/a", "/b"):
        room.read(path)
    assert room.knows("/a")  # which asks for it, too
    room.read("/c")
    assert [path for path in ("/a", "/b", "/c") if room.knows(path)] == ["/a", "/c"]
    for number in range(20):
        room.read(f"/{number}")
    assert sum(room.knows(path) for path in ("/a", "/c", *(f"/{number}" for number in range(20)))) == 2


@in_a_loop
def test_memory_is_bounded_in_bytes() -> None:
    room = Room(most=100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.api.polling.MOST_BYTES", 100)
        for number in range(50):
            room.read(f"/{number:08}")  # 21 bytes
        assert sum(room.knows(f"/{number:08}") for number in range(50)) == 4
        room.change("gas")
        room.read("/" + "x" * 200)
        assert not room.knows("/" + "x" * 200)


@in_a_loop
def test_of_two_that_were_read_at_once_the_first_stays() -> None:
    """Which of two different ones is older is not known before the feed has looked again."""
    room = Room()
    room.read("/a")

    def load() -> Representation:
        return Representation.of(Reason(reason="another"), '"2"', {})

    answer = room.polls.read(Request(room.scope("/a")), "gas", load, follows=True)
    assert (bytes(answer.body), isinstance(answer, Polled)) == (b'{"reason":"another"}', False)
    remembered = room.polls.at("/a")
    assert remembered is not None and remembered.now is not None and remembered.now.etag == b'"1"'


@in_a_loop
def test_a_change_is_read_once_and_by_those_whom_it_concerns() -> None:
    room = Room(most=5)
    room.read("/a")
    room.read("/other", "other")
    room.read("/7", follows=False)
    room.loads.clear()
    room.change("gas")
    assert room.loads == ["/a"]
    assert room.knows("/a") and room.knows("/other") and not room.knows("/7")


@in_a_loop
def test_what_was_read_before_a_change_is_not_remembered_after_it() -> None:
    room = Room()

    def load() -> Representation:
        room.change("gas")  # somebody commits between our reading and our writing it down
        return Representation.of(Reason(reason="old"), '"1"', {})

    answer = room.polls.read(Request(room.scope("/a")), "gas", load, follows=True)
    assert (answer.status_code, bytes(answer.body)) == (200, b'{"reason":"old"}')
    assert not room.knows("/a")


@in_a_loop
def test_what_cannot_be_read_again_is_forgotten() -> None:
    room = Room()
    fails = [False]

    def load() -> Representation:
        if fails[0]:
            raise StoreBusy("away")
        return Representation.of(Reason(reason="x"), '"1"', {})

    room.polls.read(Request(room.scope("/a")), "gas", load, follows=True)
    fails[0] = True
    room.change("gas")
    assert not room.knows("/a")


# -- long polls --------------------------------------------------------------------------------------------------------


@pytest.fixture
def waited(house: House) -> Iterator[Served]:
    """The service, at a second process that has the champion in memory."""
    grow(house)
    with serving(house.settings) as served:
        httpx.get(served.url + VERSION).raise_for_status()
        yield served


def ask(served: Served, wait: int | str, tag: str | None = None, path: str = VERSION) -> httpx.Response:
    tag = tag or httpx.get(served.url + path).headers["ETag"]
    return httpx.get(served.url + path, headers={"Prefer": f"wait={wait}", "If-None-Match": tag}, timeout=30)


def waiting(served: Served) -> int:
    return sum(len(entry.waiting) for entry in served.app.state.polls._entries.values())


@pytest.mark.parametrize("path", [VERSION, ALIAS])
def test_a_long_poll_is_answered_when_the_alias_moves(house: House, waited: Served, path: str) -> None:
    with ThreadPoolExecutor() as pool:
        tag = httpx.get(waited.url + path).headers["ETag"]
        asked = [pool.submit(ask, waited, 25, tag, path) for _ in range(3)]
        until(lambda: waiting(waited) == 3)
        began = time.monotonic()
        house.http.post("/v1/models/gas/rollback", json={"reason": "worse"}, headers=house.revision())
        for answer in (future.result() for future in asked):
            assert answer.status_code == 200
            assert answer.headers["ETag"] != tag
            assert answer.headers["Preference-Applied"] == "wait=25"
            assert answer.json() == httpx.get(waited.url + path).json()
        assert time.monotonic() - began < 10
    assert waiting(waited) == 0


def test_a_long_poll_ends_unchanged(waited: Served) -> None:
    began = time.monotonic()
    answer = ask(waited, 1)
    assert (answer.status_code, answer.headers["Preference-Applied"], answer.content) == (304, "wait=1", b"")
    assert time.monotonic() - began >= 1


def test_a_poll_of_another_version_does_not_wait(waited: Served) -> None:
    answer = ask(waited, 25, '"other"')
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=25")


def test_other_changes_of_the_model_wake_nobody(house: House, waited: Served) -> None:
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, waited, 25)
        until(lambda: waiting(waited) == 1)
        house.publish(3, passed=False)
        with pytest.raises(TimeoutError):
            asked.result(3 * house.settings.refresh_seconds)
        waited.app.state.polls.leave()
        assert asked.result(10).status_code == 304


@pytest.mark.parametrize("preference", ["", "0", "-1", "soon", "1.5"])
def test_a_wait_that_is_none_is_not_applied(waited: Served, preference: str) -> None:
    answer = ask(waited, preference)
    assert answer.status_code == 304
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize("prefer", ["respond-async, wait=1", 'wait="1"', "Wait = 1", "wait=1; x=y"])
def test_a_wait_among_other_preferences(waited: Served, prefer: str) -> None:
    answer = httpx.get(waited.url + VERSION, headers={"Prefer": prefer})
    assert answer.headers["Preference-Applied"] == "wait=1"


def test_a_wait_is_granted_up_to_the_longest(settings: Settings) -> None:
    for longest, applied in ((1, "wait=1"), (0, None)):
        short = changed(settings, longest_wait_seconds=longest)
        with opened(short) as house:
            if house.http.get(VERSION).status_code == 404:
                grow(house)
            tag = house.http.get(VERSION).headers["ETag"]
            answer = house.http.get(VERSION, headers={"Prefer": "wait=600", "If-None-Match": tag})
            assert (answer.status_code, answer.headers.get("Preference-Applied")) == (304, applied)


def test_a_caller_that_hangs_up_is_noticed(waited: Served) -> None:
    tag = httpx.get(waited.url + VERSION).headers["ETag"]
    with waited.connect() as wire:
        head = f"GET {VERSION} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=50\r\nIf-None-Match: {tag}\r\n\r\n"
        wire.sendall(head.encode())
        until(lambda: waiting(waited) == 1)
    until(lambda: waiting(waited) == 0)


def test_nobody_waits_for_a_service_that_is_left(waited: Served) -> None:
    tag = httpx.get(waited.url + VERSION).headers["ETag"]
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, waited, 25, tag) for _ in range(3)]
        until(lambda: waiting(waited) == 3)
        waited.app.state.polls.leave()
        assert [future.result(10).status_code for future in asked] == [304] * 3
    began = time.monotonic()
    answer = ask(waited, 25, tag)
    assert (answer.status_code, "Preference-Applied" in answer.headers) == (304, False)
    assert time.monotonic() - began < 10


def test_a_wait_does_not_end_in_a_lie(waited: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is out of reach while somebody waits: nobody knows any more whether the alias has moved."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, waited, 1)
        until(lambda: waiting(waited) == 1)
        monkeypatch.setattr("app.api.polling.TRUSTED_SECONDS", 0.0)
        answer = asked.result(10)
    problem(answer, 503, "store-busy")
    assert answer.headers["Retry-After"] == "1"


def test_signals_are_told_before_the_server_is() -> None:
    told: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: told.append("server"))
    try:
        with on_leaving(lambda: told.append("polls"), lambda: told.append("streams")):
            signal.raise_signal(signal.SIGTERM)
            assert told == ["polls", "streams", "server"]
        assert told[3:] == ["polls", "streams"], "and once more in the end"
        told.clear()
        signal.raise_signal(signal.SIGTERM)
        assert told == ["server"], "the server has its handler back"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
