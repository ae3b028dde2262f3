"""Retention: what is kept, what goes, that both are said, and that no race takes what somebody needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.domain import CHAMPION
from app.errors import LeaseLost, NotAnAncestor, VersionSwept
from app.service import history, outcomes, promotion, release, retention
from app.store.blobs import Blobs
from app.store.database import Store
from tests.builders import ACTOR, Clock, claim, make_cycle, make_model, make_version, publish
from tests.service.conftest import House

DAY = 24 * 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store whose clock is ahead of the files' times: to the sweep, every blob is old."""
    store = Store(database_url, Blobs(tmp_path / "data"), clock)
    yield store
    store.dispose()


def policy(**given: Any) -> Settings:
    return Settings(**given)


def swept(store: Store, name: str = "gas") -> list[int]:
    with store.reading() as tx:
        return [v.number for v in tx.ledger.time_line(name, None, 1000).items if v.swept_at is not None]


def grown(store: Store, versions: int, name: str = "gas") -> None:
    model = make_model(store, name)
    for _ in range(versions):
        make_version(store, model)


def retain(store: Store, **given: Any) -> list[int]:
    """Retention, then the sweep, as a worker runs them; every version is whole or swept afterwards."""
    settings = policy(**given)
    foretold = [(v.model, v.number) for v in retention.planned(store, settings)]
    assert retention.retain(store, settings, ACTOR) == len(foretold)
    assert retention.planned(store, settings) == []
    outcomes.sweep(store, settings, ACTOR)
    assert history.examine(store) == []
    return swept(store)


def roll_back(store: Store, to: int | None = None) -> int:
    revision = release.get_alias(store, "gas", CHAMPION).revision
    done = release.roll_back(
        store, "gas", to=None if to is None else str(to), reason="test", quarantine=[], expected_revision=revision,
        actor=ACTOR,
    )  # fmt: skip
    return done.version.number


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_by_default_every_version_is_kept(store: Store, clock: Clock) -> None:
    grown(store, 5)
    clock.advance(1000 * DAY)
    assert retain(store) == []
    assert retain(store, keep_every=2) == [], "keep_every alone is no window"


def test_the_newest_and_the_window_before_the_champion_are_kept(store: Store) -> None:
    grown(store, 10)
    assert retain(store, keep_versions=3) == [1, 2, 3, 4, 5, 6]  # 8 to 10 are the newest, 7 is the third ancestor of 10


def test_versions_by_age_are_kept(store: Store, clock: Clock) -> None:
    model = make_model(store)
    for _ in range(6):
        make_version(store, model)
        clock.advance(DAY)
    assert retain(store, keep_days=2.5) == [1, 2, 3, 4]
    clock.advance(100 * DAY)
    assert retain(store, keep_days=2.5) == [1, 2, 3, 4, 5], "the champion stays, however old it is"


def test_every_so_manyth_is_kept(store: Store) -> None:
    grown(store, 12)
    assert retain(store, keep_versions=1, keep_every=4) == [1, 2, 3, 5, 6, 7, 9, 10]


def test_the_champions_lineage_counts_not_only_the_newest_numbers(store: Store) -> None:
    """Twenty withheld versions do not push the champion's ancestors out of the window."""
    model = make_model(store)
    for _ in range(5):
        make_version(store, model)
    for _ in range(6):
        make_version(store, model, passed=False)
    assert retain(store, keep_versions=2) == [1, 2, 6, 7, 8, 9]


def test_what_any_alias_names_is_kept(store: Store) -> None:
    grown(store, 8)
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.lock_model("gas")
        tx.ledger.move_alias(model, "edge", 4, expected_revision=0, reason="test")
        tx.audit.append("alias.moved", model="gas")
    assert retain(store, keep_versions=1) == [1, 2, 5, 6], "4 and its window, 8 and its window"


def test_after_a_rollback_the_window_moves_and_latest_stays(store: Store) -> None:
    grown(store, 8)
    roll_back_plainly(store, 5)
    assert retain(store, keep_versions=1) == [1, 2, 3, 6]  # 8 is the latest, 7 its window; 5 the champion, 4 its window


def roll_back_plainly(store: Store, to: int) -> None:
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.lock_model("gas")
        tx.ledger.move_alias(model, CHAMPION, to, expected_revision=None, reason="test")
        tx.audit.append("alias.moved", model="gas")


def test_what_a_running_cycle_started_from_is_kept_until_it_ends(store: Store, clock: Clock) -> None:
    grown(store, 3)
    with store.reading() as tx:
        model = tx.ledger.model("gas")
    make_cycle(store, model)
    claimed = claim(store)
    assert claimed is not None and claimed.cycle.parent == 3
    roll_back_plainly(store, 2)
    clock.advance(100 * DAY)
    assert retain(store, keep_days=1) == [1], "2 is the champion, 3 is what the cycle reads"
    with pytest.raises(LeaseLost):
        publish(store, claimed)
    with store.transaction(ACTOR) as tx:
        tx.ledger.supersede_claim(claimed, "rolled back")
        tx.audit.append("cycle.superseded", model="gas")
    assert retain(store, keep_days=1) == [1], "3 is the latest"


def test_models_are_looked_at_one_by_one(store: Store) -> None:
    grown(store, 4, "gas")
    grown(store, 2, "tar")
    assert retain(store, keep_versions=1) == [1, 2]
    assert swept(store, "tar") == []


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_a_swept_version_keeps_its_row_and_its_entries(store: Store) -> None:
    grown(store, 5)
    with store.reading() as tx:
        before = tx.ledger.version("gas", 1)
    assert retain(store, keep_versions=1) == [1, 2, 3]
    with store.reading() as tx:
        after = tx.ledger.version("gas", 1)
        entries = tx.audit.entries("gas", None, 1000, "data.swept").items
    assert (after.metrics, after.checkpoint, after.layers) == (before.metrics, before.checkpoint, before.layers)
    assert after.swept_at == store.clock()
    assert after.swept_reason == "retention keeps the newest 1, and what is needed"
    assert [entry.document["parameters"]["version"] for entry in entries] == [1, 2, 3]
    first = entries[0].document
    assert first["outputs"] == [before.checkpoint, before.state]
    assert first["reason"] == after.swept_reason
    assert first["parameters"]["checkpoint_bytes"] == before.checkpoint_bytes
    assert [entry.seq for entry in entries][:1] == [
        entry.seq for entry in history.version_audit(store, "gas", "1") if entry.kind == "data.swept"
    ]
    assert not store.blobs.has(before.checkpoint)
    assert not store.blobs.has(before.state)


def test_killed_before_the_bytes_went_the_next_sweep_goes_on(store: Store) -> None:
    grown(store, 3)
    with store.reading() as tx:
        first = tx.ledger.version("gas", 1)
    assert retention.retain(store, policy(keep_versions=1), ACTOR) == 1
    assert store.blobs.has(first.checkpoint)
    assert history.unnamed(store).blobs == 2
    assert outcomes.sweep(store, policy(), ACTOR) == 2, "whatever the policy is by then"
    assert not store.blobs.has(first.checkpoint)


def test_a_blob_that_another_version_names_stays(store: Store) -> None:
    """Two versions may well have the same state, to the byte."""
    model = make_model(store)
    make_version(store, model)
    make_version(store, model)
    make_version(store, model)
    shared = store.blobs.put(b"state gas 3")
    with store.reading() as tx:
        assert tx.ledger.version("gas", 3).state == shared
        first = tx.ledger.version("gas", 1)
    other = make_model(store, "tar")
    make_version(store, other)
    assert retain(store, keep_versions=1) == [1]
    assert store.blobs.has(shared)
    assert not store.blobs.has(first.state)


def test_bytes_younger_than_the_grace_period_wait(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url, Blobs(tmp_path / "data"))
    grown(store, 3)
    assert retention.retain(store, policy(keep_versions=1), ACTOR) == 1
    assert outcomes.sweep(store, policy(), ACTOR) == 0, "somebody may have kept the same bytes a moment ago"
    assert history.unnamed(store).blobs == 2
    store.dispose()


def test_many_versions_go_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    grown(store, 8)
    assert retain(store, keep_versions=1) == [1, 2, 3, 4, 5, 6]


# -- afterwards --------------------------------------------------------------------------------------------------------


def test_what_was_swept_is_gone_and_says_why(store: Store) -> None:
    grown(store, 6)
    assert retain(store, keep_versions=2) == [1, 2, 3]
    revision = release.get_alias(store, "gas", CHAMPION).revision
    asked = [
        lambda: release.open_checkpoint(store, "gas", "2", "sparse"),
        lambda: release.open_checkpoint(store, "gas", "2", "dense"),
        lambda: roll_back(store, 2),
        lambda: promotion.promote(store, "gas", 2, reason="test", expected_revision=revision, actor=ACTOR),
    ]
    for ask in asked:
        with pytest.raises(VersionSwept, match="retention keeps the newest 2"):
            ask()
    assert release.get_alias(store, "gas", CHAMPION).revision == revision


def test_a_rollback_without_a_target_skips_what_was_swept(store: Store) -> None:
    grown(store, 4)
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.lock_model("gas")
        tx.ledger.sweep_version(model, 3, "by hand")
        tx.audit.append("data.swept", model="gas")
    assert roll_back(store) == 2
    with pytest.raises(NotAnAncestor, match="roll back to one of 1, or promote"):
        roll_back(store, 4)


def test_without_any_ancestor_that_has_its_bytes_a_rollback_says_so(store: Store) -> None:
    grown(store, 2)
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.lock_model("gas")
        tx.ledger.sweep_version(model, 1, "by hand")
        tx.audit.append("data.swept", model="gas")
    with pytest.raises(NotAnAncestor, match="has its bytes"):
        roll_back(store)


def test_a_download_between_the_mark_and_the_removal_is_gone_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is looked up, then swept, then its bytes are asked for."""
    grown(store, 3)
    verified, settings = Blobs.verified, policy(keep_versions=1)

    def after_the_sweep(blobs: Blobs, digest: str) -> Path:
        retention.retain(store, settings, ACTOR)
        outcomes.sweep(store, settings, ACTOR)
        return verified(blobs, digest)

    monkeypatch.setattr(Blobs, "verified", after_the_sweep)
    with pytest.raises(VersionSwept):
        release.open_checkpoint(store, "gas", "1", "sparse")


def test_the_doctor_names_a_champion_without_bytes(store: Store) -> None:
    grown(store, 1)
    with store.transaction(ACTOR) as tx:
        tx.ledger.sweep_version(tx.ledger.lock_model("gas"), 1, "by hand")
        tx.audit.append("data.swept", model="gas")
    assert [(f.kind, f.subject) for f in history.examine(store)] == [("alias", "gas")]


# -- races -------------------------------------------------------------------------------------------------------------


def test_a_rollback_and_retention_at_once_end_in_one_order(store: Store) -> None:
    """Either the rollback came first, and its target is kept, or retention did, and the rollback is refused."""
    outcomes_seen = set()
    for n in range(6):
        name = f"gas-{n}"
        grown(store, 5, name)
        together, refused = threading.Barrier(2), []

        def back(name: str = name, together: threading.Barrier = together, refused: list[bool] = refused) -> None:
            together.wait()
            try:
                release.roll_back(
                    store, name, to="2", reason="test", quarantine=[], expected_revision=5, actor=ACTOR
                )  # fmt: skip
            except VersionSwept:
                refused.append(True)

        thread = threading.Thread(target=back)
        thread.start()
        together.wait()
        retention.retain(store, policy(keep_versions=1), ACTOR)
        thread.join()
        gone = swept(store, name)
        champion = release.get_version(store, name, CHAMPION).version
        assert champion.swept_at is None
        assert (2 in gone) == bool(refused)
        assert champion.number == (5 if refused else 2)
        outcomes_seen.add(bool(refused))
        outcomes.sweep(store, policy(), ACTOR)
        assert history.examine(store) == []
    assert outcomes_seen


def test_cycles_that_run_meanwhile_find_what_they_need(house: House) -> None:
    """A worker trains one megabatch after another while retention keeps as little as it may."""
    house.create()
    settings = house.settings.model_copy(update={"keep_versions": 1})
    stop, errors = threading.Event(), []

    def clean() -> None:
        while not stop.wait(0.005):
            try:
                retention.retain(house.store, settings, ACTOR)
            except Exception as error:
                errors.append(error)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(1, 4):
            house.upload(seed=number)
            ended, until = None, time.monotonic() + 30
            while ended is None and time.monotonic() < until:
                ended = house.cycle()  # None: the model was locked just then, and was passed over
            assert ended is not None and ended.version == number
    finally:
        stop.set()
        cleaner.join()
    retention.retain(house.store, settings, ACTOR)
    assert errors == []
    assert swept(house.store) == [1]
    assert history.examine(house.store) == []
