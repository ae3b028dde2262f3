"""What clients decided with which version: kept whole, stamped, and found again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.domain import DecisionDraft, Model, Version
from app.errors import InvalidCursor, InvalidStamp, UnknownModel
from app.service import decisions
from app.service.history import examine
from app.store.database import Store
from app.store.decisions import Sought
from app.store.tables import decisions as table
from espalier.formats.canonical import canonical_json, sha256_digest
from tests.builders import ACTOR, make_model, make_version

AT = datetime(2030, 3, 2, 9, 30, tzinfo=UTC)


@pytest.fixture
def model(store: Store) -> Model:
    return make_model(store)


@pytest.fixture
def version(store: Store, model: Model) -> Version:
    return make_version(store, model)


def drafts(version: Version, n: int = 3) -> list[DecisionDraft]:
    return [
        DecisionDraft(version.number, version.checkpoint, f"e{i}", "cat", i / 7, AT + timedelta(seconds=i))
        for i in range(n)
    ]


def listed(store: Store, after: int | None = None, limit: int = 100, **sought):
    return decisions.list_decisions(store, "gas", Sought(**sought), after=after, limit=limit)


def keep(store: Store, batch: list[DecisionDraft], name: str = "gas") -> decisions.Recorded:
    return decisions.record_decisions(store, name, batch, actor=ACTOR)


def count(store: Store) -> int:
    with store.reading() as tx:
        return tx.decisions._connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_a_batch_is_kept_with_one_entry(store: Store, version: Version) -> None:
    kept = keep(store, drafts(version))
    with store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 100, decisions.RECORDED).items
    said = entry.document["parameters"]
    assert said == {"count": 3, "versions": [1], "digest": kept.digest, "first": kept.first, "last": kept.last}
    assert entry.document["inputs"] == [version.checkpoint]
    rows = [
        {"version": 1, "checkpoint": version.checkpoint, "example": f"e{i}", "answer": "cat", "confidence": repr(i / 7),
         "made_at": f"2030-03-02T09:30:0{i}.000000Z"}
        for i in range(3)
    ]  # fmt: skip
    assert kept.digest == sha256_digest(canonical_json(rows)), "as docs/custody.md says it is made"


def test_decisions_come_back_as_they_were_made(store: Store, version: Version) -> None:
    batch = [*drafts(version), DecisionDraft(1, version.checkpoint, None, "dög", None, AT - timedelta(days=365))]
    keep(store, batch)
    found = listed(store).items
    assert [d.made_at for d in found] == sorted((d.made_at for d in batch), reverse=True)
    told = [DecisionDraft(d.version, d.checkpoint, d.example, d.answer, d.confidence, d.made_at) for d in found]
    assert sorted(told, key=lambda d: d.made_at) == sorted(batch, key=lambda d: d.made_at)
    assert {d.actor for d in found} == {ACTOR.name}


def test_some_of_them(store: Store, model: Model, version: Version) -> None:
    keep(store, drafts(version))
    second = make_version(store, model)
    keep(store, drafts(second, 2))
    assert [d.version for d in listed(store, version=2).items] == [2, 2]
    assert {d.version for d in listed(store, example="e1").items} == {1, 2}
    assert [d.example for d in listed(store, version=1, since=AT + timedelta(seconds=1)).items] == ["e2", "e1"]
    assert [d.example for d in listed(store, version=1, until=AT + timedelta(seconds=1)).items] == ["e0"]
    assert listed(store, version=3).items == ()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_follow_one_another(store: Store, version: Version, limit: int) -> None:
    same = [replace(draft, made_at=AT) for draft in drafts(version, 5)]  # the number decides between equal times
    keep(store, same + drafts(version, 4))
    whole, found, after = listed(store).items, [], None
    while True:
        page = listed(store, limit=limit, after=after)
        found += page.items
        if page.next is None:
            break
        after = int(page.next)
    assert tuple(found) == whole
    assert len(found) == 9
    with pytest.raises(InvalidCursor):
        listed(store, after=10**12)


def test_a_stamp_that_is_not_the_models_is_refused_with_the_whole_batch(store: Store, version: Version) -> None:
    other = "sha256:" + "00" * 32
    for wrong in (replace(drafts(version)[0], version=2), replace(drafts(version)[0], checkpoint=other)):
        with pytest.raises(InvalidStamp, match="decisions are stamped with version"):
            keep(store, [*drafts(version), wrong])
    with pytest.raises(UnknownModel):
        keep(store, drafts(version), "air")
    assert count(store) == 0


def test_the_doctor_finds_rows_that_were_changed_or_removed(store: Store, version: Version) -> None:
    kept = keep(store, drafts(version))
    keep(store, drafts(version, 1))
    assert [finding for finding in examine(store) if finding.kind == "decisions"] == []
    _behind_its_back(store, table.update().where(table.c.id == kept.first).values(answer="dog"))
    (changed,) = [finding for finding in examine(store) if finding.kind == "decisions"]
    assert "hash to" in changed.detail
    _behind_its_back(store, table.delete().where(table.c.id == kept.last))
    (removed,) = [finding for finding in examine(store) if finding.kind == "decisions"]
    assert "2 decisions are kept of the 3" in removed.detail


def _behind_its_back(store: Store, statement: sa.sql.expression.UpdateBase) -> None:
    engine = sa.create_engine(store._engine.url)
    with engine.begin() as connection:
        connection.execute(statement)
    engine.dispose()
