"""Pins: what is replayed whatever the policy keeps, and what becomes of it after."""

import numpy as np
import pytest

from app.domain import CycleState, Megabatch
from app.errors import UnknownMegabatch, UnknownModel
from app.service import ingest, megabatches, release
from app.service.state import State, state_of
from tests.service.conftest import ACTOR, RECIPE, House

NONE = {**RECIPE, "replay": {"name": "none"}}
PINNED = {**RECIPE, "replay": {"name": "pinned"}}
FULL = {**RECIPE, "replay": {"name": "full"}}


def pin(house: House, number: int, *, pinned: bool = True, name: str = "gas") -> Megabatch:
    found, _ = megabatches.pin_megabatch(house.store, name, number, pinned=pinned, reason="it is rare", actor=ACTOR)
    return found


def trained(house: House) -> list[list[int]]:
    """Numbers of the megabatches that each version was trained on."""
    with house.store.reading() as tx:
        entries = tx.audit.entries("gas", None, 1000, "version.published").items
    return [entry.document["parameters"]["megabatches"] for entry in entries]


def state(house: House) -> State:
    return state_of(house.store.blobs, house.champion())


def quarantine(house: House, number: int) -> None:
    with house.store.transaction(ACTOR) as tx:
        tx.buffer.quarantine(tx.ledger.lock_model("gas"), [number])
        tx.audit.append("megabatch.quarantined", model="gas")


def one_more(house: House, seed: int) -> None:
    house.upload(seed=seed)
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED, ended


def test_a_pin_is_audited_once_with_its_reason(house: House) -> None:
    house.create("gas", NONE)
    house.upload()
    assert pin(house, 1).pinned and pin(house, 1).pinned
    assert not pin(house, 1, pinned=False).pinned and not pin(house, 1, pinned=False).pinned
    assert house.kinds()[-2:] == ["megabatch.pinned", "megabatch.unpinned"]
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "megabatch.pinned").items
    assert entry.document["reason"] == "it is rare"
    assert entry.document["parameters"]["megabatch"] == 1
    assert entry.actor == ACTOR.name


def test_what_is_not_there_is_named(house: House) -> None:
    house.create()
    with pytest.raises(UnknownMegabatch, match="no megabatch 7"):
        pin(house, 7)
    with pytest.raises(UnknownModel, match="nowhere"):
        pin(house, 7, name="nowhere")


def test_a_pinned_megabatch_is_replayed_and_no_other_one(house: House) -> None:
    house.create("gas", PINNED)
    house.grow(2)
    pin(house, 1)
    one_more(house, 3)
    one_more(house, 4)
    assert trained(house) == [[1], [2], [1, 3], [1, 4]]
    assert state(house).pinned == {1}
    with house.store.reading() as tx:
        entries = tx.audit.entries("gas", None, 100, "cycle.started").items
    assert [entry.document["parameters"]["pinned"] for entry in entries] == [[], [], [1], [1]]


def test_pinned_on_arrival_it_is_new_first_and_replayed_after(house: House) -> None:
    house.create("gas", PINNED)
    house.upload(seed=1)
    pin(house, 1)
    assert house.cycle() is not None
    one_more(house, 2)
    assert trained(house) == [[1], [1, 2]]


def test_a_policy_of_no_replay_replays_no_pins(house: House) -> None:
    house.create("gas", NONE)
    house.grow(1)
    pin(house, 1)
    one_more(house, 2)
    assert trained(house) == [[1], [2]]
    assert state(house).pinned == frozenset()


def test_in_quarantine_it_is_not_replayed_though_pinned(house: House) -> None:
    house.create("gas", PINNED)
    house.grow(2)
    pin(house, 1)
    quarantine(house, 1)
    one_more(house, 3)
    assert trained(house)[-1] == [3]
    assert ingest.get_megabatch(house.store, "gas", 1)[0].pinned


def test_in_quarantine_it_is_not_replayed_from_the_buffer_either(house: House) -> None:
    house.create("gas", FULL)
    house.grow(2)
    quarantine(house, 1)
    one_more(house, 3)
    assert trained(house)[-1] == [2, 3]


@pytest.mark.slow
def test_unpinned_it_is_the_policys_again_with_all_its_rows(house: House) -> None:
    house.create("gas", FULL)
    house.grow(2)
    pin(house, 1)
    one_more(house, 3)
    assert set(state(house).replay) == {2, 3}, "what is pinned is no part of the buffer"
    pin(house, 1, pinned=False)
    one_more(house, 4)
    assert trained(house)[-2:] == [[1, 2, 3], [1, 2, 3, 4]]
    after = state(house)
    assert (set(after.replay), after.pinned) == ({1, 2, 3, 4}, frozenset())
    one_more(house, 5)
    assert trained(house)[-1] == [1, 2, 3, 4, 5]


def test_a_rollback_goes_by_the_pins_of_today(house: House) -> None:
    house.create("gas", PINNED)
    house.grow(2)
    pin(house, 1)
    one_more(house, 3)
    release.roll_back(
        house.store, "gas", to="2", reason="worse", quarantine=[], expected_revision=house.revision(), actor=ACTOR
    )
    one_more(house, 4)
    assert trained(house)[-1] == [1, 3, 4]


def test_forgetting_is_measured_on_megabatches_that_are_in_no_buffer(house: House) -> None:
    house.create("gas", {**NONE, "validation_share": 0.3})
    house.grow(3)
    with house.store.reading() as tx:
        histories = state_of(house.store.blobs, tx.ledger.version("gas", "champion")).history
    assert {int(number) for number in histories["best"]} == {1, 2, 3}
    assert "forgetting" in house.champion().metrics
    assert set(house.champion().report["megabatches"]) == {"1", "2", "3"}
    quarantine(house, 2)
    one_more(house, 4)
    assert set(house.champion().report["megabatches"]) == {"1", "3", "4"}, "what is in quarantine is not asked"
    assert np.isfinite(house.champion().metrics["forgetting"])
