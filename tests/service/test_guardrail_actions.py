"""What a trip sets off, through the service: small real cycles on labels that can be learned, and on shuffled ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from app.domain import Cycle, CycleState, CycleTrigger, ModelState, Version
from app.service import cycles, history, models, outcomes, promotion, release
from app.service.guardrail_actions import RETRIES, scale_of
from app.service.lease import Running
from tests.service.conftest import ACTOR, RECIPE, House, blob_of_examples
from tests.service.test_training import DiesAt, Killed, comparable


def guarded(*rules: dict[str, Any], **over: Any) -> dict[str, Any]:
    """A third of the examples for the verdict; every step of pruning to the letter of the schedule."""
    return {**RECIPE, "validation_share": 0.3, "guardrails": list(rules), **over}


def floor(then: str, **over: Any) -> dict[str, Any]:
    """Trips on shuffled labels, and not on learnable ones."""
    return {"name": "accuracy-floor", "at_least": 0.75, "confidence": 0.5, "then": then, **over}


def teach(house: House, seed: int) -> int:
    """Upload a megabatch that can be learned."""
    return house.upload(seed=seed).megabatch.number


def confuse(house: House, seed: int) -> int:
    """Upload a megabatch whose labels are shuffled."""
    x, y = blob_of_examples(seed, n=240)
    return house.upload(x=x, y=np.random.default_rng(seed).permutation(y)).megabatch.number


def quarantine(house: House, *numbers: int) -> None:
    with house.store.transaction(ACTOR) as tx:
        tx.buffer.quarantine(tx.ledger.lock_model("gas"), numbers)
        tx.audit.append("megabatch.quarantined", model="gas", reason="shuffled labels")


def run(house: House) -> list[Cycle]:
    """Carry out every cycle that is due."""
    return [cycle for cycle in iter(house.cycle, None) if cycle]


def version(house: House, number: int | None) -> Version:
    return release.get_version(house.store, "gas", str(number)).version


def entries(house: House, kind: str) -> list[dict[str, Any]]:
    with house.store.reading() as tx:
        found = tx.audit.entries("gas", None, 1000, kind).items
    return [{"reason": entry.document["reason"], **entry.document["parameters"]} for entry in found]


def shown(cycle: Cycle) -> tuple[str, str, int, int]:
    return cycle.state, cycle.trigger, cycle.through, cycle.attempt


# -- withhold ----------------------------------------------------------------------------------------------------------


def test_withhold_keeps_the_champion_and_sets_off_nothing(house: House) -> None:
    house.create("gas", guarded(floor("withhold")))
    teach(house, 1)
    confuse(house, 2)
    good, bad = run(house)
    assert (good.state, bad.state) == (CycleState.PUBLISHED, CycleState.WITHHELD)
    assert house.champion().number == 1
    assert version(house, 2).verdict.action == "withhold" and version(house, 2).stage == 2
    (trip,) = entries(house, "guardrail.tripped")
    assert {k: trip[k] for k in ("cycle", "version", "rule", "action", "breaches", "next_cycle")} == {
        "cycle": 2, "version": 2, "rule": "accuracy-floor", "action": "withhold", "breaches": 1, "next_cycle": None,
    }  # fmt: skip
    assert "is below the floor 0.75, and not by chance" in trip["reason"]
    assert set(trip["figures"]) == {"examples", "accuracy", "upper_bound"}
    assert "cycle.requested" not in house.kinds()
    assert cycles.request_cycle(house.store, "gas", reason="again", actor=ACTOR).through == 2, "it stays eligible"
    again = house.cycle()
    assert again is not None and again.attempt == 0
    assert version(house, again.version).mask_digest == version(house, 2).mask_digest, "the same attempt once more"


def test_a_breach_that_does_not_trip_is_published_and_told(house: House) -> None:
    house.create("gas", guarded(floor("withhold", trip_after=2)))
    confuse(house, 1)
    confuse(house, 2)
    first, second = run(house)
    assert (first.state, second.state) == (CycleState.PUBLISHED, CycleState.WITHHELD)
    assert version(house, 1).verdict.passed and version(house, 1).verdict.action == ""
    assert "breached 1 of 2 times before it trips" in version(house, 1).verdict.reasons[0]
    assert "breached 2 times in a row" in version(house, 2).verdict.reasons[0]
    assert [trip["breaches"] for trip in entries(house, "guardrail.tripped")] == [2]


# -- hold --------------------------------------------------------------------------------------------------------------


def test_hold_retrains_once_and_holds_pruning_until_recovery(house: House) -> None:
    house.create("gas", guarded(floor("hold", recover_after=2)))
    teach(house, 1)
    bad = confuse(house, 2)
    _, tripped, again = run(house)
    assert shown(tripped) == ("withheld", "megabatches", 2, 0)
    assert shown(again) == ("withheld", "guardrail", 2, 1), "and nothing after that"
    champion = house.champion()
    assert champion.number == 1
    assert version(house, 2).kept < champion.kept == version(house, 3).kept
    assert version(house, 3).stage == champion.stage and house.manifest(3)["attempt"] == 1
    (held,) = entries(house, "mask.held")
    assert held["reason"] == "held since accuracy-floor tripped ({}): 0 of 2 passes".format(
        entries(house, "guardrail.tripped")[0]["reason"]
    )
    (asked,) = entries(house, "cycle.requested")
    assert (asked["cycle"], asked["attempt"], asked["after"]) == (again.number, 1, tripped.number)
    assert asked["reason"] == "accuracy-floor tripped on version 2: density is held"
    assert [trip["next_cycle"] for trip in entries(house, "guardrail.tripped")] == [again.number, None]

    teach(house, 3)
    (mixed,) = run(house)  # it takes the bad megabatch in as well
    assert shown(mixed) == ("withheld", "megabatches", 3, 0), "held already: nothing else is tried"
    quarantine(house, bad)
    kept = [cycle.version for seed in (4, 5, 6) for cycle in (teach(house, seed), run(house))[1]]
    ends = [version(house, number) for number in kept]
    assert all(end.verdict.passed for end in ends)
    assert [end.kept == champion.kept for end in ends] == [True, True, False], "pruned again after two passes"
    assert [end.stage for end in ends] == [1, 1, 2]
    passes = [entry["reason"].rpartition(": ")[2] for entry in entries(house, "mask.held")]
    assert passes == ["0 of 2 passes", "0 of 2 passes", "0 of 2 passes", "1 of 2 passes"]
    assert history.examine(house.store) == []


def test_a_hold_without_a_champion_starts_dense(house: House) -> None:
    house.create("gas", guarded(floor("hold")))
    confuse(house, 1)
    first, again = run(house)
    assert (first.parent, again.parent, again.attempt) == (None, None, 1)
    assert version(house, 1).kept < version(house, 2).kept == version(house, 2).total
    assert models.describe_model(house.store, "gas").champion is None
    quarantine(house, 1)
    teach(house, 2)
    (good,) = run(house)
    assert (good.state, version(house, good.version).stage) == (CycleState.PUBLISHED, 0)
    assert version(house, good.version).density == 1, "the hold outlives the megabatch that tripped it"


def test_a_held_attempt_may_pass(house: House) -> None:
    """What trips is the pruning itself, which leaves the larger layer thinner than the whole."""
    house.create("gas", guarded(
        {"name": "layer-collapse", "at_least": 0.5, "then": "hold", "recover_after": 1},
        distribution={"name": "erdos-renyi-kernel"}, schedule={"name": "one-shot", "target": 0.5},
    ))  # fmt: skip
    for number in (1, 2):
        teach(house, number)
        tripped, again = run(house)
        assert (tripped.state, again.state) == (CycleState.WITHHELD, CycleState.PUBLISHED)
        assert version(house, tripped.version).density == pytest.approx(0.5, abs=0.01)
        assert house.champion().number == again.version and house.champion().density == 1
        assert "little passes through so thin a layer" in version(house, tripped.version).verdict.reasons[0]


def test_a_version_that_is_promoted_is_pardoned(house: House) -> None:
    house.create("gas", guarded(floor("hold")))
    teach(house, 1)
    confuse(house, 2)
    assert [cycle.state for cycle in (house.cycle(), house.cycle()) if cycle] == ["published", "withheld"]
    promotion.promote(
        house.store, "gas", 2, reason="we know", override=True, expected_revision=house.revision(), actor=ACTOR
    )
    assert cycles.get_cycle(house.store, "gas", 3).state is CycleState.SUPERSEDED, "its megabatches are seen"
    assert run(house) == []
    teach(house, 3)
    after = house.cycle()
    assert after is not None
    assert version(house, after.version).stage == 3, "no hold of the rule that was overridden"


def test_quarantine_leaves_the_next_attempt_nothing_to_train_on(house: House) -> None:
    house.create("gas", guarded(floor("hold")))
    teach(house, 1)
    bad = confuse(house, 2)
    house.cycle()
    house.cycle()
    quarantine(house, bad)
    (again,) = run(house)
    assert (again.state, again.trigger) == (CycleState.SUPERSEDED, CycleTrigger.GUARDRAIL)
    assert again.reason == "nothing is left to train on"


def test_the_next_attempt_counts_as_no_new_coverage(house: House) -> None:
    """With a trigger of two megabatches, a retry for the first two does not make the third due."""
    house.create("gas", guarded(floor("hold"), trigger={"name": "megabatches", "every": 2}))
    for seed in (1, 2, 3, 4):
        confuse(house, seed)
    run(house)
    assert [shown(c)[1:3] for c in cycles.list_cycles(house.store, "gas", after=None, limit=9).items][::-1] == [
        ("megabatches", 2), ("megabatches", 4), ("guardrail", 2),
    ]  # fmt: skip
    assert house.upload(seed=5).cycle is None


@pytest.mark.slow
def test_a_held_cycle_that_was_killed_goes_on_and_ends_with_the_same_bits(house: House, second_house: House) -> None:
    for each in (house, second_house):
        each.create("gas", guarded(floor("hold")))
        teach(each, 1)
        confuse(each, 2)
        assert [cycle.state for cycle in (each.cycle(), each.cycle()) if cycle] == ["published", "withheld"]
    whole = second_house.cycle()
    house.settings = house.settings.model_copy(update={"snapshot_seconds": 0.0})
    house.running = DiesAt("doomed", 9)
    with pytest.raises(Killed):
        house.cycle()
    outcomes.reclaim(house.store, house.settings, ACTOR, list)
    house.running = Running("second")
    ended = house.cycle()
    assert ended is not None and whole is not None
    assert shown(ended) == shown(whole) == ("withheld", "guardrail", 2, 1), "a resume is no attempt"
    assert "cycle.restarted" not in house.kinds()
    assert version(house, 3).checkpoint == version(second_house, 3).checkpoint
    assert version(house, 3).state == version(second_house, 3).state
    assert comparable(house) == comparable(second_house)


# -- retry -------------------------------------------------------------------------------------------------------------


def test_retry_halves_the_pruning_step_twice_and_then_withholds_for_good(house: House) -> None:
    house.create("gas", guarded(floor("retry")))
    teach(house, 1)
    confuse(house, 2)
    good, *attempts = run(house)
    assert good.state is CycleState.PUBLISHED
    assert [shown(cycle) for cycle in attempts] == [
        ("withheld", "megabatches", 2, 0), ("withheld", "guardrail", 2, 1), ("withheld", "guardrail", 2, RETRIES),
    ]  # fmt: skip
    before = house.champion()
    steps = [before.density - version(house, cycle.version).target_density for cycle in attempts]
    assert steps == pytest.approx([steps[0], steps[0] / 2, steps[0] / 4]) and steps[0] > 0.1
    assert [scale_of(attempt) for attempt in range(3)] == [1, 0.5, 0.25]
    assert [version(house, cycle.version).stage for cycle in attempts] == [2, 1, 1], "half a step is no stage"
    assert [entry["reason"] for entry in entries(house, "cycle.requested")] == [
        "accuracy-floor tripped on version 2: 0.5 of the pruning step is taken",
        "accuracy-floor tripped on version 3: 0.25 of the pruning step is taken",
    ]
    assert house.champion().number == before.number and "mask.held" not in house.kinds()
    assert models.describe_model(house.store, "gas").model.state is ModelState.ACTIVE


# -- restore -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_restore_moves_the_champion_back_before_the_breaches_and_holds(house: House) -> None:
    house.create("gas", guarded(floor("restore", trip_after=3, recover_after=1)))
    teach(house, 1)
    bad = [confuse(house, seed) for seed in (2, 3, 4)]
    for _ in range(3):
        house.cycle()
    assert house.champion().number == 3, "two breaches do not trip"
    before = house.revision()
    later = house.upload(seed=5)  # a cycle is open when the rule trips
    assert later.cycle is not None
    tripped = house.cycle()
    assert tripped is not None and shown(tripped) == ("withheld", "megabatches", 4, 0)
    verdict = version(house, 4).verdict
    assert (verdict.action, verdict.restored) == ("restore", 1)
    assert verdict.reasons[-1] == "champion goes back from 3 to 1, the newest version before the breaches"
    assert house.champion().number == 1 and house.revision() == before + 1
    moves = entries(house, "alias.moved")
    assert (moves[-1]["from"], moves[-1]["to"]) == (3, 1)
    assert moves[-1]["reason"] == "accuracy-floor tripped on version 4"
    assert cycles.get_cycle(house.store, "gas", later.cycle.number).state is CycleState.SUPERSEDED
    replaced = cycles.get_cycle(house.store, "gas", later.cycle.number + 1)
    assert shown(replaced) == ("queued", "guardrail", 5, 0)

    quarantine(house, *bad)
    (held,) = run(house)
    assert (held.state, held.parent) == (CycleState.PUBLISHED, 1)
    assert version(house, held.version).kept == version(house, 1).kept
    assert entries(house, "mask.held")[-1]["reason"].startswith("held since accuracy-floor tripped (")
    teach(house, 6)
    (free,) = run(house)
    assert version(house, free.version).kept < version(house, 1).kept, "one pass was enough"
    assert history.examine(house.store) == []


def test_restore_leaves_a_champion_that_did_not_breach(house: House) -> None:
    house.create("gas", guarded(floor("restore")))
    teach(house, 1)
    confuse(house, 2)
    run(house)
    assert version(house, 2).verdict.restored is None and house.champion().number == 1
    assert house.kinds().count("alias.moved") == 1 and "cycle.requested" not in house.kinds()
    teach(house, 3)
    (held,) = run(house)
    assert version(house, held.version).kept == house.champion().kept, "and pruning is held"


def test_restore_without_a_version_before_the_breaches_leaves_the_champion(house: House) -> None:
    house.create("gas", guarded(floor("restore", trip_after=2)))
    confuse(house, 1)
    confuse(house, 2)
    run(house)
    assert house.champion().number == 1
    assert version(house, 2).verdict.reasons[-1] == (
        "champion 1 stays: no version before the breaches is left to restore"
    )


def test_restore_goes_past_a_version_whose_bytes_are_gone(house: House) -> None:
    house.create("gas", guarded(floor("restore", trip_after=2)))
    teach(house, 1)
    teach(house, 2)
    confuse(house, 3)
    for _ in range(3):
        house.cycle()
    path = house.store.blobs.path(version(house, 2).checkpoint)
    path.chmod(0o644)
    path.write_bytes(b"rot")
    confuse(house, 4)
    house.cycle()
    assert house.champion().number == 1


# -- several -----------------------------------------------------------------------------------------------------------


def test_where_several_trip_the_strictest_decides_and_each_is_audited(house: House) -> None:
    house.create("gas", guarded(
        floor("retry"), {"name": "class-floor", "at_least": 0.8, "confidence": 0.5, "then": "hold"}, floor("withhold"),
    ))  # fmt: skip
    confuse(house, 1)
    run(house)
    assert version(house, 1).verdict.action == "hold"
    trips = [trip for trip in entries(house, "guardrail.tripped") if trip["version"] == 1]
    assert [(trip["rule"], trip["action"], trip["next_cycle"]) for trip in trips] == [
        ("accuracy-floor", "retry", 2), ("class-floor", "hold", 2), ("accuracy-floor#2", "withhold", 2),
    ]  # fmt: skip
    assert len(version(house, 1).verdict.reasons) == 3
    last = cycles.list_cycles(house.store, "gas", after=None, limit=9).items[0]
    assert last.attempt == 1, "the held attempt trips with hold again, which is not repeated"


# -- training that fails -----------------------------------------------------------------------------------------------


class Wild(torch.nn.Module):
    """A user's network whose outputs overflow for as many networks as ``left`` says."""

    left = 0

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(shape[0], 12), torch.nn.Tanh(), torch.nn.Linear(12, classes))
        self.calls = 0
        self.wild = Wild.left > 0
        Wild.left -= 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        out: torch.Tensor = self.body(x)
        return out * float("nan") if self.wild and self.calls > 6 else out


class Stubborn(torch.nn.Module):
    """A user's network that revives what was pruned."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(shape[0], 12), torch.nn.Tanh(), torch.nn.Linear(12, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.body[0].weight.data.add_(1e-3)
        out: torch.Tensor = self.body(x)
        return out


@pytest.fixture
def wild() -> Iterator[type[Wild]]:
    yield Wild
    Wild.left = 0


def own(house: House, name: str, *rules: dict[str, Any]) -> None:
    """A model with a network of the user's, pruned before it is trained."""
    where = {"mine": f"tests.service.test_guardrail_actions:{name}"}
    house.settings = house.settings.model_copy(update={"architectures": where})
    house.create("gas", guarded(*rules, network={"name": "custom", "architecture": "mine"},
                                criterion={"name": "magnitude"}, pace={"name": "at-start"}))  # fmt: skip


DIVERGED = "TrainingDiverged: "


def test_divergence_is_tried_again_with_half_the_step(house: House, wild: type[Wild]) -> None:
    own(house, "Wild", {"name": "divergence", "then": "retry"})
    wild.left = 1
    teach(house, 1)
    failed, again = run(house)
    assert shown(failed) == ("failed", "megabatches", 1, 0) and str(failed.reason).startswith(DIVERGED)
    assert shown(again) == ("published", "guardrail", 1, 1)
    assert models.describe_model(house.store, "gas").model.state is ModelState.ACTIVE
    (trip,) = entries(house, "guardrail.tripped")
    assert (trip["rule"], trip["action"], trip["version"], trip["next_cycle"]) == ("divergence", "retry", None, 2)
    assert trip["reason"] == failed.reason
    assert entries(house, "cycle.requested")[0]["reason"] == (
        "divergence tripped in cycle 1: 0.5 of the pruning step is taken"
    )
    assert house.champion().stage == 0 and house.champion().density > 0.88
    order = [k for k in house.kinds() if k in ("mask.pruned", "cycle.failed", "guardrail.tripped", "cycle.requested")]
    assert order == ["mask.pruned", "cycle.failed", "guardrail.tripped", "cycle.requested", "mask.pruned"]


def test_divergence_that_goes_on_pauses_the_model_after_the_last_attempt(house: House, wild: type[Wild]) -> None:
    own(house, "Wild", {"name": "divergence", "then": "retry"})
    wild.left = 99
    teach(house, 1)
    ended = run(house)
    assert [(cycle.state, cycle.attempt) for cycle in ended] == [("failed", 0), ("failed", 1), ("failed", RETRIES)]
    summary = models.describe_model(house.store, "gas")
    assert summary.model.state is ModelState.PAUSED and DIVERGED in str(summary.model.paused_reason)
    assert [trip["next_cycle"] for trip in entries(house, "guardrail.tripped")] == [2, 3, None]
    wild.left = 0
    models.resume_model(house.store, "gas", reason="mended", actor=ACTOR)
    (good,) = run(house)
    assert (good.state, good.attempt) == (CycleState.PUBLISHED, 0)


def test_divergence_that_holds_is_held_until_recovery(house: House, wild: type[Wild]) -> None:
    own(house, "Wild", {"name": "divergence", "then": "hold", "recover_after": 2})
    wild.left = 1
    teach(house, 1)
    failed, again = run(house)
    assert (failed.state, again.state, again.attempt) == (CycleState.FAILED, CycleState.PUBLISHED, 1)
    teach(house, 2)
    teach(house, 3)
    run(house)
    assert [version(house, n).density == 1 for n in (1, 2, 3)] == [True, True, False]
    assert [entry["reason"].rpartition(": ")[2] for entry in entries(house, "mask.held")] == [
        "0 of 2 passes", "1 of 2 passes"
    ]  # fmt: skip


def test_divergence_that_goes_on_while_held_pauses_the_model(house: House, wild: type[Wild]) -> None:
    own(house, "Wild", {"name": "divergence", "then": "hold"})
    wild.left = 99
    teach(house, 1)
    assert [(cycle.state, cycle.attempt) for cycle in run(house)] == [("failed", 0), ("failed", 1)]
    assert models.describe_model(house.store, "gas").model.state is ModelState.PAUSED


@pytest.mark.parametrize("rules", [(), ({"name": "divergence", "then": "withhold"},)])
def test_without_such_a_guardrail_divergence_pauses_the_model(
    house: House, wild: type[Wild], rules: tuple[dict[str, Any], ...]
) -> None:
    own(house, "Wild", *rules)
    wild.left = 1
    teach(house, 1)
    (failed,) = run(house)
    assert failed.state is CycleState.FAILED and "guardrail.tripped" not in house.kinds()
    assert models.describe_model(house.store, "gas").model.state is ModelState.PAUSED


def test_a_broken_invariant_fails_the_cycle_and_keeps_its_events(house: House) -> None:
    own(house, "Stubborn")
    house.settings = house.settings.model_copy(update={"max_failures": 1})
    teach(house, 1)
    (failed,) = run(house)
    assert failed.state is CycleState.FAILED and str(failed.reason).startswith("InvariantBroken: ")
    kinds = house.kinds()
    assert kinds[kinds.index("cycle.started") + 1 :] == [
        "mask.pruned", "invariant.broken", "cycle.failed", "model.paused"
    ]  # fmt: skip
    (pruned,), (broken,) = entries(house, "mask.pruned"), entries(house, "invariant.broken")
    assert pruned["cycle"] == broken["cycle"] == failed.number and pruned["kept"] < pruned["total"]
    assert "not zero" in broken["message"]
