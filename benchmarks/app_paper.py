"""Does the product reach what was measured of APP as the paper describes it? Through ``run_cycle`` itself.

    python -m benchmarks.app_paper [--seeds 5] [--gas PATH] [--select best-epoch]

Digits: scikit-learn's 1,797 images, 1,296 train in 8 megabatches, 500 test. Gas: UCI Gas Sensor Array Drift, natural
batches in order, train on all up to t, test on the next (prequential). Prints final / anytime test accuracy in %, the
mean over paired seeds, beside the reference: the same protocol in a separate program. Density is asserted to the weight
at every stage. The exit status is 1 when ``app-paper`` lies more than 1 point and two standard errors below it (one
seed alone is not judged).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

from app.domain import InputSpec, Normalisation, Progress
from app.learning.architectures import build, load_strictly
from app.learning.cycle import CycleInput, CycleResult, Examples, Parent, run_cycle
from app.learning.normalisation import Preparation, network_shape
from app.learning.recipe import Recipe
from app.learning.rows import Rows
from app.learning.schedules import density_at, kept_at
from app.learning.training import evaluate
from espalier.formats.megabatch import example_ids

CPU = torch.device("cpu")

REFERENCE = {
    ("digits", "dense"): (97.6, 93.9),
    ("digits", "one-shot"): (96.5, 93.3),
    ("digits", "app-paper"): (97.0, 93.0),
    ("gas", "dense"): (86.8, 83.3),
    ("gas", "one-shot"): (85.1, 81.7),
    ("gas", "app-paper"): (87.7, 83.2),
}


class Stream(NamedTuple):
    """Megabatches in order, and what each stage is tested on."""

    name: str
    train: list[tuple[np.ndarray, np.ndarray]]
    test: list[tuple[np.ndarray, np.ndarray]]
    input: InputSpec
    recipe: dict[str, Any]


def digits(seed: int) -> Stream:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    train = [(x[i : i + 162], y[i : i + 162]) for i in range(0, 1296, 162)]
    spec = InputSpec((64,), "float32", tuple(map(str, range(10))), Normalisation())
    recipe = {
        "network": {"hidden": [128, 128]},
        "training": {"epochs": 25, "learning_rate": 0.1, "minibatch": 64},
    }
    return Stream("digits", train, [(x[1296:1796], y[1296:1796])] * 8, spec, recipe)


def gas(path: Path) -> Stream:
    with np.load(path, allow_pickle=False) as data:
        x, y, batch = data["x"], data["y"], data["batch"]
    parts = [(x[batch == number], y[batch == number]) for number in np.unique(batch)]
    spec = InputSpec((128,), "float32", tuple("012345"), Normalisation(signed_log=True, clip=8.0))
    recipe = {
        "network": {"hidden": [128, 64]},
        "schedule": {"stages": len(parts) - 1},
        "training": {"epochs": 12, "learning_rate": 0.05, "minibatch": 64},
    }
    return Stream("gas", parts[:-1], parts[1:], spec, recipe)


def quiet(progress: Progress, snapshot: Callable[[], bytes]) -> None:
    """An observer that looks away."""


def accuracy(result: CycleResult, stream: Stream, recipe: Recipe, x: np.ndarray, y: np.ndarray) -> float:
    shape = network_shape(stream.input.shape, recipe.network)
    classes = len(stream.input.classes)
    network = build(recipe.network, shape, classes, seed=0, device=CPU, factory=None)
    assert not load_strictly(network, result.arrays)
    prepare = Preparation(stream.input, result.normalisation, recipe.network, CPU)
    examples = Examples(1, x, y, example_ids(x))
    return evaluate(network, Rows([examples], [np.ones(len(y), bool)], prepare, device=CPU, classes=classes)).accuracy


def run(stream: Stream, recipe: Recipe) -> list[float]:
    """Test accuracy after every megabatch."""
    given = [Examples(i + 1, x, y, example_ids(x)) for i, (x, y) in enumerate(stream.train)]
    parent, found = None, []
    for t, (x, y) in enumerate(stream.test, start=1):
        cycle = CycleInput(recipe, stream.input, parent, 0, given[:t], frozenset({t}), frozenset({t}))
        result = run_cycle(cycle, device=CPU, observe=quiet)
        assert result.kept == kept_at(density_at(recipe.schedule, result.stage), result.total)
        parent = Parent(result.arrays, result.masks, result.stage, result.depth, result.normalisation)
        found.append(accuracy(result, stream, recipe, x, y))
    return found


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(out.get(key), dict) and isinstance(value, dict) else value
    return out


def study(make: Callable[[int], Stream], preset: str, seeds: int, select: str) -> tuple[np.ndarray, float, Stream]:
    """Accuracy in % by seed and megabatch, the final density, and a stream of the kind."""
    rows, density = [], 1.0
    for seed in range(seeds):
        stream = make(seed)
        document = merged(stream.recipe, {"preset": preset, "seed": seed, "training": {"select": select}})
        if preset != "app-paper":
            document.pop("schedule", None)
        recipe = Recipe.resolve(document)
        rows.append(run(stream, recipe))
        density = density_at(recipe.schedule, len(stream.train))
    return 100 * np.array(rows), density, stream


def report(make: Callable[[int], Stream], preset: str, seeds: int, select: str) -> bool:
    """Print one line; whether the figures are as good as the reference, within noise."""
    begun = time.perf_counter()
    table, density, stream = study(make, preset, seeds, select)
    expected = REFERENCE[stream.name, preset]
    cells, good = [], True
    for values, reference in zip((table[:, -1], table.mean(axis=1)), expected, strict=True):
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        cells.append(f"{values.mean():.1f} +- {error:.1f}")
        good &= len(values) < 2 or values.mean() >= reference - 1 - 2 * error
    spent = time.perf_counter() - begun
    line = [stream.name, preset, f"{density:.3f}", *cells, f"{expected[0]} / {expected[1]}", f"{spent:.0f}"]
    print(f"| {' | '.join(line)} |", flush=True)
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds")
    parser.add_argument("--gas", type=Path, help="UCI Gas Sensor Array Drift as npz: x (n, 128), y and batch")
    parser.add_argument("--select", choices=["best-epoch", "last"], default="best-epoch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    streams: list[Callable[[int], Stream]] = [digits]
    if options.gas is not None:
        streams.append(lambda seed: gas(options.gas))
    else:
        print("gas: skipped; name the data with --gas PATH")
    print(f"final and anytime test accuracy in %, mean of {options.seeds} seeds +- standard error; {options.select}")
    print("| stream | preset | density | final | anytime | reference | seconds |\n|---|---|---|---|---|---|---|")
    presets = ("dense", "one-shot", "app-paper")
    good = {
        (index, preset): report(make, preset, options.seeds, options.select)
        for index, make in enumerate(streams)
        for preset in presets
    }
    return int(not all(fine for (_, preset), fine in good.items() if preset == "app-paper"))


if __name__ == "__main__":
    sys.exit(main())
