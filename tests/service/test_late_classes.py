"""Classes that come late, through the service: uploaded, trained, tested on arrival, rolled back, downloaded."""

import numpy as np
import pytest

from app.domain import CycleState, Progress, Version
from app.service import evaluation, ingest, release
from app.service.lease import Running
from espalier.formats import checkpoint, megabatch
from tests.service.conftest import ACTOR, LIMITS, RECIPE, House, blob_of_examples

LATER: dict[str, object] = {"classes": ("a", "b", "c"), "unseen_classes": "extend"}


def only(seed: int, *labels: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of these classes alone."""
    x, y = blob_of_examples(seed, n=40 * n, classes=6)
    chosen = np.flatnonzero(np.isin(y, labels))[:n]
    return x[chosen], y[chosen]


def trained(house: House, seed: int, *labels: int, n: int = 60) -> Version:
    x, y = only(seed, *labels, n=n)
    house.upload(x=x, y=y)
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED, ended
    return house.champion()


def saved(house: House, ref: str = "champion") -> checkpoint.Checkpoint:
    return checkpoint.decode(release.open_checkpoint(house.store, "gas", ref, "sparse").path)


@pytest.fixture
def growing(house: House) -> House:
    """A model of three classes that may grow, with one version."""
    recipe = {**RECIPE, "guardrails": [], "validation_share": 0.3}
    house.create("gas", recipe, **LATER)
    trained(house, 1, 0, 1, 2)
    return house


def test_the_head_grows_and_what_was_pruned_stays_pruned(growing: House) -> None:
    before = saved(growing)
    version = trained(growing, 2, 0, 3, 4)
    after = saved(growing)
    assert growing.manifest(version.number)["input"]["classes"] == ["a", "b", "c", "class-3", "class-4"]
    assert after.arrays["layers.1.weight"].shape == (5, 16) and after.arrays["layers.1.bias"].shape == (5,)
    for name, mask in after.masks.items():
        assert not (mask[: len(before.masks[name])] & ~before.masks[name]).any()
    assert version.total == 8 * 16 + 5 * 16
    assert version.kept == int(np.floor(version.target_density * version.total + 0.5))
    x, _ = only(3, 0, 1, 2, 3, 4)
    assert after.predict(x).max() <= 4 and before.predict(x).max() <= 2
    assert growing.champion().stage == 2


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "known"), [((0, 3), True), ((3, 4), False), ((3,), False), ((1,), True)])
def test_on_arrival_what_the_champion_does_not_know_is_wrong(
    growing: House, labels: tuple[int, ...], known: bool
) -> None:
    before = saved(growing)
    trained(growing, 2, *labels)
    x, y = only(2, *labels)
    tested = ingest.get_megabatch(growing.store, "gas", 2)[0].prequential
    assert tested is not None
    assert tested.accuracy == pytest.approx(float((before.predict(x) == y).mean()))
    assert (tested.loss is not None) is known
    assert tested.examples == len(x)


def test_a_megabatch_of_one_unseen_example_extends(growing: House) -> None:
    x, y = only(2, 5, n=1)
    growing.upload(x=x, y=y)
    ended = growing.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED
    assert saved(growing).arrays["layers.1.weight"].shape == (6, 16)


def test_a_first_megabatch_of_one_example_waits_for_more(house: House) -> None:
    house.create("gas", RECIPE, **LATER)
    x, y = only(1, 4, n=1)
    accepted = house.upload(x=x, y=y)
    assert accepted.megabatch.histogram == (0, 0, 0, 0, 1)
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.SUPERSEDED
    assert "more examples" in str(ended.reason)
    version = trained(house, 2, 0, 1)
    assert version.megabatches == 2 and len(house.manifest(version.number)["input"]["classes"]) == 5


def test_balanced_weights_and_a_class_without_examples(house: House) -> None:
    recipe = {**RECIPE, "training": {**RECIPE["training"], "class_weights": "balanced"}, "guardrails": []}
    house.create("gas", recipe, **LATER)
    trained(house, 1, 0, 1)
    version = trained(house, 2, 0, 5)
    assert len(house.manifest(version.number)["input"]["classes"]) == 6, "3 and 4 lie between, and nobody has seen them"
    assert all(np.isfinite(value) for value in version.metrics.values())


def test_an_evaluation_set_from_before_is_still_asked(growing: House) -> None:
    x, y = only(9, 0, 1, 2)
    with growing.store.blobs.receiver(LIMITS.max_bytes) as receiver:
        receiver.write(megabatch.encode(x, y))
        evaluation.set_evaluation(growing.store, "gas", receiver.finish(), limits=LIMITS, actor=ACTOR)
    version = trained(growing, 2, 0, 3)
    assert 0 <= version.metrics["evaluation_accuracy"] <= 1


def test_a_rollback_goes_back_to_the_narrower_head_and_grows_it_anew(growing: House) -> None:
    wide = trained(growing, 2, 0, 3, 4)
    revision = growing.revision()
    release.roll_back(
        growing.store, "gas", to="1", reason="worse", quarantine=[2], expected_revision=revision, actor=ACTOR
    )
    assert saved(growing).arrays["layers.1.weight"].shape == (3, 16)
    again = trained(growing, 3, 0, 1)
    assert again.parent == 1 and again.total == wide.total, "the model's classes stay extended"


class Interrupted(Running):
    """A worker that is stopped at its n-th step, when a class arrives."""

    def __init__(self, house: House, left: int) -> None:
        super().__init__("worker-1")
        self.house, self.left = house, left

    def at(self, progress: Progress) -> None:
        self.left -= 1
        if self.left == 0:
            x, y = only(7, 5)
            self.house.upload(x=x, y=y)
            self.stop()
        super().at(progress)


def test_a_class_that_arrives_while_a_cycle_is_put_down_does_not_disturb_it(growing: House) -> None:
    x, y = only(2, 0, 1, 2)
    growing.upload(x=x, y=y)
    growing.running = Interrupted(growing, 6)
    released = growing.cycle()
    assert released is not None and released.state is CycleState.QUEUED
    growing.running = Running("worker-2")
    ended = growing.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED
    assert "cycle.restarted" not in growing.kinds()
    assert growing.manifest()["input"]["classes"] == ["a", "b", "c"]
    after = growing.cycle()
    assert after is not None and after.state is CycleState.PUBLISHED
    assert len(growing.manifest()["input"]["classes"]) == 6
