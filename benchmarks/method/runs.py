"""One run: a row on a stream with a seed, cycle after cycle through the product's own ``run_cycle``, and its figures.

Knows: how a lineage is made and measured. Must never know: how runs are compared.

Laws:
    * The weights that are kept are counted anew from the masks, against a plan that is computed here, at every stage;
      pruned weights are zero and masks are nested. A run in which one of these fails has no figures.
    * The same stream, row, seed and code give the same accuracies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from app.domain import Progress
from app.learning.architectures import build, load_strictly, prunable_parameters
from app.learning.cycle import CycleInput, CycleResult, Examples, Parent, run_cycle
from app.learning.evaluation import evaluate
from app.learning.normalisation import Preparation, network_shape
from app.learning.recipe import Recipe
from app.learning.rows import Rows
from benchmarks.method.reference import Reference
from benchmarks.method.rows import Row
from benchmarks.method.streams import Stream
from espalier.formats.megabatch import example_ids

Figures = dict[str, Any]


def run(stream: Stream, row: Row, seed: int, device: torch.device) -> Figures:
    """All figures of one run, as plain JSON values; lists have one element for each megabatch.

    Raises:
        AssertionError: when a law of the module does not hold.
    """
    recipe = row.recipe(stream, seed)
    checked = _Checked(recipe, exact=not row.reference)
    positions = output_positions(recipe, stream, device)
    found: dict[str, list[Any]] = {name: [] for name in _PER_STAGE}
    before = time.process_time(), time.perf_counter()
    for (x, y), result in zip(stream.test, lineage(stream, recipe, device, row.reference), strict=True):
        after = time.process_time(), time.perf_counter()
        checked.add(result)
        right = accuracy(result, stream, recipe, x, y, device)
        metrics = result.metrics
        stage = {
            "accuracy": right,
            "wrong": len(y) - round(right * len(y)),
            "tested": len(y),
            "train": metrics.get("train_accuracy"),
            "validation": metrics.get("validation_accuracy"),
            "validated": metrics.get("validation_accuracy") is not None,
            "prequential": {str(number): tested.accuracy for number, tested in result.prequential.items()},
            "cpu_seconds": after[0] - before[0],
            "seconds": after[1] - before[1],
            "training_macs": training_macs(result, positions),
            "macs": sum(positions[name] * int(kept.sum()) for name, kept in result.masks.items()),
            "metrics": metrics,
        }
        for name, value in stage.items():
            found[name].append(value)
        before = time.process_time(), time.perf_counter()
    return {**found, "kept": checked.kept, "planned": checked.planned, "total": checked.total}


_PER_STAGE = (
    "accuracy", "wrong", "tested", "train", "validation", "validated", "prequential", "cpu_seconds", "seconds",
    "training_macs", "macs", "metrics",
)  # fmt: skip


def lineage(stream: Stream, recipe: Recipe, device: torch.device, reference: bool = False) -> Iterator[CycleResult]:
    """One result for each megabatch, each the parent of the next, whatever its verdict."""
    given = [Examples(t, x, y, example_ids(x)) for t, (x, y) in enumerate(stream.train, start=1)]
    parent: Parent | None = None
    replayed: Mapping[int, Any] = {}
    code: Reference | None = None
    for t in range(1, len(given) + 1):
        untested = frozenset({t}) if parent else frozenset[int]()
        cycle = CycleInput(recipe, stream.input, parent, 0, given[:t], frozenset({t}), untested, replayed)
        if reference:
            code = code or Reference(cycle, len(given), device)
            cycle = replace(cycle, parent=code.before(t, parent))
        result = run_cycle(cycle, device=device, observe=_look_away)
        yield result
        parent = Parent(result.arrays, result.masks, result.stage, result.depth, result.normalisation, result.history)
        replayed = result.replay


def _look_away(progress: Progress, snapshot: Callable[[], bytes]) -> None:
    """An observer that sees nothing."""


def accuracy(result: CycleResult, stream: Stream, recipe: Recipe, x: Any, y: Any, device: torch.device) -> float:
    """Test accuracy of a version, from its arrays alone."""
    assert stream.input.shape is not None and stream.input.classes is not None
    classes = len(stream.input.classes)
    network = build(recipe.network, network_shape(stream.input.shape, recipe.network), classes, device=device)
    assert not load_strictly(network, result.arrays)
    prepare = Preparation(stream.input, result.normalisation, recipe.network, device)
    rows = Rows([Examples(1, x, y, np.zeros(len(y), np.uint64))], [np.ones(len(y), bool)], prepare, device=device,
                classes=classes, hold=False)  # fmt: skip
    return evaluate(network, rows).accuracy


# -- density, counted anew ---------------------------------------------------------------------------------------------


def planned(recipe: Recipe, t: int, total: int) -> int | None:
    """Weights that are to be kept after megabatch t; None where the schedule looks at more than t.

    Written from the papers' formulas, not from ``app.learning.schedules``: one is checked against the other.
    """
    schedule = recipe.schedule.model_dump()
    match schedule["name"]:
        case "constant":
            density = 1.0
        case "one-shot":
            density = schedule["target"]
        case "app":
            deltas = np.linspace(schedule["tau"], 1, schedule["stages"])[::-1]  # of one, the last
            density = 0.8 ** deltas[min(t, schedule["stages"]) - 1]
        case "factor":
            density = math.exp(math.log(schedule["target"]) * min(1.0, t / schedule["stages"]))
        case _:
            return None
    return max(1, math.floor(density * total + 0.5))


@dataclass
class _Checked:
    """Counts of a lineage, each one checked when it is added."""

    recipe: Recipe
    exact: bool
    kept: list[int] = field(default_factory=list)
    planned: list[int | None] = field(default_factory=list)
    total: int = 0
    _masks: dict[str, Any] = field(default_factory=dict)

    def add(self, result: CycleResult) -> None:
        masks = result.masks
        self.total = sum(mask.size for mask in masks.values())
        kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
        wanted = planned(self.recipe, len(self.kept) + 1, self.total) if self.exact else None
        assert wanted in (None, kept), f"{kept} weights are kept where {wanted} were planned"
        assert not any(np.any(result.arrays[name][~mask]) for name, mask in masks.items()), (
            "pruned weights are not zero"
        )
        assert not any(np.any(mask & ~self._masks[name]) for name, mask in masks.items() if self._masks), "not nested"
        self.kept.append(kept)
        self.planned.append(wanted)
        self._masks = masks


# -- arithmetic --------------------------------------------------------------------------------------------------------


def output_positions(recipe: Recipe, stream: Stream, device: torch.device) -> dict[str, int]:
    """How often each weight of a prunable tensor is used for one example: 1, or a convolution's output positions."""
    assert stream.input.shape is not None and stream.input.classes is not None
    shape = network_shape(stream.input.shape, recipe.network)
    network = build(recipe.network, shape, len(stream.input.classes), device=device).eval()
    names = {id(parameter): name for name, parameter in prunable_parameters(network).items()}
    found: dict[str, int] = {}

    def note(module: Any, _: Any, out: torch.Tensor) -> None:
        found[names[id(module.weight)]] = out[0].numel() // out.shape[1]

    for module in network.modules():
        if id(getattr(module, "weight", None)) in names:
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.zeros(2, *shape, device=device))
    return found


def training_macs(result: CycleResult, positions: Mapping[str, int]) -> float:
    """Multiply-adds of a cycle's training if pruned weights cost nothing: thrice the forward pass, step by step."""
    trained = next(event.parameters for event in result.events if event.kind == "network.trained")
    pruned = [event.parameters for event in result.events if event.kind == "mask.pruned"]
    now = sum(positions[name] * int(kept.sum()) for name, kept in result.masks.items())
    total, until = 0.0, trained["steps"]
    for event in reversed(pruned):
        total += now * (until - event["optimizer_step"])
        until = event["optimizer_step"]
        now = sum(positions[layer["name"]] * layer["kept_before"] for layer in event["layers"])
    return 3 * (total + now * until) * result.metrics["examples_seen"] / trained["steps"]
