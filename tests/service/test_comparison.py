"""Which examples two versions answer differently."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain import Model
from app.errors import NotRecorded
from app.service import comparison
from app.service.comparison import Kind, Sought
from app.store.database import Store
from espalier.formats.custody import Answers
from tests.builders import make_megabatch, make_model, make_version
from tests.custody import HELD_BACK, make_recorded
from tests.service.test_custody import erase

CAT, DOG, OWL = 0, 1, 2
BEFORE = {  # id: label, answer, confidence
    1: (CAT, CAT, 0.5),
    2: (CAT, DOG, 0.75),
    3: (DOG, DOG, 1.0),
    4: (DOG, CAT, 0.5),
    2**64 - 1: (OWL, OWL, 0.25),
}
NOW = {
    1: (CAT, CAT, 0.625),
    2: (CAT, CAT, 0.5),
    3: (DOG, OWL, 0.75),
    4: (DOG, OWL, 0.5),
    2**64 - 1: (OWL, CAT, 0.5),
}


@pytest.fixture
def model(store: Store) -> Model:
    model = make_model(store)
    make_megabatch(store, model)
    make_recorded(
        store,
        model,
        {1: {7: HELD_BACK, 8: HELD_BACK}},
        evaluation=BEFORE,
        validation={7: (CAT, CAT, 0.5), 8: (CAT, CAT, 1)},
    )
    make_recorded(
        store, model, {1: {7: HELD_BACK}}, evaluation=NOW, validation={7: (CAT, DOG, 0.5), 9: (DOG, DOG, 0.5)}
    )
    return model


def compared(store: Store, before: str = "1", now: str = "2", after: int | None = None, limit: int = 100, **sought):
    return comparison.compare(store, "gas", before, now, sought=Sought(**sought), after=after, limit=limit)


def test_counts(store: Store, model: Model) -> None:
    validation, evaluation = compared(store).tallies
    kinds = {Kind.FIXED: 1, Kind.BROKEN: 2, Kind.CHANGED: 1, Kind.UNCHANGED: 1}
    assert (evaluation.source, evaluation.total.kinds, evaluation.total.examples) == ("evaluation", kinds, 5)
    assert (evaluation.total.right_before, evaluation.total.right_now) == (3, 2)
    assert {label: tally.kinds[Kind.BROKEN] for label, tally in evaluation.by_class.items()} == {CAT: 0, DOG: 1, OWL: 1}
    assert evaluation.p_value == 1.0
    assert (evaluation.only_before, evaluation.only_now) == (0, 0)
    assert (validation.total.examples, validation.only_before, validation.only_now) == (1, 1, 1)


def test_the_examples_one_by_one(store: Store, model: Model) -> None:
    found = compared(store)
    assert [(c.source, c.id, c.kind) for c in found.items] == [
        ("validation", 7, Kind.BROKEN),
        ("evaluation", 2, Kind.FIXED),
        ("evaluation", 3, Kind.BROKEN),
        ("evaluation", 4, Kind.CHANGED),
        ("evaluation", 2**64 - 1, Kind.BROKEN),
    ]
    fixed = found.items[1]
    assert (fixed.label, fixed.answers, fixed.confidence) == (CAT, (DOG, CAT), (0.75, 0.5))
    assert found.classes == ("cat", "dog", "owl")


def test_some_of_them(store: Store, model: Model) -> None:
    assert [c.id for c in compared(store, kinds=[Kind.UNCHANGED]).items] == [1]
    assert [c.id for c in compared(store, label="dog").items] == [3, 4]
    assert [c.id for c in compared(store, source="validation").items] == [7]
    assert compared(store, label="unicorn").items == ()


def test_pages_follow_one_another(store: Store, model: Model) -> None:
    whole = compared(store).items
    for limit in (1, 2, 4):
        found, after = [], None
        while True:
            page = compared(store, limit=limit, after=after)
            found += page.items
            if page.next is None:
                break
            after = page.next
        assert tuple(found) == whole


def test_a_version_differs_from_itself_in_nothing(store: Store, model: Model) -> None:
    found = compared(store, "2", "2")
    assert found.items == ()
    assert all(tally.total.kinds[Kind.UNCHANGED] == tally.total.examples for tally in found.tallies)


def test_the_other_way_round(store: Store, model: Model) -> None:
    back = compared(store, "2", "1").tallies[1].total
    assert (back.kinds[Kind.FIXED], back.kinds[Kind.BROKEN]) == (2, 1)


def test_duplicates_are_counted_one_by_one(store: Store, model: Model) -> None:
    """Equal examples have equal ids, also where somebody labelled them differently."""
    first, second = (Answers(*columns) for columns in _duplicates())
    here, there = comparison._matched(first, second)
    assert list(zip(here.tolist(), there.tolist(), strict=True)) == [(0, 1), (1, 2), (2, 3)]


def _duplicates():
    def columns(ids, labels):
        zeros = np.zeros(len(ids), "i8")
        return np.array(ids, "u8"), np.array(labels), zeros, zeros.astype("f4"), zeros.astype("u1")

    return columns([5, 5, 5, 6], [0, 0, 1, 0]), columns([4, 5, 5, 5, 7], [0, 0, 0, 1, 0])


def test_of_erased_examples_only_the_kind_is_told(store: Store, model: Model) -> None:
    erase(store, 1)
    gone = compared(store, source="validation").items[0]
    assert (gone.id, gone.kind) == (7, Kind.BROKEN)
    assert (gone.label, gone.answers, gone.confidence) == (None, None, None)
    assert all(c.label is not None for c in compared(store, source="evaluation").items)


def test_older_versions_cannot_be_compared(store: Store, model: Model) -> None:
    make_version(store, model)
    with pytest.raises(NotRecorded, match="version 3 of 'gas' was made before answers were written down"):
        compared(store, "1", "3")
