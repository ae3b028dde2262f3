from datetime import UTC, datetime, timedelta

import pytest

from app.domain import Actor, CycleState, CycleTrigger
from app.errors import ModelPaused, NothingToTrain
from app.service import cycles, models
from tests.service.conftest import ACTOR, RECIPE, House

CLOCK = Actor("worker:clock")


def test_a_manual_cycle_takes_every_eligible_megabatch_and_is_not_doubled(house: House) -> None:
    house.create("gas", {**RECIPE, "trigger": {"name": "manual"}})
    house.upload(seed=1)
    house.upload(seed=2)
    cycle = cycles.request_cycle(house.store, "gas", reason="now", actor=ACTOR)
    again = cycles.request_cycle(house.store, "gas", reason="now", actor=ACTOR)
    assert (cycle.trigger, cycle.through, again.number) == (CycleTrigger.MANUAL, 2, cycle.number)
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.PUBLISHED
    with pytest.raises(NothingToTrain, match="upload"):
        cycles.request_cycle(house.store, "gas", reason="again", actor=ACTOR)


def test_a_paused_model_must_be_resumed_first(house: House) -> None:
    house.create()
    models.pause_model(house.store, "gas", reason="stop", actor=ACTOR)
    with pytest.raises(ModelPaused, match="resume"):
        cycles.request_cycle(house.store, "gas", reason="now", actor=ACTOR)


def test_a_cron_trigger_fires_once_however_many_ask_and_missed_times_coalesce(house: House) -> None:
    house.create("gas", {**RECIPE, "trigger": {"name": "cron", "expression": "0 * * * *"}})
    house.upload()
    assert cycles.enqueue_due(house.store, CLOCK) == []
    start = datetime.now(UTC)
    house.store.clock = lambda: start + timedelta(hours=5)
    first = cycles.enqueue_due(house.store, CLOCK)
    assert [(c.trigger, c.through) for c in first] == [(CycleTrigger.CRON, 1)]
    assert cycles.enqueue_due(house.store, CLOCK) == []
    house.store.clock = lambda: start - timedelta(hours=2)
    assert cycles.enqueue_due(house.store, CLOCK) == [], "a clock that steps back fires nothing again"


def test_a_cron_time_without_new_data_passes_quietly(house: House) -> None:
    house.create("gas", {**RECIPE, "trigger": {"name": "cron", "expression": "0 * * * *"}})
    start = datetime.now(UTC)
    house.store.clock = lambda: start + timedelta(hours=2)
    assert cycles.enqueue_due(house.store, CLOCK) == []
    assert house.kinds() == ["model.created"]
