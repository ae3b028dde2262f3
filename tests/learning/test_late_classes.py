"""Classes that come late: the head grows, what was learned stays, and the champion answers with what it knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.domain import Normalisation, Progress
from app.errors import InvalidWeights
from app.learning.architectures import build, load_strictly, prunable_parameters
from app.learning.cycle import CycleInput, CycleResult, Examples
from app.learning.evaluation import evaluate
from app.learning.late_classes import grown
from app.learning.mask import Mask
from app.learning.normalisation import network_shape
from app.learning.plan import Plan
from app.learning.recipe import Recipe
from app.learning.rows import Rows
from app.learning.schedules import kept_at
from tests.learning.cases import (
    CPU,
    Snapshot,
    clusters,
    first_cycle,
    images,
    next_cycle,
    noisy,
    run,
    same_result,
    small_recipe,
    spec_of,
)

KNOWN, NOW = 3, 5

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [12, 10]},
    "cnn": {"name": "cnn", "channels": [4, 6]},
    "resnet18": {"name": "resnet18", "width": 4},
    "resnet50": {"name": "resnet50", "width": 4},
    "custom": {"name": "custom", "architecture": "noisy", "options": {"width": 6}},
}


def later(number: int, make: Callable[..., Examples], labels: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Examples:
    """A megabatch in which these labels occur, in turn."""
    found = make(number)
    return replace(found, y=np.resize(np.array(labels, dtype=np.int64), len(found)))


def grows(
    network: str = "mlp", labels: tuple[int, ...] = (0, 1, 2, 3, 4), **over: Any
) -> tuple[CycleInput, CycleResult]:
    """A cycle whose parent knows three classes where there are five now; and the parent's cycle."""
    make = clusters if network == "mlp" else images
    factory = noisy if network == "custom" else None
    recipe: Recipe = small_recipe(network=NETWORKS[network], **over)
    first = first_cycle(recipe, make(1), architecture=factory)
    before = run(first)
    wider = replace(first.input, classes=tuple(f"class-{label}" for label in range(NOW)))
    given = next_cycle(first, before, later(2, make, labels), input=wider)
    assert given.parent is not None
    return replace(given, parent=replace(given.parent, classes=KNOWN)), before


def fresh(given: CycleInput, plan: Plan) -> dict[str, np.ndarray]:
    assert given.input.shape is not None
    network = build(
        given.recipe.network, network_shape(given.input.shape, given.recipe.network), NOW,
        seed=plan.seed("initial-weights"), factory=given.architecture,
    )  # fmt: skip
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


# -- weights and masks -------------------------------------------------------------------------------------------------


def test_rows_are_added_to_tensors_of_one_row_a_class_alone() -> None:
    old = {"head": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float16), "body": np.ones((4, 3), np.float32)}
    new = {"head": np.full((5, 2), 7.0), "bias": np.full(5, 7.0), "body": np.full((4, 3), 7.0)}
    found = grown(old | {"stray": np.ones(3)}, new, 3, 5)
    assert {name: array.shape for name, array in found.items()} == {
        "head": (5, 2), "bias": (5,), "body": (4, 3), "stray": (3,)
    }  # fmt: skip
    assert found["bias"].dtype == np.float16 and found["head"].dtype == np.float32
    for name in ("head", "bias"):
        assert np.array_equal(found[name][:3], old[name]) and (found[name][3:] == 7).all()
    assert np.array_equal(found["body"], old["body"])


def test_another_shape_beyond_the_first_axis_is_not_grown() -> None:
    old = {"head": np.ones((3, 2))}
    assert grown(old, {"head": np.ones((5, 4))}, 3, 5)["head"].shape == (3, 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_was_learned_is_there_bit_for_bit_and_new_rows_are_fresh_and_kept(network: str) -> None:
    given, before = grows(network)
    plan = Plan(given, CPU)
    wide = fresh(given, plan)
    start = plan.network()
    assert plan.given.parent is not None
    mask = Mask.from_arrays(plan.given.parent.masks, prunable_parameters(start))
    larger = 0
    for name, tensor in start.state_dict().items():
        old, found = before.arrays[name], tensor.numpy()
        rows = len(old) if found.ndim else None
        assert np.array_equal(found[:rows] if found.ndim else found, old), name
        if found.shape != old.shape:
            larger += 1
            assert np.array_equal(found[rows:], wide[name][rows:])
            assert name not in mask or mask[name][rows:].all()
        if name in mask:
            assert np.array_equal(mask[name].numpy()[: len(old)], before.masks[name])
    assert larger == 2, "the head's weight and bias"
    assert mask.kept - before.kept == mask.total - before.total > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_the_planned_count_is_of_the_new_total_and_masks_nest_on_shared_weights(network: str) -> None:
    given, before = grows(network)
    result = run(given)
    plan = Plan(given, CPU)
    assert plan.given.parent is not None
    entered = sum(int(mask.sum()) for mask in plan.given.parent.masks.values())
    assert result.total == sum(mask.size for mask in result.masks.values()) > before.total
    assert result.kept == min(entered, kept_at(result.target_density, result.total)) < entered
    assert result.stage == 2
    for name, mask in result.masks.items():
        assert not (mask[: len(before.masks[name])] & ~before.masks[name]).any()
        assert not result.arrays[name][~mask].any()


def test_without_pruning_every_new_weight_stays() -> None:
    given, before = grows(schedule={"name": "constant"})
    result = run(given)
    assert result.kept == result.total > before.total == before.kept


def test_a_held_lineage_keeps_the_weights_that_it_has_and_the_new_ones() -> None:
    given, before = grows()
    result = run(replace(given, hold="accuracy fell"))
    assert result.kept == before.kept + result.total - before.total
    assert result.stage == 1


def test_the_network_learns_the_classes_that_came_late() -> None:
    given, _ = grows(training={"epochs": 25}, schedule={"name": "constant"})
    many = clusters(2, n=300, classes=NOW)
    result = run(replace(given, megabatches=[*given.megabatches[:-1], many]))
    assert result.arrays["layers.2.weight"].shape == (NOW, 10)
    assert result.metrics["train_accuracy"] > 0.8


def test_a_cycle_after_that_goes_on_from_the_wider_network() -> None:
    given, _ = grows()
    second = run(given)
    third = next_cycle(given, second, later(3, clusters))
    assert third.parent is not None
    result = run(replace(third, parent=replace(third.parent, classes=NOW)))
    for name, mask in result.masks.items():
        assert not (mask & ~second.masks[name]).any()


def test_a_custom_network_that_has_its_classes_elsewhere_is_refused_by_name() -> None:
    class Sideways(torch.nn.Module):
        def __init__(self, features: int, classes: int) -> None:
            super().__init__()
            self.body = torch.nn.Linear(features, 4)
            self.head = torch.nn.Parameter(torch.zeros(4, classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) @ self.head

    def sideways(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        return Sideways(shape[0], classes)

    recipe = small_recipe(network={"name": "custom", "architecture": "sideways"})
    first = first_cycle(recipe, clusters(1), architecture=sideways)
    before = run(first)
    wider = replace(first.input, classes=tuple("abcde"))
    given = next_cycle(first, before, later(2, clusters), input=wider)
    assert given.parent is not None
    with pytest.raises(InvalidWeights, match=r"head has shape \(4, 3\), not \(4, 5\)"):
        run(replace(given, parent=replace(given.parent, classes=KNOWN)))


# -- the champion ------------------------------------------------------------------------------------------------------


def answers(given: CycleInput, before: CycleResult, examples: Examples, chosen: np.ndarray) -> tuple[np.ndarray, Rows]:
    """Logits of the parent's network, as its clients have it."""
    plan = Plan(given, CPU)
    assert given.input.shape is not None
    network = build(
        given.recipe.network, network_shape(given.input.shape, given.recipe.network), KNOWN, factory=given.architecture
    )
    assert load_strictly(network, before.arrays) == []
    rows = plan._rows([examples], [chosen], before.normalisation)
    with torch.inference_mode():
        return network.eval()(torch.cat([x for x, _ in rows.chunks()])).numpy(), rows


@pytest.mark.parametrize("network", ["mlp", "custom"])
def test_on_arrival_the_champion_answers_with_the_classes_that_it_knows(network: str) -> None:
    given, before = grows(network)
    examples = given.megabatches[-1]
    logits, rows = answers(given, before, examples, np.ones(len(examples), dtype=np.bool_))
    known = rows.labels < KNOWN
    tested = run(given).prequential[2]
    assert tested.accuracy == (logits.argmax(1) == rows.labels).mean()
    assert tested.accuracy <= known.mean() < 1
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits[known]), torch.tensor(rows.labels[known]))
    assert tested.loss == pytest.approx(float(loss), rel=1e-5)
    assert (tested.examples, tested.unknown) == (len(examples), int((~known).sum()))


def test_in_the_verdict_the_champion_is_wrong_about_what_it_does_not_know() -> None:
    given, _ = grows()
    plan = Plan(given, CPU)
    found = plan.champion_answers(lambda: None)
    assert found is not None
    unknown = found.labels >= KNOWN
    assert unknown.any() and not found.correct[unknown].any()
    assert found.unknown == unknown.sum() and np.isfinite(found.loss)
    assert (found.predicted < KNOWN).all()
    assert run(given).metrics["champion_validation_accuracy"] == found.accuracy


def test_a_megabatch_of_unseen_classes_alone_has_no_loss_on_arrival() -> None:
    given, _ = grows(labels=(3, 4))
    result = run(given)
    tested = result.prequential[2]
    assert (tested.accuracy, tested.loss, tested.unknown) == (0.0, None, 60)
    assert result.metrics["prequential_accuracy"] == 0.0 and "prequential_loss" not in result.metrics
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    for event in result.events:
        assert json.loads(json.dumps(event.parameters, allow_nan=False)) == event.parameters
    assert all(np.isfinite(value) for value in result.metrics.values())


def test_a_network_that_knows_every_class_is_evaluated_as_ever() -> None:
    given, _ = grows()
    assert given.parent is not None
    same = replace(given.parent, classes=None)
    plan = Plan(replace(given, parent=same, input=spec_of(clusters(1)), megabatches=[clusters(1), clusters(2)]), CPU)
    assert plan.given.parent is same
    network = plan.network()
    assert plan.champion(network) is network
    assert evaluate(network, plan.megabatch(2)).unknown == 0


# -- resumed -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The worker is gone."""


class Kill:
    """Takes the snapshot of the ``n``-th call and kills the worker there."""

    def __init__(self, n: int) -> None:
        self.left, self.snapshot = n, b""

    def __call__(self, progress: Progress, snapshot: Snapshot) -> None:
        self.left -= 1
        if self.left == 0:
            self.snapshot = snapshot()
            raise Killed


@pytest.mark.parametrize("call", [1, 2, 4, 7, 11])
def test_a_killed_cycle_that_grows_goes_on_with_the_same_bits(call: int) -> None:
    given, _ = grows("custom")
    killed = Kill(call)
    with pytest.raises(Killed):
        run(given, killed)
    assert same_result(run(given, snapshot=killed.snapshot), run(given))


def test_the_seed_of_new_rows_is_the_cycles() -> None:
    given, _ = grows()
    one, same, other = (
        Plan(each, CPU).network().state_dict()["layers.2.weight"][KNOWN:]
        for each in (given, given, replace(given, attempt=1))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_normalisation_stays_that_of_the_first_megabatch() -> None:
    given, before = grows()
    assert given.input.normalisation == Normalisation()
    result = run(given)
    assert result.normalisation is not None and before.normalisation is not None
    assert np.array_equal(result.normalisation.mean, before.normalisation.mean)
