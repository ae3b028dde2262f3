from itertools import pairwise

import sqlalchemy as sa

from app.service import history, release
from app.store.tables import audit_subjects
from tests.service.conftest import House


def test_every_step_of_a_cycle_is_in_the_log_in_order(house: House) -> None:
    house.create()
    house.grow(1)
    steps = house.kinds().count("mask.pruned")
    assert steps > 1 and house.kinds() == [
        "model.created",
        "megabatch.accepted",
        "cycle.started",
        *["mask.pruned"] * steps,
        "network.trained",
        "replay.kept",
        "cycle.judged",
        "version.published",
        "alias.moved",
    ]
    head = history.verify_log(house.store)
    assert head == history.log_head(house.store)
    assert head.size == 8 + steps


def test_the_entries_of_a_version(house: House) -> None:
    house.create()
    house.grow(2)
    kinds = [entry.kind for entry in history.version_audit(house.store, "gas", "1")]
    assert kinds[:2] == ["megabatch.accepted", "cycle.started"]
    assert kinds.count("alias.moved") == 2, "once to it, once away from it"


def test_the_fsck_counts_the_index_of_the_log(house: House, database_url: str) -> None:
    house.create()
    house.upload()
    assert history.examine(house.store) == []
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.delete(audit_subjects).where(audit_subjects.c.subject == "megabatch"))
    engine.dispose()
    (finding,) = history.examine(house.store)
    assert (finding.kind, "1 rows for entries 1 to 2 instead of 2" in finding.detail) == ("index", True), finding
    assert history.verify_log(house.store).size == 2, "the log itself holds"


def test_pruning_entries_state_planned_and_counted_density(house: House) -> None:
    house.create()
    house.grow(2)
    with house.store.reading() as tx:
        entries = [e.document["parameters"] for e in tx.audit.entries("gas", None, 100, "mask.pruned").items]
    versions = [release.get_version(house.store, "gas", str(number)).version for number in (1, 2)]
    last = [entry for entry in entries if entry["step"] == entry["steps"]]
    assert [(e["kept"], e["total"], e["mask_digest_after"]) for e in last] == [
        (v.kept, v.total, v.mask_digest) for v in versions
    ]
    assert all(entry["planned"] == entry["kept"] for entry in entries)
    for before, after in pairwise(entries):
        assert before["mask_digest_after"] == after["mask_digest_before"]


def test_the_time_line_knows_the_champion(house: House) -> None:
    house.create()
    house.grow(3)
    page, champion = history.time_line(house.store, "gas", after=None, limit=2)
    assert [version.number for version in page.items] == [1, 2]
    rest, _ = history.time_line(house.store, "gas", after=int(page.next or 0), limit=2)
    assert ([version.number for version in rest.items], rest.next, champion) == ([3], None, 3)
    assert "prequential_accuracy" in rest.items[0].metrics
    assert "prequential_accuracy" not in page.items[0].metrics, "nothing was champion before the first version"


def test_health_counts_what_waits(house: House) -> None:
    house.create()
    house.upload()
    health = history.health(house.store)
    assert (health.queued, health.running) == (1, 0)


def test_a_version_keeps_its_figures_by_class_and_by_megabatch(house: House) -> None:
    house.create()
    house.grow(2)
    version = release.get_version(house.store, "gas", "2").version
    assert set(version.report["prequential"]) == {"2"}
    assert sum(version.report["validation_by_class"]["examples"]) > 0
    assert set(version.report["megabatches"]) == {"1", "2"}
    with house.store.reading() as tx:
        judged = tx.audit.entries("gas", None, 100, "cycle.judged").items[-1]
    assert set(judged.document["parameters"]["report"]) == set(version.report)
