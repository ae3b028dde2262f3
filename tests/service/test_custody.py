"""Which data went into which version, sample by sample."""

from __future__ import annotations

from itertools import pairwise

import pytest
import sqlalchemy as sa

from app.domain import Model
from app.errors import CorruptBlob, NotRecorded, UnknownMegabatch, UnknownVersion
from app.service import custody
from app.store.database import Store
from app.store.tables import megabatches
from app.store.tables import versions as version_rows
from espalier.formats.custody import Use, decode_samples
from tests.builders import ACTOR, make_megabatch, make_model, make_version
from tests.custody import FRESH, HELD_BACK, OLD, make_recorded

FIRST = {1: {11: FRESH, 12: FRESH | Use.KEPT, 13: HELD_BACK}}
SECOND = {1: {12: OLD | Use.KEPT | Use.SCORED}, 2: {21: FRESH | Use.KEPT, 22: HELD_BACK, 2**64 - 1: FRESH}}
THIRD = {2: {21: OLD | Use.KEPT}, 3: {31: FRESH}}


@pytest.fixture
def model(store: Store) -> Model:
    """Four megabatches; versions 1 to 3, each the child of the one before; 4 is not made from anything that is told."""
    model = make_model(store)
    for _ in range(4):
        make_megabatch(store, model)
    for samples in (FIRST, SECOND, THIRD):
        make_recorded(store, model, samples)
    return model


def erase(store: Store, number: int) -> None:
    with store.transaction(ACTOR) as tx:
        tx.buffer._connection.execute(
            sa.update(megabatches).where(megabatches.c.number == number).values(status="erased")
        )
        tx.audit.append("megabatch.erased", model="gas", parameters={"megabatch": number})


def versions(store: Store, number: int, *, inherited: bool = False, limit: int = 100, after: int | None = None):
    _, page = custody.versions_of(store, "gas", number, after=after, limit=limit, inherited=inherited)
    return page


def samples(store: Store, ref: str = "3", **chosen):
    given = {"lineage": False, "megabatch": None, "use": 0, "after": None, "limit": 100} | chosen
    return custody.samples_of(store, "gas", ref, **given)


def test_every_version_that_a_megabatch_went_into(store: Store, model: Model) -> None:
    assert [(used.version, Use(used.use)) for used in versions(store, 1).items] == [
        (1, FRESH | HELD_BACK | Use.KEPT),
        (2, OLD | Use.KEPT | Use.SCORED),
    ]
    assert [used.version for used in versions(store, 3).items] == [3]
    assert versions(store, 4).items == ()
    with pytest.raises(UnknownMegabatch):
        versions(store, 5)


def test_and_those_that_only_descend_from_one(store: Store, model: Model) -> None:
    found = versions(store, 1, inherited=True)
    assert [(used.version, bool(used.use)) for used in found.items] == [(1, True), (2, True), (3, False)]
    assert versions(store, 4, inherited=True).items == ()


def test_a_branch_that_did_not_see_it_is_no_heir(store: Store, model: Model) -> None:
    with store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(tx.ledger.model("gas"), "champion", 1, expected_revision=None, reason="back")
        tx.audit.append("alias.moved", model="gas")
    aside = make_recorded(store, model, {4: {41: FRESH}})
    assert aside.parent == 1
    assert [used.version for used in versions(store, 2, inherited=True).items] == [2, 3]
    assert [used.version for used in versions(store, 1, inherited=True).items] == [1, 2, 3, 4]


@pytest.mark.parametrize("inherited", [False, True])
def test_pages_follow_one_another(store: Store, model: Model, inherited: bool) -> None:
    whole = versions(store, 1, inherited=inherited).items
    found, after = [], None
    while True:
        page = versions(store, 1, inherited=inherited, limit=1, after=after)
        found += page.items
        if page.next is None:
            break
        after = int(page.next)
    assert tuple(found) == whole


def test_every_megabatch_that_a_version_saw(store: Store, model: Model) -> None:
    page = custody.megabatches_of(store, "gas", "2", lineage=False, after=None, limit=10)
    assert [(seen.used.megabatch, seen.counts[Use.TRAINED], seen.counts[Use.VALIDATION]) for seen in page.items] == [
        (1, 1, 0),
        (2, 2, 1),
    ]
    line = custody.megabatches_of(store, "gas", "champion", lineage=True, after=None, limit=10)
    assert [(seen.used.version, seen.used.megabatch) for seen in line.items] == [(3, 2), (3, 3), (2, 1), (2, 2), (1, 1)]
    with pytest.raises(UnknownVersion):
        custody.megabatches_of(store, "gas", "9", lineage=True, after=None, limit=10)


def test_the_very_samples(store: Store, model: Model) -> None:
    found = [(s.megabatch, s.id, s.use) for s in samples(store, "2").items]
    assert found == [(n, id, use) for n, rows in SECOND.items() for id, use in sorted(rows.items())]
    assert [s.id for s in samples(store, "2", use=int(Use.VALIDATION)).items] == [22]
    assert [s.id for s in samples(store, "2", megabatch=2, use=int(Use.KEPT)).items] == [21]
    assert samples(store, "2", megabatch=4).items == ()


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("chosen", [{}, {"use": int(Use.TRAINED)}, {"megabatch": 2}, {"use": int(Use.SCORED)}])
def test_samples_of_a_lineage_page_by_page(store: Store, model: Model, limit: int, chosen: dict) -> None:
    whole = samples(store, lineage=True, **chosen)
    assert whole.next is None
    found, after = [], None
    while True:
        page = samples(store, lineage=True, limit=limit, after=after, **chosen)
        assert len(page.items) <= limit
        found += page.items
        if page.next is None:
            break
        after = page.next
    assert tuple(found) == whole.items
    assert all((a.version, -a.megabatch, -a.id) > (b.version, -b.megabatch, -b.id) for a, b in pairwise(found))


def test_what_is_older_than_the_record_is_said_to_be(store: Store) -> None:
    old = make_model(store, "old")
    make_megabatch(store, old)
    make_version(store, old)
    make_recorded(store, old, {1: {5: FRESH}})
    with pytest.raises(NotRecorded, match="version 1 of 'old' was made before samples were written down"):
        custody.samples_of(store, "old", "1", lineage=False, megabatch=None, use=0, after=None, limit=9)
    line = custody.samples_of(store, "old", "2", lineage=True, megabatch=None, use=0, after=None, limit=9)
    assert ([s.id for s in line.items], line.next, line.unrecorded) == ([5], None, (1,))
    seen = custody.megabatches_of(store, "old", "2", lineage=True, after=None, limit=9)
    assert ([s.used.megabatch for s in seen.items], seen.unrecorded) == ([1], (1,))


def test_erased_ones_are_told_as_such(store: Store, model: Model) -> None:
    erase(store, 2)
    megabatch, _ = custody.versions_of(store, "gas", 2, after=None, limit=9, inherited=False)
    assert megabatch.status == "erased"
    assert {s.megabatch: s.erased for s in samples(store, "2").items} == {1: False, 2: True}
    page = custody.megabatches_of(store, "gas", "2", lineage=False, after=None, limit=9)
    assert [seen.status for seen in page.items] == ["accepted", "erased"]


def test_the_file_itself(store: Store, model: Model) -> None:
    found = custody.open_record(store, "gas", "champion", "samples")
    assert found.size == len(found.path.read_bytes())
    assert {number: ids.tolist() for number, (ids, _) in decode_samples(found.path.read_bytes()).items()} == {
        2: [21],
        3: [31],
    }
    with pytest.raises(NotRecorded, match="before falls were"):
        custody.open_record(store, "gas", "champion", "falls")


def test_a_file_that_is_none_is_not_told_from(store: Store, model: Model) -> None:
    with store.transaction(ACTOR) as tx:
        strange = store.blobs.put(b"strange")
        tx.buffer._connection.execute(sa.update(version_rows).where(version_rows.c.number == 3).values(samples=strange))
        tx.audit.append("test", model="gas")
    with pytest.raises(CorruptBlob, match="espalier-samples-1"):
        samples(store, "3")
