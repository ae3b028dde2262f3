from datetime import timedelta

import numpy as np
import pytest
import torch

from app.domain import CycleState, ModelState, Normalisation, Progress
from app.service import cycles, history, ingest, models, outcomes, promotion, release, training
from app.service.lease import Running
from espalier.formats import checkpoint
from espalier.formats.megabatch import example_ids, is_validation
from tests.service.conftest import ACTOR, RECIPE, House, blob_of_examples


class Killed(BaseException):
    """The worker is gone between two steps: nothing is cleaned up."""


class DiesAt(Running):
    """A worker that vanishes at its n-th step."""

    def __init__(self, worker: str, step: int) -> None:
        super().__init__(worker)
        self.left = step

    def at(self, progress: Progress) -> None:
        super().at(progress)
        self.left -= 1
        if self.left == 0:
            raise Killed


class StopsAt(DiesAt):
    """A worker that is asked to stop at its n-th step."""

    def at(self, progress: Progress) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop()
        super(DiesAt, self).at(progress)


def weights(house: House, ref: str = "champion") -> checkpoint.Checkpoint:
    return checkpoint.decode(release.open_checkpoint(house.store, "gas", ref, "sparse").path)


def comparable(house: House) -> list[tuple[str, object]]:
    with house.store.reading() as tx:
        entries = tx.audit.entries("gas", None, 1000).items
    skipped = ("cycle.started", "cycle.reclaimed", "cycle.released", "cycle.requested")
    return [(e.kind, e.document["parameters"]) for e in entries if e.kind not in skipped]


def an_hour_later(house: House) -> None:
    clock = house.store.clock
    house.store.clock = lambda: clock() + timedelta(hours=1)


def test_megabatches_are_trained_in_order_each_once_and_density_follows_the_schedule(house: House) -> None:
    house.create()
    for seed in (1, 2, 3):
        house.upload(seed=seed)
    ended = [house.cycle() for _ in range(4)]
    assert [(c.number, c.through, c.version) if c else None for c in ended] == [(1, 1, 1), (2, 2, 2), (3, 3, 3), None]
    versions = [release.get_version(house.store, "gas", str(n)).version for n in (1, 2, 3)]
    planned = [0.8**delta for delta in np.linspace(1, 4.5, 4)[:3]]
    assert [v.kept for v in versions] == [
        int(np.floor(d * v.total + 0.5)) for d, v in zip(planned, versions, strict=True)
    ]
    assert [v.stage for v in versions] == [1, 2, 3]
    one, two, three = (weights(house, str(n)).masks for n in (1, 2, 3))
    for name in one:
        assert not (two[name] & ~one[name]).any()
        assert not (three[name] & ~two[name]).any()


def test_on_arrival_accuracy_is_the_champions_before_training(house: House) -> None:
    house.create()
    house.grow(1)
    x, y = np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32), np.arange(64) % 3
    house.upload(x=x, y=y)
    before = weights(house)
    house.cycle()
    arrival = ingest.get_megabatch(house.store, "gas", 2)[0].prequential
    assert arrival is not None
    assert (arrival.version, arrival.examples) == (1, 64)
    assert arrival.accuracy == pytest.approx(float((before.predict(x) == y).mean()))


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 9, 17))])
def test_a_killed_cycle_goes_on_and_ends_with_the_same_bits(house: House, second_house: House, step: int) -> None:
    for each in (house, second_house):
        each.create()
        each.grow(1)
        each.upload(seed=2)
    second_house.cycle()
    house.settings = house.settings.model_copy(update={"snapshot_seconds": 0.0})
    house.running = DiesAt("doomed", step)
    with pytest.raises(Killed):
        house.cycle()
    assert house.cycle() is None, "the lease still holds"
    outcomes.reclaim(house.store, house.settings, ACTOR, list)
    house.running = Running("second")
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.PUBLISHED
    assert history.examine(house.store) == []
    assert house.champion().checkpoint == second_house.champion().checkpoint
    assert comparable(house) == comparable(second_house)


def test_a_stopped_cycle_is_released_and_goes_on_elsewhere(house: House) -> None:
    house.create()
    house.upload()
    house.running = StopsAt("stopping", 6)
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.QUEUED
    assert house.running.stopping
    house.running = Running("next")
    again = house.cycle()
    assert again is not None
    assert again.state is CycleState.PUBLISHED
    assert "cycle.released" in house.kinds()


def test_a_worker_that_lost_its_lease_publishes_nothing(house: House) -> None:
    house.create()
    house.upload()

    class Stalls(Running):
        """Stands still past its lease, while another worker takes over and publishes."""

        stalled = False

        def at(self, progress: Progress) -> None:
            super().at(progress)
            if not self.stalled:
                self.stalled = True
                outcomes.reclaim(house.store, house.settings, ACTOR, list)
                other = training.run_next_cycle(
                    house.store, house.settings, running=Running("other"), device=torch.device("cpu")
                )
                assert other is not None
                assert other.state is CycleState.PUBLISHED

    house.running = Stalls("stalled")
    ended = house.cycle()
    assert ended is not None
    assert (ended.state, ended.version) == (CycleState.PUBLISHED, 1)
    assert house.kinds().count("version.published") == 1
    assert history.examine(house.store) == []


def broken(*_: object) -> torch.nn.Module:
    """A user's factory that never works."""
    raise RuntimeError("no such layer")


def test_a_failing_cycle_is_retried_then_its_model_is_paused_and_others_go_on(house: House) -> None:
    house.settings = house.settings.model_copy(update={"architectures": {"mine": "tests.service.test_training:broken"}})
    house.create("gas", {**RECIPE, "network": {"name": "custom", "architecture": "mine"}})
    house.create("other")
    house.upload("gas")
    house.upload("other")
    states = [(ended.model, ended.state) for ended in iter(house.cycle, None) if ended]
    assert states.count(("gas", CycleState.QUEUED)) == 2
    assert states.count(("gas", CycleState.FAILED)) == 1
    assert ("other", CycleState.PUBLISHED) in states
    summary = models.describe_model(house.store, "gas")
    assert summary.model.state is ModelState.PAUSED
    assert "no such layer" in str(summary.model.paused_reason)
    house.settings = house.settings.model_copy(
        update={"architectures": {"mine": "tests.service.test_training:working"}}
    )
    models.resume_model(house.store, "gas", reason="factory mended", actor=ACTOR)
    ended = house.cycle()
    assert ended is not None
    assert (ended.model, ended.state, ended.through) == ("gas", CycleState.PUBLISHED, 1)


def working(input_shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """A user's factory."""
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], 12), torch.nn.Tanh(), torch.nn.Linear(12, classes))


def test_a_cycle_that_kills_its_workers_is_given_up(house: House) -> None:
    house.create()
    house.upload()
    for attempt in range(house.settings.max_failures):
        house.running = DiesAt(f"doomed-{attempt}", 1)
        with pytest.raises(Killed):
            house.cycle()
        outcomes.reclaim(house.store, house.settings, ACTOR, list)
    assert cycles.get_cycle(house.store, "gas", 1).state is CycleState.FAILED
    assert models.describe_model(house.store, "gas").model.state is ModelState.PAUSED


def test_a_megabatch_too_small_to_split_waits_for_more(house: House) -> None:
    house.create()
    x, y = blob_of_examples(1)
    is_held_out = is_validation(example_ids(x), 0.1)
    house.create("declared", classes=("a", "b", "c"))
    house.upload("declared", x=x[is_held_out], y=y[is_held_out])
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.SUPERSEDED
    assert "more examples" in str(ended.reason)
    house.upload("declared", seed=2)
    again = house.cycle()
    assert again is not None
    assert again.state is CycleState.PUBLISHED
    assert release.get_version(house.store, "declared", "champion").version.megabatches == 2


def test_rotten_examples_are_never_trained_on(house: House) -> None:
    house.create()
    accepted = house.upload()
    path = house.store.blobs.path(accepted.megabatch.x)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    states = [ended.state for ended in iter(house.cycle, None) if ended]
    assert states[-1] is CycleState.FAILED
    assert models.describe_model(house.store, "gas").champion is None


@pytest.mark.slow
def test_a_lost_snapshot_only_costs_time(house: House) -> None:
    house.settings = house.settings.model_copy(update={"snapshot_seconds": 0.0})
    house.create()
    house.upload()
    house.running = DiesAt("doomed", 8)
    with pytest.raises(Killed):
        house.cycle()
    outcomes.reclaim(house.store, house.settings, ACTOR, list)
    with house.store.reading() as tx:
        named = tx.ledger.references(
            [f"sha256:{p.parent.name}{p.name}" for p in house.store.blobs.root.glob("sha256/??/*")]
        )
    arrays = {
        accepted
        for m in ingest.list_megabatches(house.store, "gas", after=None, limit=9)[0].items
        for accepted in (m.x, m.y, m.ids)
    }
    (snapshot,) = named - arrays
    house.store.blobs.discard(snapshot)
    house.running = Running("second")
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.PUBLISHED
    assert "cycle.restarted" in house.kinds()


def test_a_withheld_version_is_kept_and_its_megabatch_stays_eligible(house: House) -> None:
    house.create(
        "gas",
        {
            **RECIPE,
            "guardrails": [{"name": "layer-collapse", "at_least": 0.78}],
            "distribution": {"name": "erdos-renyi-kernel"},  # the larger layer is thinner than the whole
            "schedule": {"name": "one-shot", "target": 0.78},
        },
    )
    house.upload()
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.WITHHELD
    assert models.describe_model(house.store, "gas").champion is None
    version = release.get_version(house.store, "gas", "1").version
    assert not version.verdict.passed
    assert "0.78" in " ".join(version.verdict.reasons)
    assert cycles.request_cycle(house.store, "gas", reason="again", actor=ACTOR).through == 1
    promotion.promote(house.store, "gas", 1, reason="good enough", override=True, expected_revision=0, actor=ACTOR)
    assert house.champion().number == 1
    assert "guardrail.overridden" in house.kinds()


def test_no_replay_trains_on_the_new_megabatch_alone(house: House) -> None:
    house.create("gas", {**RECIPE, "replay": {"name": "none"}})
    house.grow(2)
    with house.store.reading() as tx:
        entries = tx.audit.entries("gas", None, 100, "version.published").items
    assert [e.document["parameters"]["megabatches"] for e in entries] == [[1], [2]]
    assert house.cycle() is None


def test_orphans_are_swept_after_their_grace_and_nothing_else(house: House) -> None:
    house.create()
    house.grow(1)
    orphan = house.store.blobs.put(b"nobody names me")
    settings = house.settings
    assert outcomes.sweep(house.store, settings, ACTOR) == 0
    an_hour_later(house)
    later = settings.model_copy(update={"orphan_grace_seconds": 60.0})
    assert outcomes.sweep(house.store, later, ACTOR) >= 1
    assert not house.store.blobs.has(orphan)
    assert history.examine(house.store) == []


def test_running_statistics_come_back_with_a_rollback(house: House) -> None:
    house.create(normalisation=Normalisation("running"))
    house.grow(2)
    one, two = weights(house, "1").normalisation, weights(house, "2").normalisation
    assert not np.array_equal(one["mean"], two["mean"])
    release.roll_back(
        house.store, "gas", to=None, reason="a broken sensor", quarantine=(2,), expected_revision=house.revision(),
        actor=ACTOR,
    )  # fmt: skip
    np.testing.assert_array_equal(weights(house).normalisation["mean"], one["mean"])
    house.upload(seed=3)
    house.cycle()
    examples = np.concatenate([blob_of_examples(seed)[0] for seed in (1, 3)])
    kept = examples[~is_validation(example_ids(examples), 0.1)].astype(np.float64)
    found = weights(house).normalisation
    assert house.champion().parent == 1
    np.testing.assert_allclose(found["mean"], kept.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["std"], kept.std(axis=0), rtol=1e-6)
