"""Keys and sessions as rows: names are given once, nothing of a key can be turned back into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.domain import Actor, Key, Scope
from app.errors import KeyNameTaken, UnauditedChange, UnknownKey
from app.store.database import Store
from app.store.tables import AUDITED, keys

ACTOR = Actor("tester")
LATER = datetime(2999, 1, 1, tzinfo=UTC)


def make(store: Store, name: str = "line-3", key: str = "k1", **given: object) -> Key:
    values: dict[str, object] = {
        "hash": "0" * 64,
        "scopes": {Scope.READ, Scope.INGEST},
        "models": None,
        "requests_per_minute": None,
        "expires_at": None,
        "created_by": "tester",
        **given,
    }
    with store.transaction(ACTOR) as tx:
        tx.audit.append("key.created", model=None)
        return tx.keys.create(key, name, **values)  # type: ignore[arg-type]  # the defaults above, changed by name


def test_a_key_is_what_was_written(store: Store) -> None:
    made = make(store, models={"b", "a"}, requests_per_minute=0, expires_at=LATER)
    assert (made.scopes, made.models) == ({Scope.READ, Scope.INGEST}, {"a", "b"})
    assert (made.requests_per_minute, made.expires_at, made.created_by) == (0, LATER, "tester")
    assert (made.revoked_at, made.used_at) == (None, None)
    with store.reading() as tx:
        assert tx.keys.key("line-3") == made
        assert tx.keys.hashes() == [(made, "0" * 64)]


def test_a_name_is_given_once_even_after_the_key_is_over(store: Store) -> None:
    made = make(store)
    with store.transaction(ACTOR) as tx:
        tx.keys.revoke(made, "gone")
        tx.audit.append("key.revoked", model=None)
    with pytest.raises(KeyNameTaken, match="line-3-2"):
        make(store, key="k2")
    with store.reading() as tx:
        assert [key.id for key in tx.keys.keys(None, 10).items] == ["k1"]


@pytest.mark.parametrize("name", ["nobody", "", "UPPER", "a\x00b", "x" * 1000])
def test_an_unknown_key_is_named(store: Store, name: str) -> None:
    with store.reading() as tx, pytest.raises(UnknownKey):
        tx.keys.key(name)


def test_keys_are_listed_by_name_page_by_page(store: Store) -> None:
    for number, name in enumerate(("c", "a", "b")):
        make(store, name, f"k{number}")
    with store.reading() as tx:
        first = tx.keys.keys(None, 2)
        assert ([key.name for key in first.items], first.next) == (["a", "b"], "b")
        last = tx.keys.keys("b", 2)
        assert ([key.name for key in last.items], last.next) == (["c"], None)


def test_no_key_changes_without_an_entry_of_the_log(store: Store) -> None:
    assert keys.name in AUDITED
    made = make(store)
    with pytest.raises(UnauditedChange), store.transaction(ACTOR) as tx:
        tx.keys.revoke(made, "quietly")
    with store.reading() as tx:
        assert tx.keys.key("line-3").revoked_at is None


def test_the_last_use_is_kept(store: Store) -> None:
    made = make(store)
    for at in (LATER, LATER + timedelta(minutes=1)):
        with store.transaction(ACTOR) as tx:
            tx.keys.used(made.id, at)
        with store.reading() as tx:
            assert tx.keys.key("line-3").used_at == at


def test_whether_there_ever_was_a_key(store: Store) -> None:
    with store.reading() as tx:
        assert not tx.keys.any()
    make(store)
    with store.reading() as tx:
        assert tx.keys.any()


def test_a_session_lives_until_its_time_is_up(store: Store) -> None:
    with store.transaction(ACTOR) as tx:
        tx.keys.begin_session("one", "k1", tx.now + timedelta(seconds=60))
        tx.keys.begin_session("two", "k1", tx.now + timedelta(seconds=600))
    with store.reading() as tx:
        found = tx.keys.session(["other", "one"])
        assert found is not None and found.key == "k1"
        assert tx.keys.session(["neither"]) is None
    clock = store.clock
    store.clock = lambda: clock() + timedelta(seconds=120)
    with store.reading() as tx:
        assert tx.keys.session(["one"]) is None and tx.keys.session(["two"]) is not None
    with store.transaction(ACTOR) as tx:
        tx.keys.begin_session("three", "k1", tx.now + timedelta(seconds=60))
        tx.keys.end_session(["two"])
        assert tx.keys.session(["two"]) is None
    store.clock = clock
    with store.reading() as tx:
        assert tx.keys.session(["one"]) is None, "what is over was forgotten"


def test_revoking_a_key_ends_its_sessions(store: Store) -> None:
    made = make(store)
    with store.transaction(ACTOR) as tx:
        tx.keys.begin_session("mine", made.id, LATER)
        tx.keys.begin_session("another's", "k9", LATER)
    with store.transaction(ACTOR) as tx:
        done = tx.keys.revoke(made, "gone")
        tx.audit.append("key.revoked", model=None)
    assert done.revoked_reason == "gone" and done.revoked_at is not None
    with store.reading() as tx:
        assert tx.keys.session(["mine"]) is None and tx.keys.session(["another's"]) is not None


def test_a_hash_is_all_that_there_is(store: Store) -> None:
    assert {column.name for column in keys.c} >= {"hash"}
    assert not {column.name for column in keys.c} & {"key", "secret", "text", "token"}
    assert isinstance(keys.c.hash.type, sa.String) and keys.c.hash.type.length == 64
