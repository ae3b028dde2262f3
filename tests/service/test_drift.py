"""A stream that changes abruptly, again and again: pruning does not run ahead of recovery."""

from __future__ import annotations

import pytest

from app.domain import CycleState
from app.service import release
from tests.service.conftest import ACTOR, RECIPE, House, blob_of_examples
from tests.service.test_guardrail_actions import entries

HELD = {
    **RECIPE,
    "schedule": {"name": "factor", "stages": 8},
    "validation_share": 0.3,
    "monitoring": {"past": 1},
    "guardrails": [{"name": "input-drift", "recover_after": 2}],
}
"""Against the megabatch before alone, so that every change of the source is one."""


def feed(house: House, source: str, number: int) -> None:
    """Upload a megabatch of source ``a`` or ``b``, and train on it."""
    x, y = blob_of_examples(number)
    house.upload(x=x + 4 if source == "b" else x, y=y)
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED, ended


@pytest.mark.slow
def test_abrupt_and_repeated_change_holds_the_density_until_it_has_settled(house: House) -> None:
    house.create("gas", HELD)
    for number, source in enumerate("aababbbbb", 1):
        feed(house, source, number)
    versions = [release.get_version(house.store, "gas", str(number)).version for number in range(1, 10)]
    kept = [version.kept for version in versions]
    assert kept[0] > kept[1], "it prunes while nothing changes"
    assert kept[1] == kept[2] == kept[3] == kept[4], "each change holds it anew"
    assert kept[4] == kept[5] == kept[6], "two versions in a row must pass"
    assert kept[6] > kept[7] > kept[8], "then it goes on where it was"
    assert [version.stage for version in versions] == [1, 2, 2, 2, 2, 2, 2, 3, 4]

    trips = entries(house, "guardrail.tripped")
    assert sorted((trip["version"], trip["action"], trip["next_cycle"]) for trip in trips) == [
        (number, "hold", None) for number in (3, 4, 5)
    ]
    assert sorted(held["cycle"] for held in entries(house, "mask.held")) == [3, 4, 5, 6, 7]


def test_a_rollback_rewinds_the_past_and_what_holds_pruning(house: House) -> None:
    house.create("gas", HELD)
    for number, source in enumerate("aab", 1):
        feed(house, source, number)
    release.roll_back(
        house.store,
        "gas",
        to="2",
        reason="the source is back",
        quarantine=[3],
        expected_revision=house.revision(),
        actor=ACTOR,
    )
    feed(house, "a", 4)
    fourth = release.get_version(house.store, "gas", "4").version
    assert fourth.parent == 2 and fourth.stage == 3, "neither held nor drifted"


def test_a_megabatch_keeps_how_it_was_first_met(house: House) -> None:
    house.create("gas", HELD)
    for number, source in enumerate("aab", 1):
        feed(house, source, number)
    with house.store.reading() as tx:
        first, second, third = (tx.buffer.megabatch("gas", number).prequential for number in (1, 2, 3))
    assert first is None
    assert second is not None and second.drift is not None and not second.drift["inputs"]["alarm"]
    assert third is not None and third.drift is not None and third.drift["inputs"]["alarm"]
    version = release.get_version(house.store, "gas", "3").version
    assert version.report["drift"]["3"] == third.drift
    assert version.metrics["input_drift"] == third.drift["inputs"]["effect"]
    assert version.metrics["alarms"] >= 1
