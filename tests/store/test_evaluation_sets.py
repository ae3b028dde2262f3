"""Evaluation sets: revisions, what is in force, and the overlap that megabatches show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app.errors import UnknownEvaluationSet
from tests.builders import ACTOR, make_evaluation, make_megabatch, make_model, megabatch_draft


def _overlaps(store):
    with store.reading() as tx:
        return [m.evaluation_overlap for m in tx.buffer.megabatches("gas", None, 10).items]


def test_an_evaluation_set_comes_back_as_it_was_set(store):
    model = make_model(store)
    draft = replace(megabatch_draft(store, "a"), examples=2**40, bytes=2**41)
    with store.transaction(ACTOR) as tx:
        added, new = tx.buffer.set_evaluation(model, draft)
        now = tx.now
        tx.audit.append("evaluation.set", model="gas")
    assert new
    assert (added.model, added.revision, added.set_at) == ("gas", 1, now)
    fields = set(draft.__slots__) - {"evaluation_overlap"}
    assert {name: getattr(added, name) for name in fields} == {name: getattr(draft, name) for name in fields}
    with store.reading() as tx:
        assert tx.buffer.evaluation_set(model) == tx.buffer.evaluation_set(model, 1) == added
        assert tx.buffer.evaluation(model) == added


def test_what_is_in_force_already_changes_nothing_and_another_one_is_a_new_revision(store):
    model, other = make_model(store), make_model(store, "other")
    first = make_evaluation(store, model, "a")
    with store.transaction(ACTOR) as tx:  # nothing new, so nothing has to be audited
        assert tx.buffer.set_evaluation(model, megabatch_draft(store, "a")) == (first, False)
    revisions = [make_evaluation(store, model, content).revision for content in ("b", "b", "a")]
    assert revisions == [2, 2, 3]
    with store.reading() as tx:
        assert [found.revision for found in tx.buffer.evaluation_sets(model)] == [1, 2, 3]
        assert tx.buffer.evaluation_set(model, 1) == first
        assert tx.buffer.evaluation_sets(other) == []
        assert tx.buffer.evaluation(other) is None


def test_a_set_that_is_not_there_is_named_with_the_remedy(store):
    model = make_model(store)
    with store.reading() as tx, pytest.raises(UnknownEvaluationSet, match="PUT /v1/models/gas/evaluation-set"):
        tx.buffer.evaluation_set(model)
    make_evaluation(store, model)
    for revision in (0, 2, -1):
        with store.reading() as tx, pytest.raises(UnknownEvaluationSet, match=f"revision {revision}"):
            tx.buffer.evaluation_set(model, revision)


def test_sets_at_once_are_numbered_without_gaps(store):
    model = make_model(store)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: make_evaluation(store, model, f"set {n}").revision, range(8)))
    assert sorted(found) == list(range(1, 9))


def test_overlap_is_unknown_without_a_set_and_zero_unless_counted(store):
    model, other = make_model(store), make_model(store, "other")
    for _ in range(3):
        make_megabatch(store, model)
    make_megabatch(store, other)
    assert _overlaps(store) == [None, None, None]
    for counted, shown in (({2: 7}, [0, 7, 0]), ({1: 2, 3: 2**40}, [2, 0, 2**40]), ({}, [0, 0, 0])):
        with store.transaction(ACTOR) as tx:
            tx.buffer.set_overlaps(model, counted)
            tx.audit.append("evaluation.set", model="gas")
        assert _overlaps(store) == shown
        with store.reading() as tx:
            assert tx.buffer.evaluation_overlap(model) == sum(shown)
    with store.reading() as tx:
        assert tx.buffer.megabatch("other", 1).evaluation_overlap is None
        assert tx.buffer.evaluation_overlap(other) == 0
