"""What does a mask cost in training? One optimizer step under a mask against the same step without one.

    python -m benchmarks.masked_step [--pairs 60] [--threads 1]

Four kinds of step are taken in turn, in an order that is reversed every round: without a mask (dense), under ours,
under ours with running scores kept up to date (as while a cycle still prunes by criterion taylor), and under
``torch.nn.utils.prune``. Each round gives one ratio to the dense step; what is printed is the median of the rounds and
its 95 % interval (by ranks). CPU time of the process is measured, not the clock's, so that neighbours on the machine
matter little. Target for ours: <= 1.03 for networks above a million weights; the exit status is 1 when an interval lies
above it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from app.domain import InputSpec, Normalisation
from app.learning.architectures import build, prunable_parameters
from app.learning.mask import Mask, top_k
from app.learning.normalisation import Preparation, network_shape
from app.learning.recipe import Cnn, Mlp, Network, ResNet18, Training
from app.learning.rows import Examples, Rows
from app.learning.running import RunningScores
from app.learning.seeds import seed_for
from app.learning.training import Fit

CPU = torch.device("cpu")
TARGET = 1.03
LARGE = 1_000_000
KINDS = ("dense", "ours", "with scores", "torch.nn.utils.prune")
DENSITY = 0.366

CASES: list[tuple[str, Network, tuple[int, ...], int, dict[str, Any]]] = [
    ("mlp 64-128-128-10, 64", Mlp(), (64,), 64, {"name": "sgd"}),
    ("mlp 784-1024-1024-10, 128", Mlp(hidden=(1024, 1024)), (784,), 128, {"name": "sgd"}),
    ("mlp 784-1024-1024-10, 128, adamw", Mlp(hidden=(1024, 1024)), (784,), 128, {"name": "adamw"}),
    ("cnn 32-64-128, 28 x 28, 64", Cnn(), (28, 28, 1), 64, {"name": "sgd"}),
    ("resnet18 of width 64, 32 x 32, 4", ResNet18(), (32, 32, 3), 4, {"name": "sgd"}),
]


def rows(network: Network, shape: tuple[int, ...], minibatch: int) -> Rows:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(minibatch, *shape)).astype(np.float32), random.integers(0, 10, minibatch)
    spec = InputSpec(shape, "float32", tuple(map(str, range(10))), Normalisation(name="none"))
    examples = Examples(1, x, y.astype(np.int64), np.arange(minibatch, dtype=np.uint64))
    return Rows([examples], [np.ones(minibatch, bool)], Preparation(spec, None, network, CPU), device=CPU, classes=10)


def chosen(network: nn.Module) -> Mask:
    """The largest third of the weights."""
    prunable = prunable_parameters(network)
    mask = Mask.full(prunable)
    return top_k({k: v.detach().abs() for k, v in prunable.items()}, mask, round(DENSITY * mask.total)).mask


def steps(
    network: Network, shape: tuple[int, ...], minibatch: int, optimizer: dict[str, Any]
) -> dict[str, Callable[[], object]]:
    """One optimizer step of each kind, on networks that start alike."""
    options = Training.model_validate({"minibatch": minibatch, "learning_rate": 1e-3, "optimizer": optimizer})
    given = rows(network, shape, minibatch)
    x, y = given.gather(torch.arange(minibatch))
    made: dict[str, Callable[[], object]] = {}
    for kind in KINDS:
        built = build(network, network_shape(shape, network), 10).train()
        prunable, mask, running = prunable_parameters(built), chosen(built), None
        if kind == "dense":
            mask = Mask.full(prunable)
        elif kind == "torch.nn.utils.prune":
            for name in mask:
                prune.custom_from_mask(built.get_submodule(name.removesuffix(".weight")), "weight", mask[name])
            prunable, mask = {}, Mask({})
        else:
            mask.apply(prunable)
            running = RunningScores(prunable, 0.98) if kind == "with scores" else None
        fit = Fit(built, prunable, mask, given, None, options, seed_of, order_of, running)
        made[kind] = lambda fit=fit: fit._learn(x, y)  # type: ignore[misc]  # a lambda's default has no type
    return made


def seed_of(purpose: str) -> int:
    return seed_for(0, 1, 0, purpose)


def order_of(epoch: int) -> torch.Tensor:
    raise AssertionError("steps are taken one by one")


def timed(step: Callable[[], object], times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - begun) / times


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median and the ranks that hold it with 95 % confidence."""
    ordered = np.sort(ratios)
    n, spread = len(ordered), 0.98 * math.sqrt(len(ordered))
    low, high = max(0, math.floor(n / 2 - spread)), min(n - 1, math.ceil(n / 2 + spread))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="rounds")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"CPU time of an optimizer step / the dense one, density {DENSITY}, {options.pairs} rounds")
    print(f"target: ours <= {TARGET} above {LARGE:,} weights")
    print("| network, minibatch | weights | dense, ms | ours | 95 % | with scores | 95 % | torch.nn.utils.prune |")
    print("|---|---|---|---|---|---|---|---|")
    missed = False
    for name, network, shape, minibatch, optimizer in CASES:
        kinds = steps(network, shape, minibatch, optimizer)
        for step in kinds.values():
            timed(step, 5)
        times = max(1, round(0.02 / timed(kinds["dense"], 5)))
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(options.pairs):
            for kind in sorted(kinds, reverse=bool(turn % 2)):
                found[kind].append(timed(kinds[kind], times))
        dense = np.array(found["dense"])
        ours, scored, peer = (interval(np.array(found[kind]) / dense) for kind in KINDS[1:])
        total = chosen(build(network, network_shape(shape, network), 10)).total
        figures = [
            f"{1e3 * np.median(dense):.2f}",
            *("{:.3f} | {:.3f} to {:.3f}".format(*x) for x in (ours, scored)),
            f"{peer[0]:.3f}",
        ]
        print(f"| {name} | {total:,} | {' | '.join(figures)} |", flush=True)
        missed |= total > LARGE and ours[1] > TARGET
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
