"""Erasure: what goes, everywhere, and what follows for versions, cycles, uploads and the log."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import crash
from app.config import Settings
from app.domain import Cycle, CycleState, MegabatchStatus
from app.errors import EvaluationEmptied, MegabatchErased, StoreBusy, UnknownMegabatch, UnknownModel
from app.service import backup, custody, erasure, evaluation, history, ingest, megabatches, removal
from app.service.erasure import Asked, Erased
from app.service.state import state_of
from app.store.blobs import Blobs
from app.store.database import Store
from espalier.formats.megabatch import encode, example_ids
from tests.builders import make_megabatch, make_model
from tests.custody import FRESH, make_recorded
from tests.service.conftest import ACTOR, LIMITS, RECIPE, House, blob_of_examples

FULL = {**RECIPE, "replay": {"name": "full"}}
Arrays = tuple[np.ndarray, np.ndarray]


def erase(house: House, *numbers: int, name: str = "gas", **asked: Any) -> Erased:
    wanted = Asked(megabatches=numbers, **asked)
    return erasure.erase(house.store, name, wanted, reason="consent was withdrawn", actor=ACTOR)


def preview(house: House, *numbers: int, **asked: Any) -> Erased:
    return erasure.preview(house.store, "gas", Asked(megabatches=numbers, **asked))


def upload(house: House, *seeds: int, name: str = "gas") -> None:
    for seed in seeds:
        house.upload(name, seed=seed)


def put_evaluation(house: House, arrays: Arrays) -> None:
    with house.store.blobs.receiver(LIMITS.max_bytes) as receiver:
        receiver.write(encode(*arrays))
        evaluation.set_evaluation(house.store, "gas", receiver.finish(), limits=LIMITS, actor=ACTOR)


def files_with(folder: Path, values: np.ndarray) -> list[Path]:
    """Files that hold the bytes of any row of these values."""
    rows = [np.ascontiguousarray(row).tobytes() for row in values]
    every = [path for path in folder.rglob("*") if path.is_file()]
    assert every
    return [path for path in every if any(row in path.read_bytes() for row in rows)]


def entries(house: House, kind: str, name: str | None = "gas") -> list[dict[str, Any]]:
    with house.store.reading() as tx:
        return [entry.document for entry in tx.audit.entries(name, None, 1000, kind).items]


def head(house: House) -> int:
    with house.store.reading() as tx:
        return tx.audit.head().size


def trained(house: House, number: int) -> list[int]:
    (found,) = [e for e in entries(house, "version.published") if e["parameters"]["version"] == number]
    megabatches: list[int] = found["parameters"]["megabatches"]
    return megabatches


def whole(house: House) -> None:
    assert history.examine(house.store) == []


def next_cycle(house: House) -> Cycle:
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED, ended
    return ended


# -- values ------------------------------------------------------------------------------------------------------------


def test_no_byte_of_an_erased_megabatch_is_left_and_a_tombstone_is(house: House, tmp_path: Path) -> None:
    house.create("gas", FULL)
    house.grow(3)
    x, _ = blob_of_examples(2)
    before, _ = ingest.get_megabatch(house.store, "gas", 2)
    assert files_with(tmp_path, x), "they can be found while they are there"
    done = erase(house, 2)
    assert [(gone.megabatch, gone.erased, gone.left) for gone in done.megabatches] == [(2, 120, 0)]
    assert files_with(tmp_path, x) == []
    after, _ = ingest.get_megabatch(house.store, "gas", 2)
    assert (after.number, after.digest, after.examples, after.bytes, after.received_at) == (
        before.number,
        before.digest,
        before.examples,
        before.bytes,
        before.received_at,
    )
    assert (after.status, after.histogram) == (MegabatchStatus.ERASED, (0, 0, 0))
    assert after.erased_at is not None
    whole(house)


def test_the_log_says_what_went_and_who_had_seen_it_and_holds_no_values(house: House) -> None:
    house.create("gas", FULL)
    house.grow(3)
    x, _ = blob_of_examples(2)
    erase(house, 2)
    (entry,) = entries(house, "megabatch.erased")
    about = entry["parameters"]
    assert (about["megabatch"], about["examples"], about["versions"]) == (2, 120, [2, 3])
    assert entry["reason"] == "consent was withdrawn"
    (removed,) = entries(house, "data.erased", None)
    assert set(removed["inputs"]) <= set(entry["inputs"])
    with house.store.reading() as tx:
        text = json.dumps([found.document for found in tx.audit.entries(None, None, 1000).items])
    assert not [value for value in np.unique(x) if repr(float(value)) in text or str(value) in text]
    history.verify_log(house.store)


def test_erased_again_nothing_is_changed_and_it_says_so(house: House) -> None:
    house.create()
    house.grow(2)
    erase(house, 1)
    size = head(house)
    again = erase(house, 1)
    assert (again.megabatches, again.already, again.versions) == ((), (1,), (1, 2))
    assert (again.superseded, again.queued, head(house)) == ((), None, size)


def test_single_examples_go_from_wherever_they_are(house: House, tmp_path: Path) -> None:
    house.create("gas", FULL)
    x, y = blob_of_examples(1)
    other, labels = blob_of_examples(2)
    other[5] = x[7]  # the same example twice, in two megabatches
    labels[5] = y[7]
    house.upload(x=x, y=y)
    house.upload(x=other, y=labels)
    next_cycle(house)
    ids = example_ids(x)
    chosen = (int(ids[7]), int(ids[8]), int(ids[9]), int(ids[50]))
    done = erase(house, samples=(*chosen, 12345))
    assert [(gone.megabatch, gone.erased, gone.left) for gone in done.megabatches] == [(1, 4, 116), (2, 1, 119)]
    assert (done.absent, done.versions) == ((12345,), (1,))
    assert files_with(tmp_path, x[[7, 8, 9, 50]]) == []
    assert files_with(tmp_path, x[[6, 10]]), "the others stay"
    first, second = entries(house, "samples.erased")
    assert first["parameters"]["rows"] == [[7, 9], [50, 50]]
    assert second["parameters"]["rows"] == [[5, 5]]
    found, _ = ingest.get_megabatch(house.store, "gas", 1)
    assert (found.status, found.examples) == (MegabatchStatus.ACCEPTED, 116)
    assert np.array_equal(np.load(house.store.blobs.path(found.x)), np.delete(x, [7, 8, 9, 50], axis=0))
    assert sum(found.histogram) == 116
    again = erase(house, samples=chosen)
    assert (again.megabatches, sorted(again.absent)) == ((), sorted(chosen))
    house.upload(seed=3)
    next_cycle(house)
    assert trained(house, 2) == [1, 2], "what is left of the first is replayed"
    whole(house)


def test_where_every_example_goes_the_megabatch_goes(house: House) -> None:
    house.create()
    upload(house, 1, 2)
    ids = tuple(map(int, example_ids(blob_of_examples(1)[0])))
    half = len(ids) // 2
    erase(house, samples=ids[:half])
    done = erase(house, samples=ids[half:])
    assert [(gone.megabatch, gone.left) for gone in done.megabatches] == [(1, 0)]
    assert ingest.get_megabatch(house.store, "gas", 1)[0].status is MegabatchStatus.ERASED
    whole(house)


def test_shared_bytes_stay_while_another_row_names_them(house: House, tmp_path: Path) -> None:
    house.create()
    house.create("wine")
    x, _ = blob_of_examples(1)
    upload(house, 1)
    upload(house, 1, name="wine")
    done = erase(house, 1)
    found, _ = ingest.get_megabatch(house.store, "wine", 1)
    assert sorted(done.shared) == sorted((found.x, found.y, found.ids))
    assert files_with(tmp_path, x)
    whole(house)
    assert house.cycle() is not None, "the other model trains on them"
    done = erase(house, 1, name="wine")
    assert done.shared == ()
    assert files_with(tmp_path, x) == []


def test_snapshots_of_open_cycles_go_too(house: House) -> None:
    house.create()
    upload(house, 1)
    with house.store.transaction(ACTOR) as tx:
        claim = tx.ledger.claim_cycle("worker-1", 60)
        assert claim is not None
        snapshot = house.store.blobs.put(b"what a worker would go on from")
        tx.ledger.attach_snapshot(claim, snapshot)
        tx.audit.append("cycle.started", model="gas")
    erase(house, 1)
    assert not house.store.blobs.has(snapshot)
    assert entries(house, "megabatch.erased")[0]["parameters"]["snapshots"] == 1


def test_a_backup_made_afterwards_holds_none_of_it(house: House, database_url: str, tmp_path: Path) -> None:
    house.create()
    upload(house, 1, 2)
    x, _ = blob_of_examples(1)
    erase(house, 1)
    settings = Settings(data_dir=tmp_path / "data", database_url=database_url)
    made = backup.back_up(house.store, settings, tmp_path / "copy", progress=lambda done, of: None)
    assert (made.missing, files_with(tmp_path / "copy", x)) == ((), [])
    assert files_with(tmp_path / "copy", blob_of_examples(2)[0])


# -- uploads -----------------------------------------------------------------------------------------------------------


def test_the_same_content_again_is_refused(house: House, tmp_path: Path) -> None:
    house.create()
    upload(house, 1, 2)
    erase(house, 1)
    size = head(house)
    with pytest.raises(MegabatchErased, match="erased for good"):
        house.upload(seed=1)
    erase(house, samples=(int(example_ids(blob_of_examples(2)[0])[0]),))
    with pytest.raises(MegabatchErased, match="single examples"):
        house.upload(seed=2)
    assert files_with(tmp_path, blob_of_examples(1)[0]) == []
    assert size < head(house)


def test_uploads_of_the_same_content_race_with_its_erasure(house: House, tmp_path: Path) -> None:
    house.create()
    x, y = blob_of_examples(1)
    data = encode(x, y)
    names = [f"other-{number}" for number in range(2)]
    for name in names:
        house.create(name)
    house.upload_bytes(data)
    refused: list[str] = []
    start = threading.Barrier(len(names) + 2)

    def send(name: str) -> None:
        start.wait(30)
        try:
            house.upload_bytes(data, name)
        except StoreBusy:
            refused.append(name)

    def again() -> None:
        start.wait(30)
        for _ in range(2):
            try:
                house.upload_bytes(data)
            except MegabatchErased:
                refused.append("gas")

    threads = [threading.Thread(target=send, args=(name,)) for name in names] + [threading.Thread(target=again)]
    for thread in threads:
        thread.start()
    start.wait(30)
    erase(house, 1)
    for thread in threads:
        thread.join(60)
    whole(house)
    taken = [name for name in names if name not in refused]
    for name in taken:
        erase(house, 1, name=name)
    removal.sweep_erased(house.store, ACTOR)
    assert files_with(tmp_path, x) == []
    whole(house)


# -- versions and cycles -----------------------------------------------------------------------------------------------


def test_without_a_retraining_the_champion_stays_and_the_next_cycle_leaves_it_out(house: House) -> None:
    house.create("gas", FULL)
    house.grow(3)
    done = erase(house, 2)
    assert (done.versions, dict(done.aliases), done.clean, done.champion) == ((2, 3), {"champion": 3}, 1, None)
    assert house.champion().number == 3
    house.upload(seed=4)
    next_cycle(house)
    assert trained(house, 4) == [1, 3, 4]


def test_heirs_that_never_looked_at_it_are_listed_too(house: House) -> None:
    house.create("gas", {**RECIPE, "replay": {"name": "none"}})
    house.grow(4)
    assert erase(house, 2).versions == (2, 3, 4)


def test_a_retraining_begins_at_the_last_clean_ancestor(house: House) -> None:
    house.create("gas", FULL)
    house.grow(3)
    upload(house, 4)
    done = erase(house, 2, retrain=True)
    assert done.champion is not None
    assert (done.clean, done.champion.version, done.anew) == (1, 1, False)
    assert [cycle.number for cycle in done.superseded] == [4]
    assert done.queued is not None
    (replaced,) = [e for e in entries(house, "cycle.superseded") if e["parameters"]["cycle"] == 4]
    assert replaced["parameters"]["replaced_by"] == done.queued.number
    assert house.champion().number == 1
    next_cycle(house)
    champion = house.champion()
    assert (champion.number, champion.parent) == (4, 1)
    assert trained(house, 4) == [1, 3, 4]
    assert 2 not in state_of(house.store.blobs, champion).seen
    size = head(house)
    again = erase(house, 2, retrain=True)
    assert (again.champion, again.queued, again.clean, head(house)) == (None, None, 4, size)
    whole(house)


def test_a_retraining_can_be_asked_for_afterwards(house: House) -> None:
    house.create("gas", FULL)
    house.grow(3)
    erase(house, 3)
    assert house.champion().number == 3
    done = erase(house, 3, retrain=True)
    assert (done.already, done.megabatches, house.champion().number) == ((3,), (), 2)
    assert done.queued is None, "the clean ancestor has seen all that is left"


def test_what_was_erased_before_or_is_in_quarantine_is_not_gone_back_to(house: House) -> None:
    house.create("gas", FULL)
    house.grow(4)
    erase(house, 2)
    megabatches.quarantine_megabatch(house.store, "gas", 3, reason="odd", actor=ACTOR)
    done = erase(house, 4, retrain=True)
    assert done.clean == 1, "2 and 3 took in what is erased, or in quarantine"


def test_where_no_ancestor_is_clean_the_next_cycle_begins_afresh(house: House) -> None:
    house.create("gas", FULL)
    house.grow(2)
    done = erase(house, 1, retrain=True)
    assert (done.clean, done.champion, done.anew) == (None, None, True)
    assert house.champion().number == 2, "clients go on until there is another one"
    assert done.queued is not None
    assert len(entries(house, "model.begins-anew")) == 1
    next_cycle(house)
    champion = house.champion()
    assert (champion.number, champion.parent, champion.stage) == (3, None, 1)
    assert trained(house, 3) == [2]


def test_a_cycle_that_runs_ends_superseded(house: House) -> None:
    slow = {**RECIPE, "training": {**RECIPE["training"], "epochs": 5_000}}
    house.create("gas", slow)
    upload(house, 1)
    ended: list[Cycle | None] = []
    worker = threading.Thread(target=lambda: ended.append(house.cycle()))
    worker.start()
    for _ in range(1000):
        with house.store.reading() as tx:
            if tx.ledger.queue(tx.ledger.model("gas"))[1] is not None:
                break
        threading.Event().wait(0.02)
    done = erase(house, 1)
    house.running.renew(house.store, house.settings)  # as the heartbeat does
    worker.join(120)
    assert [cycle.state for cycle in done.superseded] == [CycleState.SUPERSEDED]
    (cycle,) = ended
    assert cycle is not None and cycle.state is CycleState.SUPERSEDED
    assert "version.published" not in house.kinds()
    whole(house)


def test_versions_say_which_of_their_samples_were_erased(store: Store) -> None:
    model = make_model(store)
    for _ in range(2):
        make_megabatch(store, model)
    make_recorded(store, model, {1: {11: FRESH}, 2: {21: FRESH}})
    erasure.erase(store, model.name, Asked(megabatches=(2,)), reason="consent", actor=ACTOR)
    page = custody.samples_of(store, model.name, "1", lineage=False, megabatch=None, use=0, after=None, limit=9)
    assert [(sample.megabatch, sample.erased) for sample in page.items] == [(1, False), (2, True)]


# -- the evaluation set ------------------------------------------------------------------------------------------------


def test_examples_go_from_the_evaluation_set_which_becomes_another_revision(house: House, tmp_path: Path) -> None:
    house.create()
    upload(house, 1)
    x, y = blob_of_examples(9, n=30)
    put_evaluation(house, (x, y))
    put_evaluation(house, (x[:20], y[:20]))
    ids = example_ids(x)
    done = erase(house, samples=(int(ids[3]), int(ids[25])))
    assert (done.megabatches, done.evaluation, done.versions) == ((), 1, ())
    found = evaluation.get_evaluation(house.store, "gas").found
    assert (found.revision, found.examples) == (3, 19)
    first, second = entries(house, "evaluation.erased")
    assert (first["parameters"]["revision"], first["parameters"]["examples_after"]) == (1, 28)
    assert (second["parameters"]["revision"], second["parameters"]["replaced_by"]) == (2, 3)
    assert files_with(tmp_path, x[[3, 25]]) == []
    next_cycle(house)
    whole(house)


def test_overlap_with_the_evaluation_set_is_counted_anew(house: House) -> None:
    house.create()
    x, y = blob_of_examples(1)
    house.upload(x=x, y=y)
    put_evaluation(house, (x[:10], y[:10]))
    assert ingest.get_megabatch(house.store, "gas", 1)[0].evaluation_overlap == 10
    erase(house, samples=tuple(map(int, example_ids(x)[:4])))
    assert ingest.get_megabatch(house.store, "gas", 1)[0].evaluation_overlap == 6


@pytest.mark.parametrize("only_look", [True, False])
def test_the_last_evaluation_examples_are_not_erased(house: House, only_look: bool) -> None:
    house.create()
    upload(house, 1)
    x, y = blob_of_examples(9, n=6)
    put_evaluation(house, (x, y))
    size = head(house)
    ids = tuple(map(int, example_ids(x)))
    with pytest.raises(EvaluationEmptied, match=r"send another one to PUT /v1/models/gas/evaluation-set"):
        (preview if only_look else erase)(house, samples=ids)
    assert head(house) == size
    assert evaluation.get_evaluation(house.store, "gas").found.examples == 6


# -- looking, and being killed -----------------------------------------------------------------------------------------


def test_a_preview_says_the_same_and_changes_nothing(house: House, tmp_path: Path) -> None:
    house.create("gas", FULL)
    house.grow(3)
    upload(house, 4)
    with house.store.reading() as tx:
        size, model = tx.audit.head().size, tx.ledger.model("gas")
    stored = sorted(found.digest for found in house.store.blobs.stored())
    sample = int(example_ids(blob_of_examples(1)[0])[0])
    told = preview(house, 2, samples=(sample,), retrain=True)
    with house.store.reading() as tx:
        assert (tx.audit.head().size, tx.ledger.model("gas")) == (size, model)
    assert sorted(found.digest for found in house.store.blobs.stored()) == stored
    done = erase(house, 2, samples=(sample,), retrain=True)
    for name in ("megabatches", "evaluation", "absent", "already", "versions", "aliases", "clean", "anew"):
        assert getattr(told, name) == getattr(done, name), name
    assert [cycle.number for cycle in told.superseded] == [cycle.number for cycle in done.superseded] == [4]


def test_what_is_not_there_is_named_and_changes_nothing(house: House) -> None:
    house.create()
    upload(house, 1)
    size = head(house)
    with pytest.raises(UnknownMegabatch, match="no megabatch 7"):
        erase(house, 1, 7)
    with pytest.raises(UnknownModel, match="nowhere"):
        erase(house, 1, name="nowhere")
    assert (head(house), ingest.get_megabatch(house.store, "gas", 1)[0].erased_at) == (size, None)


def _erase_and_die(url: str, folder: Path, point: str) -> None:
    crash._AT, crash._LEFT = point, 1
    store = Store(url, Blobs(folder))
    erasure.erase(store, "gas", Asked(megabatches=(1,)), reason="consent", actor=ACTOR)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["erasure.marked", "sweep.removing", "sweep.removed", "transaction.logged"])
def test_killed_anywhere_it_is_done_or_not_and_the_sweep_ends_it(
    house: House, database_url: str, tmp_path: Path, point: str
) -> None:
    house.create()
    upload(house, 1, 2)
    x, _ = blob_of_examples(1)
    child = multiprocessing.get_context("spawn").Process(
        target=_erase_and_die, args=(database_url, tmp_path / "data", point)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    status = ingest.get_megabatch(house.store, "gas", 1)[0].status
    left = [finding.kind for finding in history.examine(house.store)]
    if point == "transaction.logged":
        assert (status, left) == (MegabatchStatus.ACCEPTED, [])
        erase(house, 1)
    else:
        assert status is MegabatchStatus.ERASED
        assert set(left) == {"erased"}, "the doctor names what is there still"
        assert removal.sweep_erased(house.store, ACTOR) > 0
    assert files_with(tmp_path, x) == []
    assert removal.sweep_erased(house.store, ACTOR) == 0
    whole(house)


def test_a_disk_that_fails_leaves_it_to_the_sweep(house: House) -> None:
    house.create()
    upload(house, 1)
    found, _ = ingest.get_megabatch(house.store, "gas", 1)
    path = house.store.blobs.path(found.x)
    path.unlink()
    path.mkdir()  # nobody can unlink that, not even the superuser
    assert erase(house, 1).pending
    assert ingest.get_megabatch(house.store, "gas", 1)[0].status is MegabatchStatus.ERASED
    path.rmdir()
    path.write_bytes(b"whatever was there")
    assert {finding.kind for finding in history.examine(house.store)} == {"erased"}
    assert removal.sweep_erased(house.store, ACTOR) > 0
    assert not path.exists()
    whole(house)


# -- megabatches that are gone -----------------------------------------------------------------------------------------


def test_a_tombstone_is_not_pinned_nor_quarantined_nor_released(house: House) -> None:
    house.create()
    upload(house, 1)
    erase(house, 1)
    about: dict[str, Any] = {"reason": "why", "actor": ACTOR}
    for attempt in (
        lambda: megabatches.pin_megabatch(house.store, "gas", 1, pinned=True, **about),
        lambda: megabatches.quarantine_megabatch(house.store, "gas", 1, **about),
        lambda: megabatches.release_megabatch(house.store, "gas", 1, **about),
    ):
        with pytest.raises(MegabatchErased, match="nothing of it is there"):
            attempt()


def _numbers(found: Iterable[Cycle]) -> list[int]:
    return [cycle.number for cycle in found]


def test_a_quarantine_supersedes_what_is_open_and_a_release_makes_it_eligible_again(house: House) -> None:
    house.create("gas", FULL)
    house.grow(2)
    upload(house, 3)
    with house.store.reading() as tx:
        generation = tx.ledger.model("gas").generation
    done = megabatches.quarantine_megabatch(house.store, "gas", 1, reason="line 3", actor=ACTOR)
    assert done.megabatch.status is MegabatchStatus.QUARANTINED
    assert (_numbers(done.superseded), done.queued and done.queued.number) == ([3], 4)
    with house.store.reading() as tx:
        assert tx.ledger.model("gas").generation == generation + 1
    again = megabatches.quarantine_megabatch(house.store, "gas", 1, reason="line 3", actor=ACTOR)
    assert (again.superseded, again.queued) == ((), None)
    (entry,) = entries(house, "megabatch.quarantined")
    assert (entry["reason"], entry["parameters"]["megabatch"]) == ("line 3", 1)
    next_cycle(house)
    assert trained(house, 3) == [2, 3]
    freed = megabatches.release_megabatch(house.store, "gas", 1, reason="it was right", actor=ACTOR)
    assert (freed.megabatch.status, freed.superseded, freed.queued) == (MegabatchStatus.ACCEPTED, (), None)
    megabatches.release_megabatch(house.store, "gas", 1, reason="it was right", actor=ACTOR)
    (entry,) = entries(house, "megabatch.released")
    assert (entry["reason"], entry["parameters"]["megabatch"]) == ("it was right", 1)
    with house.store.reading() as tx:
        assert tx.ledger.model("gas").generation == generation + 3  # and version 3 became the champion
    whole(house)


def test_released_before_any_version_saw_it_the_next_cycle_takes_it_in(house: House) -> None:
    house.create()
    upload(house, 1)
    done = megabatches.quarantine_megabatch(house.store, "gas", 1, reason="odd", actor=ACTOR)
    assert (_numbers(done.superseded), done.queued) == ([1], None), "nothing is left to train on"
    upload(house, 2)
    next_cycle(house)
    assert trained(house, 1) == [2]
    megabatches.release_megabatch(house.store, "gas", 1, reason="fine", actor=ACTOR)
    upload(house, 3)
    next_cycle(house)
    assert {1, 3} <= set(trained(house, 2))


def test_a_quarantined_megabatch_can_be_erased(house: House, tmp_path: Path) -> None:
    house.create()
    upload(house, 1)
    megabatches.quarantine_megabatch(house.store, "gas", 1, reason="odd", actor=ACTOR)
    erase(house, 1)
    assert entries(house, "megabatch.erased")[0]["parameters"]["status_before"] == "quarantined"
    assert files_with(tmp_path, blob_of_examples(1)[0]) == []
