"""Models, cycles, versions, aliases: what the ledger promises to workers and to people."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.domain import (
    CHAMPION,
    CycleState,
    CycleTrigger,
    InputSpec,
    ModelState,
    Normalisation,
    Page,
    Phase,
    Progress,
    Verdict,
    Version,
    VersionStatus,
    VersionSummary,
)
from app.errors import (
    AliasMoved,
    InvalidName,
    LeaseLost,
    ModelExists,
    UnknownAlias,
    UnknownCycle,
    UnknownModel,
    UnknownRevision,
    UnknownVersion,
)
from app.store import ledger, releases
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.tables import versions, workers
from tests.builders import (
    ACTOR,
    Clock,
    claim,
    digest_of,
    make_cycle,
    make_evaluation,
    make_megabatch,
    make_model,
    make_pin,
    make_version,
    publish,
    version_draft,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, blobs: Blobs, clock: Clock):
    store = Store(database_url, blobs, clock)
    yield store
    store.dispose()


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was_created(store, clock):
    spec = InputSpec((8, 8, 3), "uint8", ("ä", "b"), Normalisation("fixed", True, None, (0.1,), (1e-300,)))
    made = make_model(store, "gas-2", recipe={"b": 1, "a": [0.1, None]}, input=spec)
    with store.reading() as tx:
        model = tx.ledger.model("gas-2")
        recipe = tx.ledger.recipe("gas-2")
    assert model == made
    assert (model.input, model.created_at, model.generation) == (spec, clock.now, 1)
    assert (recipe.revision, recipe.document, recipe.model) == (1, {"b": 1, "a": [0.1, None]}, "gas-2")
    assert list(recipe.document) == ["b", "a"]


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(),
        InputSpec(shape=(3,)),
        InputSpec(classes=("a", "b"), unseen_classes="extend"),
        InputSpec(label="kind", features=("b", "a"), resize="crop"),
    ],
)
def test_an_incomplete_input_stays_incomplete(store, spec):
    assert make_model(store, input=spec).input == spec


def test_a_name_is_taken_once(store):
    make_model(store)
    with pytest.raises(ModelExists):
        make_model(store)


@pytest.mark.parametrize("name", ["", "A", "-a", "a" * 64, "a b", "a\x00", "../a", "ä", "a\n"])
def test_names_that_are_none(store, name):
    with pytest.raises(InvalidName):
        make_model(store, name)
    with store.reading() as tx, pytest.raises(UnknownModel):
        tx.ledger.model(name)


def test_input_state_and_generation_change(store):
    model = make_model(store, input=InputSpec())
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.set_input(model, InputSpec(shape=(2,))).input == InputSpec(shape=(2,))
        assert tx.ledger.set_state(model, ModelState.PAUSED, "three failures").paused_reason == "three failures"
        assert tx.ledger.bump_generation(model).generation == 2
        tx.audit.append("model.paused", model="gas")
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.set_state(model, ModelState.ACTIVE, "fixed").paused_reason is None
        tx.audit.append("model.resumed", model="gas")


def test_an_unknown_recipe_revision_is_named(store):
    make_model(store)
    with store.reading() as tx, pytest.raises(UnknownRevision, match="no recipe revision 2"):
        tx.ledger.recipe("gas", 2)


def test_a_tick_is_taken_up_once(store, clock):
    model = make_model(store)
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.last_tick(model) is None
        assert tx.ledger.tick(model, clock.now)
        assert not tx.ledger.tick(model, clock.now)
        assert tx.ledger.tick(model, clock.now + timedelta(hours=1))
        assert tx.ledger.last_tick(model) == clock.now + timedelta(hours=1)


# -- paging ------------------------------------------------------------------------------------------------------------


def _walk(store, listing, convert=int):
    found, after = [], None
    while True:
        with store.reading() as tx:
            page = listing(tx, after)
        assert page.items or page.next is None
        found += page.items
        if page.next is None:
            return found
        after = convert(page.next)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_pages_are_complete_and_in_order(store, limit):
    for name in ("a-b", "a", "ab", "a1", "b"):
        make_model(store, name)
    model = make_model(store)
    for _ in range(5):
        make_version(store, model)
    names = [m.name for m in _walk(store, lambda tx, after: tx.ledger.models(after, limit), str)]
    assert names == sorted(["a-b", "a", "ab", "a1", "b", "gas"])
    down = [5, 4, 3, 2, 1]
    assert [v.number for v in _walk(store, lambda tx, after: tx.ledger.versions("gas", after, limit))] == down
    assert [v.number for v in _walk(store, lambda tx, after: tx.ledger.time_line("gas", after, limit))] == down[::-1]
    assert [c.number for c in _walk(store, lambda tx, after: tx.ledger.cycles("gas", after, limit))] == down
    moves = _walk(store, lambda tx, after: tx.ledger.alias_history("gas", CHAMPION, after, limit))
    assert [move.revision for move in moves] == down


def test_pages_stay_put_while_rows_are_added(store):
    model = make_model(store)
    for _ in range(4):
        make_version(store, model)
    with store.reading() as tx:
        first = tx.ledger.versions("gas", None, 2)
    make_version(store, model)
    with store.reading() as tx:
        second = tx.ledger.versions("gas", int(first.next), 2)
    assert [v.number for v in (*first.items, *second.items)] == [4, 3, 2, 1]
    assert second.next is None


@pytest.mark.parametrize("after", [2**31, 2**63, 10**30])
def test_keys_beyond_every_column(store, after):
    make_version(store, make_model(store))
    with store.reading() as tx:
        assert len(tx.ledger.versions("gas", after, 5).items) == 1
        assert tx.ledger.time_line("gas", after, 5).items == ()
        assert len(tx.ledger.cycles("gas", after, 5).items) == 1
        assert tx.audit.entries(None, after, 5).items == ()
        assert tx.buffer.megabatches("gas", after, 5).items == ()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_pins_what_it_starts_from(store, clock):
    model = make_model(store)
    version = make_version(store, model)
    make_cycle(store, model, through=3)
    clock.advance(5)
    claimed = claim(store, "worker-9", 30)
    assert claimed.parent == version
    assert (claimed.cycle.state, claimed.cycle.parent, claimed.cycle.through) == (CycleState.RUNNING, 1, 3)
    assert (claimed.token, claimed.worker, claimed.next_version) == (1, "worker-9", 2)
    assert claimed.generation == claimed.model.generation == 2
    assert claimed.expires_at == clock.now + timedelta(seconds=30)
    assert claimed.cycle.started_at == clock.now
    assert claimed.snapshot is None


def test_a_claim_pins_input_evaluation_set_and_pins(store):
    model = make_model(store)
    for _ in range(3):
        make_megabatch(store, model)
    for number in (1, 3):
        make_pin(store, model, number)
    with store.transaction(ACTOR) as tx:
        tx.buffer.quarantine(model, [3])
        tx.audit.append("megabatch.quarantined", model="gas")
    first, second = make_evaluation(store, model, "first"), make_evaluation(store, model, "second")
    make_cycle(store, model, through=3)
    claimed = claim(store)
    assert (first.revision, claimed.evaluation, claimed.cycle.evaluation_revision) == (1, second, 2)
    assert claimed.pinned == {1}, "what is in quarantine is not replayed, pinned or not"
    assert claimed.model.input == model.input
    with store.reading() as tx:
        assert tx.ledger.cycle("gas", 1).evaluation_revision == 2


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_cycle_keeps_what_it_pinned_and_one_that_starts_again_pins_anew(store, resumed):
    model = make_model(store)
    make_megabatch(store, model)
    make_cycle(store, model, through=1)
    first = claim(store)
    with store.transaction(ACTOR) as tx:
        if resumed:
            tx.ledger.attach_snapshot(first, digest_of("snapshot"))
        tx.ledger.release_cycle(first)
        tx.audit.append("cycle.released", model="gas")
    make_pin(store, model, 1)
    evaluation = make_evaluation(store, model)
    wider = replace(model.input, classes=("cat", "dog", "cow"))
    with store.transaction(ACTOR) as tx:
        tx.ledger.set_input(model, wider)
        tx.audit.append("model.classes-extended", model="gas")
    second = claim(store)
    pinned = (second.model.input, second.pinned, second.evaluation, second.cycle.evaluation_revision)
    if resumed:
        assert second.snapshot == digest_of("snapshot")
        assert pinned == (model.input, frozenset(), None, None)
    else:
        assert second.snapshot is None
        assert pinned == (wider, {1}, evaluation, 1)


def test_nothing_to_claim(store):
    assert claim(store) is None
    make_model(store)
    assert claim(store) is None


def test_one_cycle_of_a_model_runs_at_a_time_and_in_order(store):
    one, two = make_model(store, "one"), make_model(store, "two")
    for model in (one, one, two):
        make_cycle(store, model)
    claims = [claim(store) for _ in range(3)]
    assert [(c.model.name, c.cycle.number) for c in claims[:2]] == [("one", 1), ("two", 1)]
    assert claims[2] is None
    publish(store, claims[0])
    assert claim(store).cycle.number == 2


def test_a_paused_model_waits(store):
    model = make_model(store)
    make_cycle(store, model)
    for state, claimable in ((ModelState.PAUSED, False), (ModelState.ACTIVE, True)):
        with store.transaction(ACTOR) as tx:
            tx.ledger.set_state(model, state, "because")
            tx.audit.append("model.paused", model="gas")
        assert (claim(store) is not None) is claimable


def test_a_retry_waits_for_its_time_and_keeps_its_place(store, clock):
    model = make_model(store)
    make_cycle(store, model)
    make_cycle(store, model)
    first = claim(store)
    with store.transaction(ACTOR) as tx:
        cycle = tx.ledger.fail_cycle(first, "no memory", clock.now + timedelta(seconds=10))
        tx.audit.append("cycle.failed", model="gas")
    assert (cycle.state, cycle.failures, cycle.reason) == (CycleState.QUEUED, 1, "no memory")
    assert cycle.not_before == clock.now + timedelta(seconds=10)
    assert claim(store) is None
    clock.advance(10)
    again = claim(store)
    assert (again.cycle.number, again.token, again.cycle.failures) == (1, 2, 1)
    assert again.cycle.not_before is None


def test_a_cycle_that_failed_for_good(store, clock):
    model = make_model(store)
    make_cycle(store, model)
    with store.transaction(ACTOR) as tx:
        cycle = tx.ledger.fail_cycle(tx.ledger.claim_cycle("w", 60), "bad recipe", None)
        tx.audit.append("cycle.failed", model="gas")
    assert (cycle.state, cycle.failures, cycle.finished_at) == (CycleState.FAILED, 1, clock.now)
    assert claim(store) is None


def test_renewal_extends_the_lease_and_shows_progress(store, clock):
    make_cycle(store, make_model(store))
    claimed = claim(store)
    progress = Progress(Phase.TRAIN, 1, 3, 10, 30, 0.1 + 0.2, 0.5)
    clock.advance(50)
    with store.transaction(ACTOR) as tx:
        renewed = tx.ledger.renew(claimed, progress, 60)
    assert renewed.expires_at == clock.now + timedelta(seconds=60)
    assert renewed.cycle.progress == progress
    with store.reading() as tx:
        before = tx.ledger.held_leases()
    clock.advance(5)
    with store.transaction(ACTOR) as tx:
        tx.ledger.renew(claimed, None, 60)
    with store.reading() as tx:
        assert tx.ledger.cycle("gas", 1).progress == progress
        assert tx.ledger.activity() == (0, 1, None)
    clock.advance(3600)
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.reclaim(before) == [], "it spoke up since"


def test_workers_are_seen_alive_busy_or_not_and_forgotten_a_day_later(store, clock):
    for worker in ("one", "two", "one"):
        clock.advance(5)
        with store.transaction(ACTOR) as tx:
            tx.ledger.beat(worker)
    with store.reading() as tx:
        assert tx.ledger.activity() == (0, 0, clock.now)
    clock.advance(90_000)
    with store.transaction(ACTOR) as tx:
        tx.ledger.beat("three")
        alive = tx.ledger._connection.execute(sa.select(workers.c.name)).scalars().all()
    assert alive == ["three"]


def test_release_keeps_the_snapshot_for_the_next_worker(store):
    make_cycle(store, make_model(store))
    first = claim(store)
    snapshot = digest_of("snapshot")
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.attach_snapshot(first, snapshot).snapshot == snapshot
    with store.transaction(ACTOR) as tx:
        cycle = tx.ledger.release_cycle(first)
        tx.audit.append("cycle.released", model="gas")
        assert tx.ledger.references([snapshot]) == {snapshot}
    assert (cycle.state, cycle.failures) == (CycleState.QUEUED, 0)
    second = claim(store, "worker-2")
    assert (second.snapshot, second.token) == (snapshot, 2)
    assert second.cycle.started_at == first.cycle.started_at


def test_a_snapshot_of_other_ground_is_not_resumed(store):
    model = make_model(store)
    version = make_version(store, model)
    make_cycle(store, model)
    first = claim(store)
    with store.transaction(ACTOR) as tx:
        tx.ledger.attach_snapshot(first, digest_of("snapshot"))
        tx.ledger.release_cycle(first)
        tx.ledger.move_alias(model, CHAMPION, version.number, expected_revision=None, reason="again")
        tx.audit.append("alias.moved", model="gas")
    assert claim(store).snapshot is None


def test_a_silent_worker_loses_its_cycle(store, clock):
    make_cycle(store, make_model(store))
    first = claim(store, lease_seconds=10)
    clock.advance(10.001)
    with store.transaction(ACTOR) as tx:
        silent = tx.ledger.held_leases()
        (cycle,) = tx.ledger.reclaim(silent)
        assert tx.ledger.held_leases() == tx.ledger.reclaim(silent) == []
        tx.audit.append("cycle.reclaimed", model="gas")
    assert (cycle.state, cycle.failures) == (CycleState.QUEUED, 1)
    second = claim(store, "worker-2")
    _assert_fenced(store, first)
    assert publish(store, second).number == 1


def test_a_silent_worker_that_left_a_snapshot_did_not_fail(store, clock):
    make_cycle(store, make_model(store))
    for expected in (0, 1):  # the second time it gets no further
        claimed = claim(store, lease_seconds=10)
        if expected == 0:
            with store.transaction(ACTOR) as tx:
                tx.ledger.attach_snapshot(claimed, digest_of("snapshot"))
        clock.advance(11)
        with store.transaction(ACTOR) as tx:
            (cycle,) = tx.ledger.reclaim(tx.ledger.held_leases())
            tx.audit.append("cycle.reclaimed", model="gas")
        assert cycle.failures == expected
    assert claim(store).snapshot == digest_of("snapshot")


def test_an_abandoned_cycle_has_failed(store, clock):
    model = make_model(store)
    cycle = make_cycle(store, model)
    claimed = claim(store, lease_seconds=1)
    with pytest.raises(LeaseLost), store.transaction(ACTOR) as tx:
        tx.ledger.abandon_cycle(cycle, "it runs")
    clock.advance(2)
    with store.transaction(ACTOR) as tx:
        (cycle,) = tx.ledger.reclaim(tx.ledger.held_leases())
        cycle = tx.ledger.abandon_cycle(cycle, "it kills its workers")
        tx.audit.append("cycle.failed", model="gas")
    assert (cycle.state, cycle.reason, cycle.finished_at) == (CycleState.FAILED, "it kills its workers", clock.now)
    _assert_fenced(store, claimed)


def _assert_fenced(store, stale):
    """A claim that was lost can do nothing any more, in any way."""
    draft = version_draft(store, "stale")
    deeds = [
        lambda tx: tx.ledger.renew(stale, None, 60),
        lambda tx: tx.ledger.attach_snapshot(stale, digest_of("stale")),
        lambda tx: tx.ledger.release_cycle(stale),
        lambda tx: tx.ledger.fail_cycle(stale, "stale", None),
        lambda tx: tx.ledger.fail_cycle(stale, "stale", stale.expires_at),
        lambda tx: tx.ledger.supersede_claim(stale, "stale"),
        lambda tx: tx.ledger.publish_version(stale, draft),
    ]
    with store.reading() as tx:
        before = tx.ledger.cycle(stale.model.name, stale.cycle.number)
    for deed in deeds:
        with pytest.raises(LeaseLost), store.transaction(ACTOR) as tx:
            deed(tx)
    with store.reading() as tx:
        assert tx.ledger.cycle(stale.model.name, stale.cycle.number) == before


@pytest.mark.parametrize("end", ["publish", "fail", "retry", "release", "supersede", "supersede_all"])
def test_an_ended_claim_is_worth_nothing(store, clock, end):
    model = make_model(store)
    make_cycle(store, model)
    claimed = claim(store)
    with store.transaction(ACTOR) as tx:
        tx.audit.append("test", model="gas")
        if end == "publish":
            tx.ledger.publish_version(claimed, version_draft(store, "v"))
        elif end == "fail":
            tx.ledger.fail_cycle(claimed, "reason", None)
        elif end == "retry":
            tx.ledger.fail_cycle(claimed, "reason", clock.now)
        elif end == "release":
            tx.ledger.release_cycle(claimed)
        elif end == "supersede":
            tx.ledger.supersede_claim(claimed, "reason")
        else:
            tx.ledger.supersede_cycles(model, "reason")
    _assert_fenced(store, claimed)
    _assert_fenced(store, replace(claimed, token=claimed.token + 1))


def test_a_change_of_generation_supersedes_what_runs(store):
    model = make_model(store)
    make_version(store, model)
    make_cycle(store, model)
    claimed = claim(store)
    with store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=None, reason="the same again")
        tx.audit.append("alias.moved", model="gas")
    with pytest.raises(LeaseLost, match="changed while"), store.transaction(ACTOR) as tx:
        tx.ledger.publish_version(claimed, version_draft(store, "late"))
    with store.transaction(ACTOR) as tx:
        tx.ledger.renew(claimed, None, 60)
        cycle = tx.ledger.supersede_claim(claimed, "the champion moved")
        tx.audit.append("cycle.superseded", model="gas")
    assert (cycle.state, cycle.version) == (CycleState.SUPERSEDED, None)
    with store.reading() as tx:
        assert [v.number for v in tx.ledger.versions("gas", None, 9).items] == [1]


def test_superseding_ends_all_that_is_open(store, clock):
    model, other = make_model(store), make_model(store, "other")
    make_version(store, model)
    for each in (model, model, other):
        make_cycle(store, each)
    claim(store)
    with store.transaction(ACTOR) as tx:
        assert [c.number for c in tx.ledger.open_cycles(model)] == [2, 3]
        superseded = tx.ledger.supersede_cycles(model, "rolled back")
        tx.audit.append("cycle.superseded", model="gas")
    assert [(c.number, c.state, c.reason, c.finished_at) for c in superseded] == [
        (2, CycleState.SUPERSEDED, "rolled back", clock.now),
        (3, CycleState.SUPERSEDED, "rolled back", clock.now),
    ]
    with store.transaction(ACTOR) as tx:  # nothing is left, so nothing has to be audited
        assert tx.ledger.supersede_cycles(model, "again") == []
        assert [c.number for c in tx.ledger.open_cycles(other)] == [1]


def _claim_all(url: str, root: Path, worker: str, cycles: list, finish: bool = True) -> None:
    store = Store(url, Blobs(root))
    while (claimed := claim(store, worker)) is not None:
        cycles.append((claimed.model.name, claimed.cycle.number, claimed.next_version))
        if finish:
            publish(store, claimed)
    store.dispose()


def _claim_in_process(url: str, root: Path, worker: str, start, results) -> None:
    cycles: list = []
    start.wait()
    _claim_all(url, root, worker, cycles)
    results.put(cycles)


MODELS, EACH = 10, 5


@pytest.fixture
def fifty(store):
    for index in range(MODELS):
        model = make_model(store, f"model-{index}")
        for _ in range(EACH):
            make_cycle(store, model)
    return store


def _assert_each_once(store, found):
    assert sorted(found) == sorted((f"model-{m}", n, n) for m in range(MODELS) for n in range(1, EACH + 1))
    with store.reading() as tx:
        for index in range(MODELS):
            numbers = [version.number for version in tx.ledger.versions(f"model-{index}", None, 100).items]
            assert numbers == [5, 4, 3, 2, 1]
        assert tx.ledger.activity() == (0, 0, None)
        assert tx.audit.verify().size == MODELS * (1 + EACH * 4)


def test_threads_claim_each_cycle_once(fifty, database_url, blobs):
    found: list = []
    with ThreadPoolExecutor(4) as pool:
        for worker in range(4):
            pool.submit(_claim_all, database_url, blobs.root, f"worker-{worker}", found).add_done_callback(
                lambda done: done.result()
            )
    _claim_all(database_url, blobs.root, "last", found)  # a worker gives up while others hold every model
    _assert_each_once(fifty, found)


def test_processes_claim_each_cycle_once(fifty, database_url, blobs):
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    workers = [
        spawn.Process(target=_claim_in_process, args=(database_url, blobs.root, f"worker-{n}", start, results))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    found = [cycle for _ in workers for cycle in results.get(timeout=90)]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    _claim_all(database_url, blobs.root, "last", found)
    _assert_each_once(fifty, found)


def test_many_claims_at_once_run_one_cycle_a_model(store):
    for index in range(3):
        model = make_model(store, f"model-{index}")
        for _ in range(4):
            make_cycle(store, model)
    together = threading.Barrier(8)

    def one(worker: int):
        together.wait()
        return claim(store, f"worker-{worker}")

    with ThreadPoolExecutor(8) as pool:
        claims = [c for c in pool.map(one, range(8)) if c is not None]
    names = [c.model.name for c in claims]
    assert len(names) == len(set(names))
    assert all(c.cycle.number == 1 for c in claims)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_a_version_comes_back_as_it_was_published(store, clock):
    model = make_model(store)
    make_cycle(store, model)
    claimed = claim(store)
    draft = version_draft(store, "first")
    clock.advance(1)
    with store.transaction(ACTOR) as tx:
        version = tx.ledger.publish_version(claimed, draft)
        tx.audit.append("version.published", model="gas")
    with store.reading() as tx:
        assert tx.ledger.version("gas", 1) == version
        cycle = tx.ledger.cycle("gas", 1)
        assert tx.ledger.manifest("gas", 1) == draft.manifest
        assert tx.ledger.summary(model, 1) == summary_of(version)
        assert tx.ledger.time_line("gas", None, 9).items == (summary_of(version),)
    kept = set(draft.__slots__) - {"manifest", "uses"}
    assert {name: getattr(version, name) for name in kept} == {name: getattr(draft, name) for name in kept}
    assert version.metrics["validation_accuracy"] == 0.1 + 0.2
    assert (version.number, version.parent, version.cycle, version.created_at) == (1, None, 1, clock.now)
    assert (version.recipe_digest, version.recipe_revision) == (model.recipe_digest, 1)
    assert (cycle.state, cycle.version, cycle.finished_at) == (CycleState.PUBLISHED, 1, clock.now)


def summary_of(version: Version) -> VersionSummary:
    return VersionSummary(**{field.name: getattr(version, field.name) for field in fields(VersionSummary)})


def test_numbers_that_json_cannot_hold_are_refused(store):
    make_cycle(store, make_model(store))
    claimed = claim(store)
    draft = replace(version_draft(store, "v"), metrics={"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"), store.transaction(ACTOR) as tx:
        tx.ledger.publish_version(claimed, draft)


def test_version_numbers_are_contiguous_whatever_the_verdict(store):
    model = make_model(store)
    numbers = [make_version(store, model, passed=passed).number for passed in (True, False, False, True)]
    assert numbers == [1, 2, 3, 4]
    with store.reading() as tx:
        assert [v.parent for v in tx.ledger.time_line("gas", None, 9).items] == [None, 1, 1, 1]
        assert tx.ledger.cycle("gas", 2).state == CycleState.WITHHELD
        assert tx.ledger.version("gas", 2).status == VersionStatus.WITHHELD


def test_only_initial_weights_make_version_zero(store):
    model = make_model(store)
    assert make_version(store, model, trigger=CycleTrigger.INITIAL_WEIGHTS).number == 0
    assert make_version(store, model, trigger=CycleTrigger.INITIAL_WEIGHTS).number == 1
    assert make_version(store, make_model(store, "other")).number == 1
    with store.reading() as tx:
        assert tx.ledger.version("gas", "0").number == 0
        assert numbers_of(tx.ledger.ancestry("gas", 1, 9)) == [1, 0]


def test_references_by_number_and_name(store):
    model = make_model(store)
    with store.reading() as tx:
        for ref in ("latest", CHAMPION, "1", 1):
            with pytest.raises(UnknownVersion):
                tx.ledger.version("gas", ref)
    for passed in (True, True, False):
        make_version(store, model, passed=passed, champion=passed)
    with store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=2, reason="back")
        tx.audit.append("alias.moved", model="gas")
    with store.reading() as tx:
        assert [tx.ledger.version("gas", ref).number for ref in ("3", 3, CHAMPION, "latest")] == [3, 3, 1, 2]
        for ref in ("4", -1, "-1", "no", "", "²", "1\x00", "9" * 30, 10**30, "1.0", "9" * 5000):
            with pytest.raises(UnknownVersion):
                tx.ledger.version("gas", ref)
        with pytest.raises(UnknownModel):
            tx.ledger.version("no", 1)
        for number in (0, 4, -1, 2**31, 10**30):
            with pytest.raises(UnknownCycle):
                tx.ledger.cycle("gas", number)


def test_ancestry_follows_parents_not_numbers(store):
    model = make_model(store)
    for _ in range(3):
        make_version(store, model)
    with store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=None, reason="rollback")
        tx.audit.append("alias.moved", model="gas")
    make_version(store, model)
    with store.reading() as tx:
        assert numbers_of(tx.ledger.ancestry("gas", 4, 9)) == [4, 1]
        assert numbers_of(tx.ledger.ancestry("gas", 3, 9)) == [3, 2, 1]
        assert [v.number for v in tx.ledger.ancestors(model, 3)] == [3, 2, 1]
        with pytest.raises(UnknownVersion):
            tx.ledger.ancestry("gas", 5, 9)


def numbers_of(page: Page[Version]) -> list[int]:
    assert page.next is None
    return [version.number for version in page.items]


def test_an_ancestry_is_read_page_by_page(store, monkeypatch):
    monkeypatch.setattr(releases, "_STEPS", 2)
    model = make_model(store)
    for _ in range(5):
        make_version(store, model)
    with store.reading() as tx:
        first = tx.ledger.ancestry("gas", 5, 2)
        assert ([v.number for v in first.items], first.next) == ([5, 4], "3")
        assert numbers_of(tx.ledger.ancestry("gas", 3, 3)) == [3, 2, 1]
        line = list(tx.ledger.ancestors(model, 5))
        assert line == [summary_of(tx.ledger.version("gas", number)) for number in (5, 4, 3, 2, 1)]


def withhold(store, model, verdict: Verdict) -> int:
    """A version that this verdict kept back."""
    make_cycle(store, model)
    claimed = claim(store)
    draft = replace(version_draft(store, f"{claimed.next_version}", passed=False), verdict=verdict)
    with store.transaction(ACTOR) as tx:
        version = tx.ledger.publish_version(claimed, draft)
        tx.audit.append("version.withheld", model=model.name)
    assert version.verdict == verdict
    return version.number


def test_what_holds_pruning_is_the_newest_withheld_version_that_left_this_champion(store):
    model, other = make_model(store), make_model(store, "other")

    def held_since(champion: int | None) -> int | None:
        with store.reading() as tx:
            found = tx.ledger.held_since(model, champion)
            assert tx.ledger.held_since(other, champion) is None
        return found.number if found else None

    assert held_since(None) is None
    first = withhold(store, model, Verdict(False, ("low",), "hold"))
    assert held_since(None) == first
    champion = make_version(store, model).number
    assert held_since(champion) is None, "a hold of before is in the history that was published"
    withhold(store, model, Verdict(False, ("low",), "withhold"))
    withhold(store, model, Verdict(False, ("low",), "retry"))
    assert held_since(champion) is None
    hold = withhold(store, model, Verdict(False, ("low",), "hold"))
    newer = withhold(store, model, Verdict(False, ("low",), "restore"))
    assert held_since(champion) == newer > hold
    second = make_version(store, model).number
    back = withhold(store, model, Verdict(False, ("low",), "restore", champion))
    assert held_since(champion) == back, "it moved the champion back to this one"
    assert held_since(second) is None


def test_a_verdict_of_before_there_were_actions(store):
    make_version(store, make_model(store))
    with store.transaction(ACTOR) as tx:
        tx.ledger._connection.execute(sa.update(versions).values(verdict={"passed": False, "reasons": ["low"]}))
        tx.audit.append("version.withheld", model="gas")
    with store.reading() as tx:
        assert tx.ledger.version("gas", 1).verdict == Verdict(False, ("low",), "", None)
        assert tx.ledger.held_since(tx.ledger.model("gas"), None) is None


def test_attempts_know_the_one_before_and_the_last_megabatch_that_was_covered(store):
    model = make_model(store)
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.covered(model) == 0
        first, other, again = (
            tx.ledger.enqueue_cycle(model, CycleTrigger.GUARDRAIL, through, attempt=attempt)
            for through, attempt in ((1, 0), (2, 0), (1, 1))
        )
        tx.audit.append("cycle.requested", model="gas")
    assert (first.attempt, again.attempt) == (0, 1)
    with store.reading() as tx:
        assert tx.ledger.attempt_before(again) == first
        assert tx.ledger.attempt_before(first) is None and tx.ledger.attempt_before(other) is None
        assert tx.ledger.covered(model) == 2, "the newest cycle is not the one that reaches furthest"


# -- aliases -----------------------------------------------------------------------------------------------------------


def test_an_alias_remembers_every_move(store, clock):
    model = make_model(store)
    times = []
    for _ in range(2):
        make_version(store, model)
        times.append(clock.now)
        clock.advance(60)
    with store.transaction(ACTOR) as tx:
        alias = tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=2, reason="line 3 was miscalibrated")
        tx.audit.append("alias.moved", model="gas")
    assert (alias.version, alias.revision, alias.moved_at) == (1, 3, clock.now)
    with store.reading() as tx:
        assert tx.ledger.alias("gas", CHAMPION) == alias
        newest = tx.ledger.alias_history("gas", CHAMPION, None, 1).items[0]
        assert (newest.previous, newest.version, newest.actor, newest.reason) == (
            2,
            1,
            "tester",
            "line 3 was miscalibrated",
        )
        at = [
            tx.ledger.alias_at("gas", CHAMPION, t).version
            for t in (*times, times[1] + timedelta(seconds=59), clock.now)
        ]
        assert at == [1, 2, 2, 1]
        with pytest.raises(UnknownAlias):
            tx.ledger.alias_at("gas", CHAMPION, times[0] - timedelta(microseconds=1))


def test_the_times_of_moves_never_go_back(store, clock):
    """Else an alias would have pointed to two versions at one time."""
    model = make_model(store)
    make_version(store, model)
    noon = clock.now
    clock.advance(-3600)
    make_version(store, model)
    with store.reading() as tx:
        assert tx.ledger.alias("gas", CHAMPION).moved_at == noon
        assert tx.ledger.alias_at("gas", CHAMPION, noon).version == 2
        with pytest.raises(UnknownAlias):
            tx.ledger.alias_at("gas", CHAMPION, clock.now)


def test_a_queue_of_one_busy_model_holds_up_no_other(store):
    """Its cycles fill more than the head of the queue, which is all that is looked at first."""
    busy, idle = make_model(store), make_model(store, "idle")
    for _ in range(ledger._HEAD + 5):
        make_cycle(store, busy)
    assert claim(store).model.name == "gas"
    make_cycle(store, idle)
    assert claim(store).model.name == "idle"
    assert claim(store) is None
    with store.reading() as tx:
        waiting, running = tx.ledger.queue(busy)
    assert (waiting, running.number) == (ledger._HEAD + 4, 1)


def test_a_move_compares_revisions(store):
    model = make_model(store)
    make_version(store, model)
    for stale in (0, 2, -1):
        with pytest.raises(AliasMoved), store.transaction(ACTOR) as tx:
            tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=stale, reason="late")
    with store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, "canary", 1, expected_revision=0, reason="first")
        tx.audit.append("alias.moved", model="gas")


def test_of_two_moves_at_once_one_wins(store):
    model = make_model(store)
    make_version(store, model)
    together = threading.Barrier(2)

    def move(_):
        together.wait()
        try:
            with store.transaction(ACTOR) as tx:
                tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=1, reason="race")
                tx.audit.append("alias.moved", model="gas")
        except AliasMoved:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(move, range(2))) == [False, True]


@pytest.mark.parametrize("name", ["latest", "1", "007", "", "Champion", "a\x00"])
def test_names_that_no_alias_can_have(store, name):
    model = make_model(store)
    make_version(store, model)
    with pytest.raises(InvalidName), store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, name, 1, expected_revision=None, reason="why not")
    with store.reading() as tx, pytest.raises(UnknownAlias):
        tx.ledger.alias("gas", name)


def test_an_alias_points_to_a_version_that_is_there(store):
    model = make_model(store)
    with pytest.raises(UnknownVersion), store.transaction(ACTOR) as tx:
        tx.ledger.move_alias(model, CHAMPION, 1, expected_revision=None, reason="early")


# -- references --------------------------------------------------------------------------------------------------------


def test_every_blob_that_a_row_names_is_referenced(store):
    weights = digest_of("initial weights")
    model = make_model(store, recipe={"initial_weights": weights})
    megabatch = make_megabatch(store, model)
    older, newer = make_evaluation(store, model, "older"), make_evaluation(store, model, "newer")
    version = make_version(store, model)
    make_cycle(store, model)
    claimed = claim(store)
    with store.transaction(ACTOR) as tx:
        tx.ledger.attach_snapshot(claimed, digest_of("snapshot"))
    named = {weights, version.checkpoint, version.state, digest_of("snapshot")}
    named |= {digest for found in (megabatch, older, newer) for digest in (found.x, found.y, found.ids)}
    others = [digest_of(str(n)) for n in range(1200)]
    with store.reading() as tx:
        assert tx.ledger.references([*others[:600], *named, *others[600:]]) == named
        assert tx.ledger.references(others) == set()
        assert tx.ledger.references([]) == set()
