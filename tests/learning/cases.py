"""Small learning problems: seeded, quick on one thread, and hard enough that masks and epochs matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.domain import InputSpec, Normalisation, Progress
from app.learning.cycle import CycleInput, CycleResult, Examples, Parent, run_cycle
from app.learning.recipe import Recipe
from espalier.formats.megabatch import example_ids

CPU = torch.device("cpu")

Snapshot = Callable[[], bytes]


def quiet(progress: Progress, snapshot: Snapshot) -> None:
    """An observer that looks away."""


def clusters(number: int, n: int = 60, features: int = 8, classes: int = 3, noise: float = 1.0) -> Examples:
    """Gaussian clusters of very different scales; the centres are the same in every megabatch."""
    centres = np.random.default_rng(1).normal(size=(classes, features))
    random = np.random.default_rng(100 + number)
    y = random.integers(0, classes, n)
    x = (centres[y] + noise * random.normal(size=(n, features))) * np.logspace(-2, 2, features)
    x = x.astype(np.float32)
    return Examples(number, x, y.astype(np.int64), example_ids(x))


def images(number: int, n: int = 40, side: int = 8, channels: int = 1, classes: int = 3) -> Examples:
    """uint8 images with a bright band whose place is the class."""
    random = np.random.default_rng(200 + number)
    y = random.integers(0, classes, n)
    x = random.integers(0, 120, (n, side, side, channels))
    for row, label in enumerate(y):
        x[row, label * side // classes : (label + 1) * side // classes] += 80
    x = x.astype(np.uint8)
    return Examples(number, x, y.astype(np.int64), example_ids(x))


def spec_of(examples: Examples, classes: int = 3, **normalisation: Any) -> InputSpec:
    names = tuple(f"class-{label}" for label in range(classes))
    return InputSpec(examples.x.shape[1:], str(examples.x.dtype), names, Normalisation(**normalisation))


def small_recipe(**over: Any) -> Recipe:
    """Two epochs of a tiny mlp, a third of the examples held out."""
    training = {"epochs": 2, "minibatch": 16, "learning_rate": 0.05} | over.pop("training", {})
    document = {
        "preset": "app-paper",
        "seed": 7,
        "network": {"name": "mlp", "hidden": [12, 10]},
        "schedule": {"name": "app", "stages": 4},
        "validation_share": 0.34,
        "training": training,
    }
    return Recipe.resolve(document | over)


def gradual(criterion: dict[str, Any] | None = None, network: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """Like the default recipe: pruned over a ramp within the cycle."""
    return small_recipe(
        preset="espalier", schedule={"name": "factor", "stages": 4}, criterion=criterion or {"name": "taylor"},
        pace={"steps": 4}, network=network or {"name": "mlp", "hidden": [12, 10]},
        training={"minibatch": 8, "least_steps": 0, "rate": {"name": "cosine"}} | training,
    )  # fmt: skip


def first_cycle(recipe: Recipe, *examples: Examples, **over: Any) -> CycleInput:
    given = examples or (clusters(1),)
    numbers = frozenset(e.number for e in given)
    spec = over.pop("input", None) or spec_of(given[0])
    return replace(CycleInput(recipe, spec, None, 0, given, numbers, numbers), **over)


def parent_of(result: CycleResult) -> Parent:
    return Parent(result.arrays, result.masks, result.stage, result.depth, result.normalisation, result.history)


def next_cycle(before: CycleInput, result: CycleResult, *examples: Examples, **over: Any) -> CycleInput:
    """The cycle after ``result``, with new megabatches."""
    numbers = frozenset(e.number for e in examples)
    kept = [e for e in before.megabatches if e.number in result.replay]
    given = replace(
        before, parent=parent_of(result), megabatches=[*kept, *examples], new=numbers, untested=numbers,
        replay=result.replay,
    )  # fmt: skip
    return replace(given, **over)


def run(given: CycleInput, observe: Any = quiet, snapshot: bytes | None = None) -> CycleResult:
    return run_cycle(given, device=CPU, observe=observe, snapshot=snapshot)


def second_cycle(recipe: Recipe, make: Callable[[int], Examples] = clusters, **over: Any) -> CycleInput:
    """The input of a cycle that has a parent, so that every phase has something to do."""
    first = first_cycle(recipe, make(1), **over)
    return next_cycle(first, run(first), make(2))


def same_arrays(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def same_result(a: CycleResult, b: CycleResult) -> bool:
    """Bit-identical arrays, masks and buffers; equal metrics, verdicts, histories and events."""
    plain = [
        (r.metrics, r.verdict, r.prequential, r.events, r.stage, r.depth, r.layers, r.trained, r.history, r.report)
        for r in (a, b)
    ]
    buffers = [{str(number): rows for number, rows in r.replay.items()} for r in (a, b)]
    return (
        same_arrays(*buffers)
        and same_arrays(a.arrays, b.arrays)
        and same_arrays(a.masks, b.masks)
        and plain[0] == plain[1]
    )


class Noisy(nn.Module):
    """A user's network with everything that carries state: convolution, batch normalisation, dropout, own buffers."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)) + 1e-3 * self.calls
        return self.head(self.drop(hidden))


def noisy(shape: tuple[int, ...], classes: int, width: int = 6) -> nn.Module:
    return Noisy(shape, classes, width)


def events_of(result: CycleResult, kind: str) -> list[dict[str, Any]]:
    """Parameters of the events of one kind."""
    return [event.parameters for event in result.events if event.kind == kind]
