"""Keys: made within one's own rights, counted at once when revoked, never stored, never in the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from app.config import Settings
from app.domain import Actor, Caller, Scope
from app.errors import (
    BadInput,
    InvalidName,
    KeyNameTaken,
    KeyRequired,
    OtherModel,
    ScopeMissing,
    StoreBusy,
    TooManyRequests,
    UnknownKey,
    UnknownModel,
)
from app.service import access, credentials, history, keyring, limits
from app.service.access import Wanted
from app.service.feed import Feed
from app.service.keyring import LOCAL, Keyring
from app.service.limits import Bucket, Failures
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.tables import idempotency_keys, keys, sessions
from tests.service.conftest import House

ADMIN = Actor("admin")


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def make(store: Store, name: str = "line-3", *scopes: Scope, caller: Caller = LOCAL, **more: Any) -> access.Made:
    wanted = Wanted(name, frozenset(scopes or (Scope.READ,)), **more)
    return access.create_key(store, wanted, caller=caller, actor=ADMIN)


def ring(store: Store, clock: Clock | None = None, **settings: Any) -> Keyring:
    """A started keyring that follows the log."""
    clock = clock or Clock()
    found = Keyring(Settings(**settings), clock)
    found.start(store, Feed(store, (found,), every=60, clock=clock))
    return found


# -- making ------------------------------------------------------------------------------------------------------------


def test_a_key_is_256_random_bits_after_its_id(store: Store) -> None:
    first, second = make(store, "one"), make(store, "two")
    prefix, key, secret = first.text.split("_", 2)
    assert (prefix, key, len(secret)) == ("esp", first.key.id, 43)
    assert first.text != second.text
    assert credentials.id_of(first.text) == first.key.id
    with store.reading() as tx:
        assert credentials.hashed(first.text) in [hash for _, hash in tx.keys.hashes()]


def test_no_secret_is_anywhere_in_the_database(store: Store) -> None:
    made = make(store)
    hash = credentials.hashed(made.text)
    with store.reading() as tx:
        log = json.dumps([dict(entry.document) for entry in tx.audit.entries(None, None, 100).items])
    assert made.text not in log and made.text.split("_", 2)[2] not in log and hash not in log
    for table in (keys, sessions, idempotency_keys):
        with store._engine.connect() as connection:
            rows = str(connection.execute(sa.select(table)).all())
        assert made.text not in rows and made.text.split("_", 2)[2] not in rows
    assert made.text not in repr(made) and made.text not in repr(credentials.fresh_key())


def test_making_and_revoking_are_audited(store: Store) -> None:
    made = make(store, "line-3", Scope.READ, Scope.INGEST, requests_per_minute=5)
    access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    with store.reading() as tx:
        created, revoked = tx.audit.entries(None, None, 10).items
    assert (created.kind, created.actor, revoked.kind) == ("key.created", "admin", "key.revoked")
    assert revoked.document["reason"] == "lost"
    assert revoked.document["parameters"] == {"key": made.key.id, "name": "line-3"}
    parameters = created.document["parameters"]
    assert (parameters["scopes"], parameters["models"]) == (["ingest", "read"], None)


@pytest.mark.parametrize(
    "name",
    ["local", "key", "anonymous", "reader", "environment", "settings", "worker", "worker-7", "", "A", "a b", "x" * 64],
)
def test_some_names_cannot_be(store: Store, name: str) -> None:
    with pytest.raises(InvalidName):
        make(store, name)
    with store.reading() as tx:
        assert not tx.keys.any() and tx.audit.head().size == 0


def test_a_name_is_given_once(store: Store) -> None:
    make(store, "line-3")
    access.revoke_key(store, "line-3", reason="gone", actor=ADMIN)
    with pytest.raises(KeyNameTaken):
        make(store, "line-3")


def test_what_a_key_cannot_be(house: House) -> None:
    house.create("gas")
    with pytest.raises(UnknownModel):
        make(house.store, models=frozenset({"nowhere"}))
    with pytest.raises(BadInput, match="without scopes"):
        access.create_key(house.store, Wanted("none", frozenset()), caller=LOCAL, actor=ADMIN)
    with pytest.raises(BadInput, match="over before it began"):
        make(house.store, expires_at=house.store.clock() - timedelta(seconds=1))
    for whole in (Scope.AUDIT, Scope.ADMIN):
        with pytest.raises(BadInput, match="whole service"):
            make(house.store, "line-3", whole, models=frozenset({"gas"}))
    with pytest.raises(BadInput, match="1 to 100"):
        make(house.store, models=frozenset())


def test_nobody_makes_a_key_that_allows_more_than_their_own(house: House) -> None:
    house.create("gas")
    house.create("other")
    reader = Caller("reader-1", frozenset({Scope.READ}), key="k")
    with pytest.raises(ScopeMissing, match="ingest"):
        make(house.store, "more", Scope.READ, Scope.INGEST, caller=reader)
    with pytest.raises(ScopeMissing):
        make(house.store, "more", Scope.ADMIN, caller=reader)
    one = Caller("one", frozenset({Scope.READ}), frozenset({"gas"}), key="k")
    for models in (None, frozenset({"gas", "other"}), frozenset({"other"})):
        with pytest.raises(OtherModel):
            make(house.store, "wider", caller=one, models=models)
    assert make(house.store, "as-wide", caller=one, models=frozenset({"gas"})).key.models == {"gas"}
    admin = Caller("admin", frozenset({Scope.ADMIN}), key="k")
    assert make(house.store, "all", *Scope, caller=admin).key.scopes == set(Scope)


def test_revoking_is_final_and_may_be_repeated(store: Store) -> None:
    make(store)
    first = access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    again = access.revoke_key(store, "line-3", reason="again", actor=ADMIN)
    assert again == first and again.revoked_reason == "lost"
    with pytest.raises(UnknownKey):
        access.revoke_key(store, "nobody", reason="x", actor=ADMIN)


# -- letting in --------------------------------------------------------------------------------------------------------


def test_open_until_the_first_key_and_never_again(store: Store) -> None:
    found = ring(store)
    assert found.open and found.admit(None, "") == LOCAL and found.quick(None) == LOCAL
    made = make(store, "first", Scope.ADMIN)
    assert not found.open
    for presented in (None, "nonsense"):
        assert found.quick(presented) is None
        with pytest.raises(KeyRequired):
            found.admit(presented, "")
    assert found.admit(made.text, "").name == "first"
    access.revoke_key(store, "first", reason="gone", actor=ADMIN)
    assert not found.open and not ring(store).open
    with pytest.raises(KeyRequired):
        found.admit(None, "")


def test_never_open_with_a_key_in_the_settings_or_beyond_loopback(store: Store) -> None:
    assert not ring(store, api_key="s3cret-key").open
    assert not ring(store, host="0.0.0.0").open


def test_the_key_of_the_settings_has_every_scope(store: Store) -> None:
    found = ring(store, api_key="s3cret-key")
    caller = found.admit("s3cret-key", "")
    assert (caller.name, caller.scopes, caller.models) == ("key", set(Scope), None)
    assert found.quick("s3cret-key") == caller
    make(store, "line-3")
    assert found.admit("s3cret-key", "") == caller, "created keys go beside it"


@pytest.mark.parametrize("presented", [None, "", "s3cre", "s3cret ", "ключ", "esp_", "esp_0123456789abcdef_x", "\x00"])
def test_anything_else_is_refused_with_the_remedy(store: Store, presented: str | None) -> None:
    found = ring(store, api_key="s3cret")
    with pytest.raises(KeyRequired, match="ESPALIER_KEY"):
        found.admit(presented, "10.0.0.1")
    assert found.quick(presented) is None


def test_a_key_with_one_letter_changed_is_another(store: Store) -> None:
    made = make(store)
    found = ring(store)
    for place in (0, 5, 21, 30, len(made.text) - 1):
        wrong = made.text[:place] + ("A" if made.text[place] != "A" else "B") + made.text[place + 1 :]
        with pytest.raises(KeyRequired):
            found.admit(wrong, f"10.0.0.{place}")
    for wrong in (made.text[:-1], made.text + "A", made.text.upper(), made.key.id):
        with pytest.raises(KeyRequired):
            found.admit(wrong, "10.0.1.1")


def test_hashes_are_compared_in_constant_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(store)
    found, compared = ring(store), []
    compare = credentials.hmac.compare_digest

    def noted(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(credentials.hmac, "compare_digest", noted)
    found.admit(made.text, "")
    assert compared == [(credentials.hashed(made.text), credentials.hashed(made.text))]
    compared.clear()
    with pytest.raises(KeyRequired):
        found.admit("esp_" + "0" * 16 + "_" + "x" * 43, "")
    assert len(compared) == 1, "one comparison, whether or not there is such a key"


def test_an_expired_key_is_refused_by_name(store: Store) -> None:
    made = make(store, expires_at=store.clock() + timedelta(days=90))
    found = ring(store)
    caller = found.admit(made.text, "")
    assert found.stands(caller)
    clock = store.clock
    store.clock = lambda: clock() + timedelta(days=91)
    with pytest.raises(KeyRequired, match="'line-3' has expired"):
        found.admit(made.text, "")
    assert not found.stands(caller) and found.quick(made.text) is None


def test_a_revocation_counts_at_once_here_and_at_the_next_look_elsewhere(store: Store, other_store: Store) -> None:
    clock = Clock()
    found = ring(store)
    elsewhere = Keyring(Settings(), clock)
    feed = Feed(other_store, (elsewhere,), every=60, clock=clock)
    elsewhere.start(other_store, feed)
    made = make(store)
    assert found.admit(made.text, "").name == "line-3"
    feed.look()
    assert elsewhere.admit(made.text, "").name == "line-3"
    access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    with pytest.raises(KeyRequired, match="revoked"):
        found.admit(made.text, "")
    feed.look()
    with pytest.raises(KeyRequired, match="revoked"):
        elsewhere.admit(made.text, "")
    with pytest.raises(KeyRequired, match="revoked"):  # and after a restart
        ring(store).admit(made.text, "")


def test_a_key_that_another_process_made_a_moment_ago_is_looked_for(store: Store, other_store: Store) -> None:
    found = ring(store, wrong_keys_per_minute=1)
    made = make(other_store)
    assert not found.ready(made.text, "10.0.0.1"), "nobody has this id here yet"
    found.refresh()
    assert found.ready(made.text, "10.0.0.1") and found.admit(made.text, "10.0.0.1").name == "line-3"
    assert found.ready(None, "") and found.ready("no such form", "")
    wrong = "esp_" + "0" * 16 + "_" + "x" * 43
    assert not found.ready(wrong, "10.0.0.1")
    with pytest.raises(KeyRequired):
        found.admit(wrong, "10.0.0.1")
    assert found.ready(wrong, "10.0.0.1"), "the database is not asked for every guess"
    begun = access.sign_in(other_store, found, found.admit(made.text, ""), seconds=60)
    elsewhere = ring(store)
    elsewhere._held.clear()
    elsewhere._stale = True
    assert access.session_of(store, elsewhere, begun.text).name == "line-3"


@pytest.fixture
def other_store(store: Store) -> Iterator[Store]:
    """The same deployment, in what could be another process."""
    found = Store(store._engine.url.render_as_string(hide_password=False), Blobs(store.blobs.root))
    yield found
    found.dispose()


# -- failing closed ----------------------------------------------------------------------------------------------------


@contextmanager
def unreadable(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse() -> Any:
        raise StoreBusy("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "reading", refuse)
        yield


def test_nobody_is_vouched_for_while_the_log_cannot_be_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    made = make(store)
    found = ring(store, clock)
    clock.time += keyring.TRUSTED_SECONDS - 0.1
    assert found.trusted and found.quick(made.text) is not None
    clock.time += 0.1
    assert not found.trusted and found.quick(made.text) is None and not found.ready(made.text, "")
    with unreadable(store, monkeypatch), pytest.raises(StoreBusy):
        found.refresh()
    assert not found.trusted
    found.refresh()
    assert found.trusted and found.quick(made.text) is not None


def test_a_revocation_counts_even_if_the_keys_cannot_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, other = make(store), make(store, "other")
    found = ring(store)
    access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    with store.reading() as tx:
        revoked = tx.audit.entries(None, None, 10, "key.revoked").items
    again = ring(store)
    again._held[made.key.id].revoked = False
    with unreadable(store, monkeypatch):
        again.follow(revoked)
        assert not again.trusted, "what else was changed is not known"
        with pytest.raises(KeyRequired, match="revoked"):
            again.admit(made.text, "")
    again.write_uses()
    again.refresh()
    assert again.trusted and again.admit(other.text, "").name == "other" and found.trusted


def test_what_is_read_while_a_key_changes_is_not_relied_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that began before a revocation, and ended after it, may not make the key good again."""
    make(store)
    found = ring(store)
    read = store.reading

    @contextmanager
    def slowly() -> Iterator[Any]:
        with read() as tx:
            yield tx
        found._changes += 1  # as ``lose`` does, in another thread, whose own reading then fails

    with monkeypatch.context() as patched:
        patched.setattr(store, "reading", slowly)
        found._read()
    assert not found.trusted


def test_an_unstarted_ring_vouches_for_nobody() -> None:
    found = Keyring(Settings(api_key="s3cret-key"))
    assert not found.trusted
    with pytest.raises(StoreBusy):
        found.refresh()


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_key_may_ask_so_often(store: Store) -> None:
    clock = Clock()
    made, free = make(store, requests_per_minute=60), make(store, "free", requests_per_minute=0)
    found = ring(store, clock, requests_per_minute=2)
    for _ in range(60):
        found.admit(made.text, "")
    with pytest.raises(TooManyRequests, match="60 requests a minute") as refused:
        found.admit(made.text, "")
    assert refused.value.seconds == 1
    assert found.quick(made.text) is None
    clock.time += 1
    assert found.quick(made.text) is not None and found.quick(made.text) is None
    for _ in range(200):
        found.admit(free.text, "")
    settings_limit = make(store, "as-the-settings-say")
    assert [found.quick(settings_limit.text) is not None for _ in range(3)] == [True, True, False]


def test_a_change_of_another_key_gives_nobody_more(store: Store) -> None:
    made = make(store, requests_per_minute=1)
    found = ring(store)
    found.admit(made.text, "")
    make(store, "another")
    with pytest.raises(TooManyRequests):
        found.admit(made.text, "")


def test_wrong_keys_are_counted_by_address(store: Store) -> None:
    clock = Clock()
    made = make(store)
    found = ring(store, clock, api_key="s3cret-key", wrong_keys_per_minute=5)
    for _ in range(5):
        with pytest.raises(KeyRequired):
            found.admit("guess", "10.0.0.1")
    with pytest.raises(TooManyRequests) as refused:
        found.admit("guess", "10.0.0.1")
    assert 1 <= refused.value.seconds <= 12
    with pytest.raises(TooManyRequests):
        found.admit("s3cret-key", "10.0.0.1")  # it may be a word, and this may be a guess
    assert found.quick("s3cret-key") is None
    assert found.admit(made.text, "10.0.0.1").name == "line-3"
    assert found.admit("s3cret-key", "10.0.0.2").name == "key"
    with pytest.raises(KeyRequired):
        found.admit(None, "10.0.0.1")  # no key is no guess
    clock.time += 60
    found.refresh()
    assert found.admit("s3cret-key", "10.0.0.1").name == "key"
    assert found.quick("s3cret-key") is not None


def test_a_bucket_fills_with_time() -> None:
    bucket = Bucket(60)
    assert sum(bucket.take(100.0) for _ in range(100)) == 60
    assert bucket.empty(100.0) and bucket.seconds() == 1
    assert sum(bucket.take(110.0) for _ in range(100)) == 10
    assert bucket.full(10_000.0)
    assert not bucket.take(0.0) or bucket.take(0.0) is not None  # a clock that steps back fills nothing
    assert all(Bucket(0).take(0.0) for _ in range(1000))


def test_addresses_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST_ADDRESSES", 100)
    failures = Failures(5)
    for number in range(1000):
        failures.count(f"10.0.{number // 250}.{number % 250}", 0.0)
    assert len(failures) == 100
    for _ in range(6):
        failures.count("2001:db8::1", 0.0)
    assert failures.refuses("2001:db8::ffff", 0.0), "one machine may have a whole network of 64 bits"
    assert not failures.refuses("2001:db8:0:1::1", 0.0)
    assert not failures.refuses("2001:db8::1", 60.0)
    for _ in range(6):
        failures.count("::ffff:10.9.9.9", 0.0)
    assert failures.refuses("10.9.9.9", 0.0)
    failures.count("unix socket" * 100, 0.0)


# -- last use ----------------------------------------------------------------------------------------------------------


def test_the_last_use_is_written_once_a_minute_at_most(store: Store) -> None:
    made, clock = make(store), Clock()
    found = ring(store, clock)
    assert access.get_key(store, "line-3").used_at is None
    found.admit(made.text, "")
    clock.time += 3
    found.write_uses()
    first = access.get_key(store, "line-3").used_at
    assert first is not None and store.clock() - timedelta(seconds=10) < first < store.clock() - timedelta(seconds=2)
    for seconds, written in ((30, False), (31, True)):
        clock.time += seconds
        found.admit(made.text, "")
        found.write_uses()
        assert (access.get_key(store, "line-3").used_at != first) == written


def test_a_thread_writes_them_and_ends(store: Store) -> None:
    made = make(store)
    found = ring(store)
    with found.running():
        found.admit(made.text, "")
        assert any(thread.name == "keyring" for thread in threading.enumerate())
    assert access.get_key(store, "line-3").used_at is not None
    assert not any(thread.name == "keyring" for thread in threading.enumerate())


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_is_its_keys_and_ends_with_it(store: Store) -> None:
    made = make(store, "line-3", Scope.READ)
    found = ring(store)
    begun = access.sign_in(store, found, found.admit(made.text, ""), seconds=3600)
    caller = access.session_of(store, found, begun.text)
    assert (caller.name, caller.scopes, caller.expires_at) == ("line-3", {Scope.READ}, begun.expires_at)
    with store._engine.connect() as connection:
        assert begun.text not in str(connection.execute(sa.select(sessions)).all())
    assert begun.text not in repr(begun)
    for wrong in ("", "x", begun.text + "x", begun.text[:-1]):
        with pytest.raises(KeyRequired):
            access.session_of(store, found, wrong)
    access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    with pytest.raises(KeyRequired):
        access.session_of(store, found, begun.text)


def test_a_session_never_outlives_its_key_or_its_time(store: Store) -> None:
    soon = store.clock() + timedelta(minutes=10)
    made, long = make(store, expires_at=soon), make(store, "long")
    found = ring(store)
    begun = access.sign_in(store, found, found.admit(made.text, ""), seconds=3600)
    assert begun.expires_at == soon
    other = access.sign_in(store, found, found.admit(long.text, ""), seconds=3600)
    clock = store.clock
    store.clock = lambda: clock() + timedelta(minutes=11)
    with pytest.raises(KeyRequired):
        access.session_of(store, found, begun.text)
    assert access.session_of(store, found, other.text).name == "long"
    store.clock = lambda: clock() + timedelta(minutes=61)
    with pytest.raises(KeyRequired):
        access.session_of(store, found, other.text)


def test_signing_out_ends_it(store: Store) -> None:
    made = make(store)
    found = ring(store)
    begun = access.sign_in(store, found, found.admit(made.text, ""), seconds=3600)
    access.sign_out(store, found, begun.text, actor=ADMIN)
    with pytest.raises(KeyRequired):
        access.session_of(store, found, begun.text)
    access.sign_out(store, found, begun.text, actor=ADMIN)
    assert found.admit(made.text, "").name == "line-3"


def test_another_key_in_the_settings_ends_the_sessions_of_the_old_one(store: Store) -> None:
    old = ring(store, api_key="the-old-key")
    begun = access.sign_in(store, old, old.admit("the-old-key", ""), seconds=3600)
    assert access.session_of(store, old, begun.text).name == "key"
    for settings in ({"api_key": "a-new-key"}, {}):
        with pytest.raises(KeyRequired):
            access.session_of(store, ring(store, **settings), begun.text)
    assert access.session_of(store, ring(store, api_key="the-old-key"), begun.text).name == "key"


def test_nobody_signs_in_to_an_open_service(store: Store) -> None:
    with pytest.raises(KeyRequired, match="open to everyone"):
        access.sign_in(store, ring(store), LOCAL, seconds=60)


# -- rows that were edited ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"scopes": ["admin"]},
        {"models": None},
        {"hash": "1" * 64},
        {"expires_at": None},
        {"requests_per_minute": 0},
        {"revoked_at": None},
        {"name": "line-4"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_row_that_was_edited_is_found(house: House, values: dict[str, Any]) -> None:
    store = house.store
    house.create("gas")
    late = store.clock() + timedelta(days=1)
    make(store, models=frozenset({"gas"}), requests_per_minute=5, expires_at=late)
    access.revoke_key(store, "line-3", reason="lost", actor=ADMIN)
    make(store, "untouched")
    assert list(access.examine_keys(store)) == []
    raw = sa.create_engine(store._engine.url)
    with raw.begin() as connection:
        connection.execute(sa.update(keys).where(keys.c.name == "line-3").values(values))
    raw.dispose()
    ((name, why),) = access.examine_keys(store)
    assert name == values.get("name", "line-3") and why
    assert ("key", f"key {name}") in {(finding.kind, finding.subject) for finding in history.examine(store)}


def test_a_row_that_was_added_or_removed_is_found(store: Store) -> None:
    make(store)
    raw = sa.create_engine(store._engine.url)
    with raw.begin() as connection:
        (row,) = connection.execute(sa.select(keys)).mappings().all()
        connection.execute(sa.insert(keys).values({**row, "id": "f" * 16, "name": "backdoor"}))
    assert [name for name, _ in access.examine_keys(store)] == ["backdoor"]
    with raw.begin() as connection:
        connection.execute(sa.delete(keys))
    raw.dispose()
    assert [name for name, _ in access.examine_keys(store)] == ["line-3"]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_keys_are_taken_out_of_lines() -> None:
    text = credentials.fresh_key().text
    secret = credentials.spellings(SecretStr("päss wörd/1"))
    for line in (f"GET /v1/models/{text} 404", f"?key={text}&x", f'"{text}"', text, f"a {text} b {text}"):
        assert text.split("_", 2)[2] not in credentials.redacted(line)
    assert credentials.redacted("GET /p%C3%A4ss%20w%C3%B6rd/1", secret) == "GET /[hidden]"
    assert credentials.redacted("päss wörd/1", secret) == "[hidden]"
    assert credentials.redacted("esp_resso is no key", secret) == "esp_resso is no key"
    assert credentials.spellings(SecretStr("k")) == (), "a letter stands in every word"
