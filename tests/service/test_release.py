import numpy as np
import pytest
from safetensors.numpy import load

from app.domain import Actor, CycleState, CycleTrigger, MegabatchStatus, Progress
from app.errors import (
    AliasMoved,
    CorruptBlob,
    NotAnAncestor,
    PreconditionMissing,
    ProposalClosed,
    UnknownAlias,
    UnknownMegabatch,
    UnknownVersion,
)
from app.service import cycles, history, ingest, promotion, release
from app.service.lease import Running
from espalier.formats import checkpoint
from tests.service.conftest import ACTOR, House


def roll_back(
    house: House, to: str | None = None, quarantine: tuple[int, ...] = (), revision: int | None = -1
) -> release.RolledBack:
    expected = house.revision() if revision == -1 else revision
    return release.roll_back(
        house.store,
        "gas",
        to=to,
        reason="line 3 recalibrated",
        quarantine=quarantine,
        expected_revision=expected,
        actor=ACTOR,
    )


def test_rollback_restores_weights_mask_and_stage_and_the_next_cycle_goes_on_from_there(house: House) -> None:
    house.create()
    house.grow(3)
    first = release.get_version(house.store, "gas", "1").version
    done = roll_back(house, to="1")
    assert (done.previous.number, done.version.number, done.superseded, done.queued) == (3, 1, (), None)
    assert house.champion() == first
    house.upload(seed=4)
    ended = house.cycle()
    assert ended is not None
    assert (ended.parent, ended.version) == (1, 4)
    champion = house.champion()
    assert (champion.stage, champion.depth, champion.megabatches) == (2, 2, 4)
    assert champion.kept == release.get_version(house.store, "gas", "2").version.kept
    assert history.examine(house.store) == []


def test_rollback_takes_the_nearest_ancestor_without_quarantined_megabatches(house: House) -> None:
    house.create()
    house.grow(4)
    done = roll_back(house, quarantine=(3,))
    assert (done.version.number, done.quarantined) == (2, (3,))
    assert ingest.get_megabatch(house.store, "gas", 3)[0].status is MegabatchStatus.QUARANTINED
    house.upload(seed=5)
    house.cycle()
    assert house.champion().megabatches == 4, "1, 2, 4 and 5; not 3"
    kinds = house.kinds()
    assert {"megabatch.quarantined", "alias.moved", "model.rolled_back"} <= set(kinds)


def test_rollback_supersedes_open_cycles_and_enqueues_one_for_the_rest(house: House) -> None:
    house.create()
    house.grow(2)
    house.upload(seed=3)
    house.upload(seed=4)
    done = roll_back(house)
    assert [cycle.number for cycle in done.superseded] == [3, 4]
    assert done.queued is not None
    assert (done.queued.trigger, done.queued.through) == (CycleTrigger.ROLLBACK, 4)
    ended = house.cycle()
    assert ended is not None
    assert (ended.number, ended.parent, house.champion().megabatches) == (5, 1, 4)
    assert house.cycle() is None


def test_a_rollback_needs_the_revision_that_was_seen(house: House) -> None:
    house.create()
    house.grow(3)
    seen = house.revision()
    with pytest.raises(PreconditionMissing, match="If-Match"):
        roll_back(house, revision=None)
    roll_back(house, to="1", revision=seen)
    with pytest.raises(AliasMoved):
        roll_back(house, to="1", revision=seen)
    assert house.champion().number == 1


def test_only_ancestors_can_be_rolled_back_to(house: House) -> None:
    house.create()
    with pytest.raises(UnknownAlias, match="no champion"):
        roll_back(house, revision=1)
    house.grow(3)
    roll_back(house, to="1")
    for target, why in (("3", "no ancestor"), ("1", "champion already")):
        with pytest.raises(NotAnAncestor, match=why):
            roll_back(house, to=target)
    with pytest.raises(UnknownVersion):
        roll_back(house, to="9")
    with pytest.raises(NotAnAncestor):
        roll_back(house)


def test_a_failed_rollback_changes_nothing(house: House) -> None:
    house.create()
    house.grow(2)
    before, kinds = house.revision(), house.kinds()
    with pytest.raises(UnknownMegabatch):
        roll_back(house, quarantine=(7,))
    target = release.get_version(house.store, "gas", "1").version
    path = house.store.blobs.path(target.checkpoint)
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptBlob):
        roll_back(house, quarantine=(2,))
    assert (house.revision(), house.kinds()) == (before, kinds)
    assert ingest.get_megabatch(house.store, "gas", 2)[0].status is MegabatchStatus.ACCEPTED
    assert [finding.kind for finding in history.examine(house.store)] == ["blob"]


def test_checkpoints_are_served_sparse_and_dense(house: House) -> None:
    house.create()
    house.grow(2)
    sparse = release.open_checkpoint(house.store, "gas", "champion", "sparse")
    dense = release.open_checkpoint(house.store, "gas", "2", "dense")
    again = release.open_checkpoint(house.store, "gas", "2", "dense")
    assert (again.path, again.digest) == (dense.path, dense.digest)
    assert sparse.alias is not None
    assert dense.alias is None
    saved = checkpoint.decode(sparse.path)
    assert (sparse.size, dense.size) == (sparse.version.checkpoint_bytes, dense.version.dense_bytes)
    tensors = load(dense.path.read_bytes())
    for name, mask in saved.masks.items():
        assert (tensors[name][~mask] == 0).all()
        np.testing.assert_array_equal(tensors[name], saved.arrays[name])
    assert sum(int(mask.sum()) for mask in saved.masks.values()) == sparse.version.kept


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_changed_bytes_are_never_served(house: House, form: release.Form) -> None:
    house.create()
    house.grow(1)
    path = release.open_checkpoint(house.store, "gas", "1", form).path
    whole = path.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    if form == "dense":
        assert release.open_checkpoint(house.store, "gas", "1", form).path.read_bytes() == whole, "it was made anew"
    else:
        with pytest.raises(CorruptBlob):
            release.open_checkpoint(house.store, "gas", "1", form)


def test_a_version_that_a_running_cycle_made_after_a_rollback_is_not_published(house: House) -> None:
    """The cycle began before the rollback; it ends superseded and the restored champion stays."""
    house.create()
    house.grow(2)
    house.upload(seed=3)

    class RollsBackMeanwhile(Running):
        def at(self, progress: Progress) -> None:
            super().at(progress)
            if house.champion().number == 2:
                roll_back(house, to="1")

    house.running = RollsBackMeanwhile("worker-2")
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.SUPERSEDED
    assert house.champion().number == 1
    rest = cycles.list_cycles(house.store, "gas", after=None, limit=10).items
    assert [(c.number, c.state) for c in rest[:2]] == [(4, CycleState.QUEUED), (3, CycleState.SUPERSEDED)]
    assert history.examine(house.store) == []


def test_what_passes_is_proposed_where_the_service_may_not_promote(house: House) -> None:
    house.create()
    house.grow(1)
    promotion.protect(house.store, "gas", "champion", approvals=0, automatic=False, reason="line 3", actor=ACTOR)
    for number in (2, 3):
        house.upload(seed=number)
        ended = house.cycle()
        assert ended is not None and (ended.state, ended.parent) == (CycleState.PUBLISHED, 1), "from the champion"
        assert house.champion().number == 1
    proposals = promotion.list_proposals(house.store, "gas", after=None, limit=5).items
    assert [(p.version, p.proposed_by, p.reason) for p in proposals] == [
        (3, "worker:worker-1", "passed its guardrails"),
        (2, "worker:worker-1", "passed its guardrails"),
    ]
    promotion.approve(house.store, "gas", 2, reason="looked at it", actor=Actor("kofi"))
    assert (house.champion().number, house.champion().megabatches) == (3, 3)
    with pytest.raises(ProposalClosed, match="was moved since"):
        promotion.approve(house.store, "gas", 1, reason="late", actor=Actor("kofi"))
    assert history.examine(house.store) == []
