"""Rounding: what is measured and judged is what is published, and the next cycle starts from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from app.domain import Progress
from app.errors import LearningFailed
from app.learning.architectures import load_strictly
from app.learning.evaluation import evaluate
from app.learning.plan import Plan, starting_network
from app.learning.recipe import Recipe
from espalier.formats import checkpoint
from espalier.formats.writer import rounded
from tests.learning.cases import (
    CPU,
    Snapshot,
    clusters,
    events_of,
    first_cycle,
    gradual,
    next_cycle,
    run,
    same_arrays,
    same_result,
)

KINDS = ("bfloat16", "float16")


def rounding(values: str) -> Recipe:
    return Recipe.resolve(gradual().document() | {"checkpoint": {"values": values}})


def test_weights_are_published_as_they_were_trained_unless_the_recipe_says_otherwise() -> None:
    assert gradual().checkpoint.values == "float32"
    result = run(first_cycle(gradual(), clusters(1)))
    assert "unrounded_validation_accuracy" not in result.metrics
    assert "values" not in events_of(result, "network.trained")[0]
    assert any((array != rounded(array, "bfloat16", name)).any() for name, array in result.arrays.items())


@pytest.mark.parametrize("values", KINDS)
def test_what_is_published_is_the_trained_network_rounded(values: str) -> None:
    exact, result = (run(first_cycle(rounding(kind), clusters(1))) for kind in ("float32", values))
    for name, array in exact.arrays.items():
        published = rounded(array, values, name) if name in exact.masks else array
        np.testing.assert_array_equal(result.arrays[name], published)
    assert same_arrays(result.masks, exact.masks)
    assert result.metrics["unrounded_validation_accuracy"] == exact.metrics["validation_accuracy"]
    trained = events_of(result, "network.trained")[0]
    assert trained["values"] == values
    assert trained["unrounded_validation_accuracy"] == exact.metrics["validation_accuracy"]


@pytest.mark.parametrize("values", KINDS)
def test_every_accuracy_is_of_what_is_published(values: str) -> None:
    given = first_cycle(rounding(values), clusters(1, noise=2.0))
    result = run(given)
    network = starting_network(given, 0, CPU)
    assert not load_strictly(network, result.arrays)
    answers = evaluate(network, Plan(given, CPU).verdict)
    assert result.metrics["validation_accuracy"] == answers.accuracy
    assert result.metrics["validation_loss"] == answers.loss


@pytest.mark.parametrize("values", KINDS)
def test_a_checkpoint_holds_it_without_another_loss_and_the_next_cycle_goes_on_from_it(values: str) -> None:
    given = first_cycle(rounding(values), clusters(1))
    result = run(given)
    manifest = {"values": values, "metrics": result.metrics}
    saved = checkpoint.decode(checkpoint.encode(result.arrays, result.masks, manifest))
    assert {name: array.tobytes() for name, array in saved.arrays.items()} == {
        name: array.tobytes() for name, array in result.arrays.items()
    }
    after = run(next_cycle(given, result, clusters(2)))  # checks that it scores and trains its parent's very weights
    assert after.depth == 2
    assert after.kept < result.kept


def test_killed_at_any_call_around_the_rounding_it_gives_the_same_bits() -> None:
    given = first_cycle(rounding("bfloat16"), clusters(1))
    calls: list[str] = []
    whole = run(given, lambda progress, snapshot: calls.append(progress.phase.value))
    last = len(calls) - calls[::-1].index("train") - 1
    for stop in range(last - 4, len(calls)):
        assert same_result(run(given, snapshot=stopped(given, stop)), whole), f"call {stop}"


class Killed(Exception):
    """The worker is gone."""


def stopped(given: Any, call: int) -> bytes:
    """The snapshot that a cycle left when it was killed at a call of its observer."""
    taken: list[bytes] = []
    left = iter(range(call))

    def observe(progress: Progress, snapshot: Snapshot) -> None:
        if next(left, None) is None:
            taken.append(snapshot())
            raise Killed

    with pytest.raises(Killed):
        run(given, observe)
    return taken[0]


def test_a_weight_that_is_too_large_fails_with_the_remedy() -> None:
    given = first_cycle(rounding("float16"), clusters(1))
    network = starting_network(given, 0, CPU)
    arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    arrays["layers.0.weight"][0] = 1e5
    recipe = given.recipe.document()
    recipe["training"]["learning_rate"] = 1e-12
    recipe["schedule"] = {"name": "constant"}
    given = first_cycle(Recipe.resolve(recipe), clusters(1), initial=arrays)
    with pytest.raises(LearningFailed, match="more than float16 holds: set checkpoint.values to bfloat16"):
        run(given)


def test_rounding_leaves_tensors_of_other_kinds_alone() -> None:
    double = np.array([1 / 3])
    assert rounded(double, "bfloat16", "w") is double
    assert torch.tensor(rounded(np.float32([1 / 3]), "bfloat16", "w")).bfloat16().float().item() == 0.333984375
