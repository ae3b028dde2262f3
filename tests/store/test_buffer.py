"""Megabatches: numbering, duplicates, eligibility, quarantine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app.domain import MegabatchStatus, Prequential
from app.errors import MegabatchQuarantined, UnknownMegabatch
from tests.builders import ACTOR, make_megabatch, make_model, make_pin, megabatch_draft


def _quarantine(store, model, numbers):
    with store.transaction(ACTOR) as tx:
        changed = tx.buffer.quarantine(model, numbers)
        tx.audit.append("megabatch.quarantined", model=model.name)
    return changed


def test_a_megabatch_comes_back_as_it_was_added(store):
    model = make_model(store)
    draft = replace(megabatch_draft(store, "a"), examples=2**40, bytes=2**41)
    with store.transaction(ACTOR) as tx:
        added, new = tx.buffer.add_megabatch(model, draft)
        now = tx.now
        tx.audit.append("megabatch.accepted", model="gas")
    with store.reading() as tx:
        assert tx.buffer.megabatch("gas", 1) == added
    assert new
    assert {name: getattr(added, name) for name in draft.__slots__} == {n: getattr(draft, n) for n in draft.__slots__}
    assert (added.number, added.status, added.prequential, added.received_at) == (
        1,
        MegabatchStatus.ACCEPTED,
        None,
        now,
    )


def test_the_same_arrays_are_one_megabatch_a_model(store):
    model, other = make_model(store), make_model(store, "other")
    first = make_megabatch(store, model, "a")
    make_megabatch(store, model, "b")
    with store.transaction(ACTOR) as tx:  # nothing new, so nothing has to be audited
        assert tx.buffer.add_megabatch(model, megabatch_draft(store, "a")) == (first, False)
        assert tx.buffer.last_number(model) == 2
    assert make_megabatch(store, other, "a").number == 1


def test_arrivals_at_once_are_numbered_without_gaps(store):
    model = make_model(store)
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda n: make_megabatch(store, model, f"content {n}").number, range(20)))
    assert sorted(numbers) == list(range(1, 21))


def test_the_same_arrays_at_once_are_one_megabatch(store):
    model = make_model(store)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: make_megabatch(store, model, "same").number, range(8))) == {1}


def test_pages_are_complete_and_in_order(store):
    model, other = make_model(store), make_model(store, "other")
    for _ in range(5):
        make_megabatch(store, model)
        make_megabatch(store, other)
    found, after = [], None
    while True:
        with store.reading() as tx:
            page = tx.buffer.megabatches("gas", after, 2)
        found += [(m.model, m.number) for m in page.items]
        if page.next is None:
            break
        after = int(page.next)
        make_megabatch(store, other)
    assert found == [("gas", n) for n in range(1, 6)]


def test_unknown_megabatches(store):
    model = make_model(store)
    make_megabatch(store, model)
    with store.reading() as tx:
        assert tx.buffer.last_number(model) == 1
        for number in (0, 2, -1, 2**31, 10**30):
            with pytest.raises(UnknownMegabatch):
                tx.buffer.megabatch("gas", number)
            with pytest.raises(UnknownMegabatch, match=str(number)):
                tx.buffer.training_set(model, [1, number])
        with pytest.raises(UnknownMegabatch):
            tx.buffer.megabatch("no", 1)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_eligible_is_what_was_accepted_and_not_seen(store, kind):
    model = make_model(store)
    for _ in range(6):
        make_megabatch(store, model)
    _quarantine(store, model, [4])
    with store.reading() as tx:

        def eligible(seen, through=None):
            return [m.number for m in tx.buffer.eligible(model, seen=seen, through=through)]

        assert eligible(kind([])) == [1, 2, 3, 5, 6]
        assert eligible(kind([1, 3])) == [2, 5, 6]
        assert eligible(kind([1, 2, 3]), 5) == [5]
        assert eligible(kind([1, 2, 3, 5, 6])) == []
        assert eligible(range(1, 4), 10**12) == [5, 6]
        assert eligible(kind([]), 0) == []


def test_sets_larger_than_one_statement_takes(store):
    model = make_model(store)
    draft = megabatch_draft(store, "many")
    with store.transaction(ACTOR) as tx:
        for n in range(520):
            tx.buffer.add_megabatch(model, replace(draft, digest=f"sha256:{n:064x}"))
        tx.audit.append("megabatch.accepted", model="gas")
    with store.transaction(ACTOR) as tx:
        assert [m.number for m in tx.buffer.eligible(model, seen=range(1, 51))] == list(range(51, 521))
        assert len(tx.buffer.quarantine(model, range(1, 521))) == 520
        assert tx.buffer.eligible(model, seen=()) == []
        tx.audit.append("megabatch.quarantined", model="gas")


def test_quarantine_is_for_good_and_invalidates_cycles(store):
    model = make_model(store)
    for content in "abc":
        make_megabatch(store, model, content)
    changed = _quarantine(store, model, [3, 1])
    assert [(m.number, m.status) for m in changed] == [
        (1, MegabatchStatus.QUARANTINED),
        (3, MegabatchStatus.QUARANTINED),
    ]
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.model("gas").generation == model.generation + 1
        assert tx.buffer.quarantine(model, [1, 3]) == []  # no change, so nothing has to be audited
        assert tx.buffer.quarantine(model, []) == []
    with store.reading() as tx:
        assert [m.status for m in tx.buffer.training_set(model, [3, 2])] == ["accepted", "quarantined"]
    with pytest.raises(MegabatchQuarantined, match="megabatch 1"), store.transaction(ACTOR) as tx:
        tx.buffer.add_megabatch(model, megabatch_draft(store, "a"))


def test_an_unknown_megabatch_stops_a_quarantine_whole(store):
    model = make_model(store)
    make_megabatch(store, model)
    with pytest.raises(UnknownMegabatch):
        _quarantine(store, model, [1, 2])
    with store.reading() as tx:
        assert tx.buffer.megabatch("gas", 1).status is MegabatchStatus.ACCEPTED


def test_prequential_accuracy_is_taken_once(store):
    model = make_model(store)
    make_megabatch(store, model)
    first = Prequential(3, 1 / 3, 1e-300, 10)
    with store.transaction(ACTOR) as tx:
        tx.buffer.record_prequential(model, 1, first)
        tx.audit.append("cycle.judged", model="gas")
    with store.transaction(ACTOR) as tx:
        tx.buffer.record_prequential(model, 1, Prequential(4, 1.0, 0.0, 10))
    with store.reading() as tx:
        assert tx.buffer.megabatch("gas", 1).prequential == first
    with pytest.raises(UnknownMegabatch), store.transaction(ACTOR) as tx:
        tx.buffer.record_prequential(model, 2, first)


def test_a_champion_that_knows_none_of_the_classes_has_no_loss(store):
    model = make_model(store)
    make_megabatch(store, model)
    with store.transaction(ACTOR) as tx:
        tx.buffer.record_prequential(model, 1, Prequential(3, 0.0, None, 10))
        tx.audit.append("cycle.judged", model="gas")
    with store.reading() as tx:
        assert tx.buffer.megabatch("gas", 1).prequential == Prequential(3, 0.0, None, 10)


def test_pins_come_and_go_one_by_one(store):
    model = make_model(store)
    for _ in range(3):
        make_megabatch(store, model)
    assert make_pin(store, model, 2).pinned
    with store.transaction(ACTOR) as tx:  # no change, so nothing has to be audited
        assert tx.buffer.pin(model, 2, pinned=True)[1] is False
        assert tx.buffer.pin(model, 1, pinned=False)[1] is False
        assert tx.ledger.model("gas").generation == model.generation, "a running cycle goes on"
    with store.reading() as tx:
        assert [m.pinned for m in tx.buffer.megabatches("gas", None, 10).items] == [False, True, False]
    assert not make_pin(store, model, 2, pinned=False).pinned
    with pytest.raises(UnknownMegabatch, match="no megabatch 4"):
        make_pin(store, model, 4)


def test_accepted_numbers(store):
    model = make_model(store)
    for _ in range(5):
        make_megabatch(store, model)
    _quarantine(store, model, [2])
    with store.reading() as tx:
        assert tx.buffer.accepted(model) == [1, 3, 4, 5]
        assert tx.buffer.accepted(model, since=2, through=4) == [3, 4]
        assert tx.buffer.accepted(model, since=6, through=10**12) == []
