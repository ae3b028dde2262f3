"""The log: what is written, when, and in what order."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.domain import Actor
from app.errors import UnknownEntry
from app.store.database import Store
from espalier.formats.canonical import canonical_json
from espalier.formats.proof import EMPTY_ROOT, leaf_hash, merkle_root, verify_log
from tests.builders import ACTOR, Clock, digest_of, make_model

KEYS = ["seq", "time", "kind", "actor", "request_id", "model", "inputs", "parameters", "outputs", "reason", "code"]


def _append(store, *kinds, model=None, actor=ACTOR):
    with store.transaction(actor) as tx:
        for kind in kinds:
            tx.audit.append(kind, model=model)


def test_an_empty_log(store):
    with store.reading() as tx:
        head = tx.audit.head()
        assert (head.size, head.root) == (0, EMPTY_ROOT.hex())
        assert tx.audit.verify() == head
        assert tx.audit.entries(None, None, 10).items == ()


def test_an_entry_says_what_was_done_exactly(database_url, blobs):
    clock = Clock()
    clock.advance(0.000001)
    store = Store(database_url, blobs, clock)
    with store.transaction(Actor("key", "r-1")) as tx:
        tx.audit.append(
            "mask.pruned",
            model="gas",
            parameters={"density": 0.1 + 0.2, "seed": 2**63, "kept": 7, "layers": [{"name": "a"}], "none": None},
            inputs=[digest_of("in")],
            outputs=(digest_of("out"),),
            reason="Grüße\n",
        )
    with store.reading() as tx:
        entry = tx.audit.entry(1)
        head = tx.audit.head()
    assert sorted(entry.document) == sorted(KEYS)
    assert entry.document["parameters"] == {
        "density": "0.30000000000000004",
        "seed": "9223372036854775808",
        "kept": 7,
        "layers": [{"name": "a"}],
        "none": None,
    }
    assert (entry.seq, entry.kind, entry.actor, entry.model, entry.time) == (1, "mask.pruned", "key", "gas", clock.now)
    assert entry.document["time"] == "2030-01-01T00:00:00.000001Z"
    assert entry.document["request_id"] == "r-1"
    assert entry.document["inputs"] == [digest_of("in")]
    assert entry.document["outputs"] == [digest_of("out")]
    assert entry.document["reason"] == "Grüße\n"
    assert list(entry.document["code"]) == ["espalier"]
    leaf = leaf_hash(canonical_json(dict(entry.document)))
    assert entry.leaf == leaf.hex()
    assert (head.size, head.root) == (1, merkle_root([leaf]).hex())
    store.dispose()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, b"bytes", "\ud800"])
def test_what_cannot_be_recorded_is_refused_at_once(store, value):
    with store.transaction(ACTOR) as tx, pytest.raises(ValueError):
        tx.audit.append("test", model=None, parameters={"value": value})
    with store.reading() as tx:
        assert tx.audit.head().size == 0


def test_parameters_are_recorded_as_they_were_when_appended(store):
    parameters = {"n": [1]}
    with store.transaction(ACTOR) as tx:
        tx.audit.append("test", model=None, parameters=parameters)
        parameters["n"].append(2)
    with store.reading() as tx:
        assert tx.audit.entry(1).document["parameters"] == {"n": [1]}


def test_the_root_grows_as_a_merkle_tree(store):
    leaves = []
    for size in range(1, 20):
        _append(store, f"kind-{size}")
        with store.reading() as tx:
            leaves.append(bytes.fromhex(tx.audit.entry(size).leaf))
            assert tx.audit.head().root == merkle_root(leaves).hex()
    with store.reading() as tx:
        assert tx.audit.verify().size == 19


def test_entries_keep_the_order_of_calls(store):
    _append(store, "c", "a", "b")
    with store.reading() as tx:
        assert [e.kind for e in tx.audit.entries(None, None, 10).items] == ["c", "a", "b"]


def test_a_transaction_that_fails_leaves_no_entry(store):
    def fail():
        with store.transaction(ACTOR) as tx:
            tx.audit.append("test", model=None)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    _append(store, "kept")
    with store.reading() as tx:
        assert [(e.seq, e.kind) for e in tx.audit.entries(None, None, 10).items] == [(1, "kept")]
        assert tx.audit.verify().size == 1


def test_pages_by_model_and_kind(store):
    for n in range(4):
        _append(store, "even" if n % 2 == 0 else "odd", "both", model="a" if n < 2 else "b")

    def walk(**wanted):
        found, after = [], None
        while True:
            with store.reading() as tx:
                page = tx.audit.entries(wanted.get("model"), after, 1, wanted.get("kind"))
            found += [entry.seq for entry in page.items]
            if page.next is None:
                return found
            after = int(page.next)

    assert walk() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert walk(model="a") == [1, 2, 3, 4]
    assert walk(kind="both") == [2, 4, 6, 8]
    assert walk(model="b", kind="odd") == [7]
    assert walk(model="none") == []


def test_entries_are_found_by_what_they_are_about(store):
    make_model(store)
    make_model(store, "other")
    told = [
        ("gas", {"cycle": 3, "version": 2}),
        ("gas", {"from": 2, "to": 3}),
        ("other", {"version": 2}),
        (None, {"version": 2}),
        ("gas", {"version": "2", "cycle": True, "megabatch": 2.0}),
        ("gas", {"megabatch": 2, "cycle": 2, "version": None}),
        ("gas", {"from": 2, "to": 2}),
    ]
    with store.transaction(ACTOR) as tx:
        for model, parameters in told:
            tx.audit.append("test", model=model, parameters=parameters)

    def found(*subjects):
        return [told.index((e.model, e.document["parameters"])) for e in tx.audit.about("gas", subjects)]

    with store.reading() as tx:
        assert found(("version", 2)) == [0, 1, 6]
        assert found(("cycle", 3), ("version", 3)) == [0, 1]
        assert found(("megabatch", 2)) == [5]
        assert found(("cycle", 3), ("version", 2), ("cycle", 2)) == [0, 1, 5, 6]
        assert found(("version", 9)) == found() == []
        assert tx.audit.indexed(100).rows == 2 + 2 + 1 + 2 + 1
        assert tx.audit.indexed(3).rows == 2


@pytest.mark.parametrize("seq", [0, 2, -1, 2**63, 10**30])
def test_unknown_entries(store, seq):
    _append(store, "one")
    with store.reading() as tx, pytest.raises(UnknownEntry):
        tx.audit.entry(seq)


def test_appends_at_once_make_one_log(database_url, store, blobs):
    other = Store(database_url, blobs)

    def append(n):
        _append(store if n % 2 else other, f"kind-{n}", f"also-{n}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append, range(30)))
    with store.reading() as tx:
        assert tx.audit.verify().size == 60
        kinds = [e.kind for e in tx.audit.entries(None, None, 100).items]
    assert all(b == a.replace("kind", "also") for a, b in zip(kinds[::2], kinds[1::2], strict=True))
    other.dispose()


def test_anyone_can_check_the_log_from_what_is_served(store):
    make_model(store)
    _append(store, "a", "b", model="gas")
    with store.reading() as tx:
        served = [
            {
                "seq": e.seq,
                "time": e.time.isoformat(),
                "kind": e.kind,
                "actor": e.actor,
                "request_id": e.document["request_id"],
                "model": e.model,
                "document": json.loads(json.dumps(e.document)),
                "leaf": e.leaf,
            }
            for e in tx.audit.entries(None, None, 10).items
        ]
        head = tx.audit.head()
    assert verify_log(served, head.size, head.root) == 3


def test_a_log_longer_than_one_read(store):
    with store.transaction(ACTOR) as tx:
        for n in range(2500):
            tx.audit.append("many", model=None, parameters={"n": n})
    with store.reading() as tx:
        assert tx.audit.verify().size == 2500
