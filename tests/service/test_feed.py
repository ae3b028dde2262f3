"""The feed: every entry once, in order, whoever made it; and what it does when it cannot look."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.domain import AuditEntry
from app.errors import EspalierError
from app.service import feed as feeds
from app.service.feed import Feed
from app.store.blobs import Blobs
from app.store.database import Store
from tests.builders import ACTOR, make_model


class Told:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.lost = 0

    def follow(self, entries: Sequence[AuditEntry]) -> None:
        self.seqs += [entry.seq for entry in entries]

    def lose(self) -> None:
        self.lost += 1


@pytest.fixture
def other(database_url: str, blobs: Blobs) -> Store:
    """Another process's store."""
    return Store(database_url, blobs)


def test_it_begins_at_the_end(store: Store) -> None:
    make_model(store, "before")
    told = Told()
    feed = Feed(store, [told], every=1)
    feed.look()
    assert (feed.seen, told.seqs) == (1, [])


def test_what_this_process_commits_is_told_at_once(store: Store) -> None:
    first, second = Told(), Told()
    feed = Feed(store, [first, second], every=1)
    for number in range(3):
        make_model(store, f"m{number}")
        assert first.seqs == second.seqs == list(range(1, number + 2))
    assert feed.seen == 3


def test_what_others_commit_is_told_by_the_next_look_in_pages(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_PAGE", 2)
    told = Told()
    feed = Feed(store, [told], every=1)
    for number in range(5):
        make_model(other, f"m{number}")
    assert told.seqs == []
    feed.look()
    assert told.seqs == [1, 2, 3, 4, 5]
    feed.look()
    make_model(store, "mine")
    assert (told.seqs, told.lost) == ([1, 2, 3, 4, 5, 6], 0)
    other.dispose()


def test_a_refused_change_tells_nothing(store: Store) -> None:
    told = Told()
    Feed(store, [told], every=1)

    def change() -> None:
        with store.transaction(ACTOR) as tx:
            tx.audit.append("model.created", model="gas")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert told.seqs == []


def test_many_threads_commit_and_every_entry_is_told_once_in_order(store: Store) -> None:
    told = Told()
    Feed(store, [told], every=1)
    threads = [threading.Thread(target=make_model, args=(store, f"m{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.seqs == list(range(1, 9))


def test_it_looks_by_itself(store: Store, other: Store) -> None:
    told = Told()
    feed = Feed(store, [told], every=0.01)
    with feed.running():
        make_model(other)
        deadline = time.monotonic() + 10
        while told.seqs != [1]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    other.dispose()
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_an_idle_look_reads_one_row(store: Store) -> None:
    feed = Feed(store, [Told()], every=1)
    seen: list[str] = []
    sa.event.listen(store._engine, "before_cursor_execute", lambda _c, _k, statement, *_: seen.append(statement))
    feed.look()
    assert len(seen) == 1 and "log_head" in seen[0]


def test_a_look_that_fails_moves_nothing(database_url: str, blobs: Blobs, tmp_path: Path) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("a file can be taken away")
    store, told, now = Store(database_url, blobs), Told(), [5.0]
    feed = Feed(store, [told], every=1, clock=lambda: now[0])
    make_model(store)
    store.dispose()
    file, away = tmp_path / "espalier.db", tmp_path / "away"
    file.rename(away)
    file.mkdir()
    now[0] = 6.0
    with pytest.raises((EspalierError, sa.exc.OperationalError)):
        feed.look()
    assert (feed.seen, feed.looked_at) == (1, 5.0)
    file.rmdir()
    away.rename(file)
    feed.look()
    assert (feed.seen, feed.looked_at, told.seqs) == (1, 6.0, [1])
    store.dispose()


def test_a_restored_backup_is_noticed(database_url: str, blobs: Blobs, tmp_path: Path) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("a file can be copied")
    store, told = Store(database_url, blobs), Told()
    feed = Feed(store, [told], every=1)
    file, backup = tmp_path / "espalier.db", tmp_path / "backup"
    make_model(store, "first")
    store.dispose()
    shutil.copyfile(file, backup)
    make_model(store, "second")
    for name in ("other", "third"):  # as long as before, then one longer
        store.dispose()
        if name == "other":
            shutil.copyfile(backup, file)
        make_model(store, name)
    assert told.lost == 1
    assert told.seqs == [1, 2, 3]
    assert feed.seen == 3
    store.dispose()
