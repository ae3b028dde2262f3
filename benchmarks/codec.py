"""How small are checkpoints, and what does it take to write and read them?

    python -m benchmarks.codec [--data FOLDER] [--rounds 5]

Two networks, at three densities each. One is trained and pruned by our own cycle, on the Fashion-MNIST images that lie
in ``FOLDER/fashion_mnist`` (``fashion_mnist_train_0.npz`` with ``x`` and ``y``), or else on the digits of scikit-learn.
The other has the shapes of a ResNet-50, 25.6 million weights, drawn from normal distributions as wide as networks are
initialised and pruned by magnitude across layers: it is there for its size.

The floor is what no code can go below that takes weights one by one: ``n H(p) / 8`` bytes for a mask, and for the kept
values the order-0 entropy of each of their four byte planes, over the whole network; what is not pruned as it is.
Beside it: ours; mask bits and raw values, which is the format before; compressed sparse rows with 32-bit indices; and
the dense safetensors under zstd. Targets for ours: <= 1.05 x the floor (and the header, which small networks feel:
2 kB are free), <= 0.55 x the sparse rows. Ours may lie below the floor, since it looks at each layer by itself and at
exponents in one piece.

Times are ratios of CPU time, medians of rounds in which the ways take turns: ``encode`` to ``torch.save`` of the dense
state, ``decode`` to ``torch.load`` of its file. Each is measured once in a process of its own, which is what somebody
who loads a checkpoint has: in a loop, the second load would reuse the memory of the first, which is half of its time.
Targets: <= 3, where files are large enough that time is the codec's (above a million weights). Memory is the peak of
what Python and numpy hold beyond the result, in multiples of the largest tensor. The exit status is 1 on a miss.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors.numpy import save
from sklearn.datasets import load_digits

from app.domain import InputSpec, Normalisation
from app.learning.cycle import CycleInput, Examples, run_cycle
from app.learning.recipe import Recipe
from benchmarks.selection import resnet50
from espalier.formats.checkpoint import decode, encode
from espalier.formats.megabatch import example_ids

DENSITIES = (0.366, 0.10, 0.05)
FLOOR, ROWS, TIME, LARGE, FREE = 1.05, 0.55, 3.0, 1_000_000, 2048

FORK = multiprocessing.get_context("fork")

Arrays = dict[str, np.ndarray]


# -- networks ----------------------------------------------------------------------------------------------------------


def labelled(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images as rows of float32, and their labels."""
    file = data / "fashion_mnist" / "fashion_mnist_train_0.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as found:
            x, y = found["x"][:10_000], found["y"][:10_000]
        return x.reshape(len(x), -1).astype(np.float32), y.astype(np.int64)
    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y.astype(np.int64)


def trained(x: np.ndarray, y: np.ndarray, density: float) -> tuple[Arrays, Arrays]:
    """A perceptron after one cycle of pruning and retraining."""
    document = {
        "network": {"name": "mlp", "hidden": [512, 512]},
        "schedule": {"name": "one-shot", "target": density},
        "training": {"epochs": 3},
    }
    names = tuple(str(label) for label in range(10))
    spec = InputSpec(x.shape[1:], "float32", names, Normalisation())
    one = frozenset({1})
    given = CycleInput(Recipe.resolve(document), spec, None, 0, [Examples(1, x, y, example_ids(x))], one, one)
    result = run_cycle(given, device=torch.device("cpu"), observe=lambda progress, snapshot: None)
    return result.arrays, result.masks


def drawn(density: float) -> tuple[Arrays, Arrays]:
    """Normal weights in the shapes of a ResNet-50, pruned by magnitude across layers."""
    source = np.random.default_rng(0)
    arrays = {
        name: source.standard_normal(shape, np.float32) * np.float32((2 / shape[1:].numel()) ** 0.5)
        for name, shape in resnet50().items()
    }
    sample = np.concatenate([np.abs(array).reshape(-1)[::16] for array in arrays.values()])
    threshold = np.quantile(sample, 1 - density)
    masks = {name: np.abs(array) >= threshold for name, array in arrays.items()}
    return {name: np.where(masks[name], array, np.float32(0)) for name, array in arrays.items()}, masks


# -- sizes -------------------------------------------------------------------------------------------------------------


def entropy(counts: np.ndarray) -> float:
    """Bytes that all draws together cannot do without."""
    share = counts[counts > 0] / counts.sum()
    return float(-(counts[counts > 0] * np.log2(share)).sum()) / 8


def sizes(arrays: Arrays, masks: Arrays) -> dict[str, int]:
    """Bytes of each way, ours last."""
    kept = np.concatenate([arrays[name][mask] for name, mask in masks.items()])
    planes = kept.view(np.uint8).reshape(-1, 4).T
    weights = sum(mask.size for mask in masks.values())
    rest = sum(array.nbytes for name, array in arrays.items() if name not in masks)
    ones = np.array([len(kept), weights - len(kept)])
    rows = sum(len(mask) + 1 for mask in masks.values())
    return {
        "floor": round(entropy(ones) + sum(entropy(np.bincount(plane)) for plane in planes) + rest),
        "bits + values": sum(-(-mask.size // 8) for mask in masks.values()) + kept.nbytes + rest,
        "int32 rows": 8 * len(kept) + 4 * rows + rest,
        "dense, zstd": len(zstandard.ZstdCompressor(level=3).compress(save(arrays))),
        "ours": len(encode(arrays, masks, {})),
    }


def rounded(arrays: Arrays, masks: Arrays, kind: str) -> int:
    return len(encode(arrays, masks, {"values": kind}))


# -- times and memory --------------------------------------------------------------------------------------------------


def spent(step: Callable[[], object]) -> float:
    """CPU seconds of a step, in a fork of this process."""
    receiver, sender = FORK.Pipe(duplex=False)

    def measure() -> None:
        begun = time.process_time()
        result = step()
        sender.send(time.process_time() - begun)
        del result

    process = FORK.Process(target=measure)
    process.start()
    seconds: float = receiver.recv()
    process.join()
    return seconds


def ratios(arrays: Arrays, masks: Arrays, rounds: int, folder: Path) -> tuple[float, float]:
    """CPU time of ``encode`` / ``torch.save``, and of ``decode`` / ``torch.load``."""
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    dense, sparse = folder / "dense.pt", folder / "sparse.safetensors"
    torch.save(state, dense)
    sparse.write_bytes(encode(arrays, masks, {}))
    steps: Mapping[str, Callable[[], object]] = {
        "save": lambda: torch.save(state, io.BytesIO()),
        "encode": lambda: encode(arrays, masks, {}),
        "load": lambda: torch.load(dense, weights_only=True),
        "decode": lambda: decode(sparse),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in sorted(steps, reverse=bool(turn % 2)):
            seconds[name].append(spent(steps[name]))
    found = {name: np.array(each) for name, each in seconds.items()}
    return float(np.median(found["encode"] / found["save"])), float(np.median(found["decode"] / found["load"]))


def memory(arrays: Arrays, masks: Arrays) -> tuple[float, float]:
    """Peak of encoding and of decoding beyond the result, in multiples of the largest tensor."""
    largest = max(array.nbytes for array in arrays.values())
    tracemalloc.start()
    data = encode(arrays, masks, {})
    writing = tracemalloc.get_traced_memory()[1] - len(data)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = decode(data)
    result = sum(array.nbytes for group in (found.arrays, found.masks) for array in group.values())
    reading = tracemalloc.get_traced_memory()[1] - held - result
    tracemalloc.stop()
    return writing / largest, reading / largest


# -- the table ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with fashion_mnist in it")
    parser.add_argument("--rounds", type=int, default=7, help="of the times")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    x, y = labelled(options.data)
    networks: dict[str, Callable[[float], tuple[Arrays, Arrays]]] = {
        f"mlp {x.shape[1]}-512-512-10, trained": lambda density: trained(x, y, density),
        "resnet50, drawn": drawn,
    }
    print(f"kB; targets for ours: {FLOOR} x the floor, {ROWS} x int32 rows, {TIME:g} x torch.save and torch.load")
    print(
        "| network | density | floor | bits + values | int32 rows | dense, zstd | ours | of the floor | of int32 rows ",
        end="",
    )
    print("| bfloat16 | float16 | encode / save | decode / load | memory: encode | decode |\n|" + 15 * "---|")
    missed = False
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as folder:
        for name, make in networks.items():
            for density in DENSITIES:
                arrays, masks = make(density)
                found = sizes(arrays, masks)
                ours, floor, rows = found["ours"], found["floor"], found["int32 rows"]
                halves = [rounded(arrays, masks, kind) for kind in ("bfloat16", "float16")]
                times = ratios(arrays, masks, options.rounds, Path(folder))
                peaks = memory(arrays, masks)
                kilo = " | ".join(f"{size / 1e3:,.1f}" for size in found.values())
                lossy = " | ".join(f"{size / 1e3:,.1f}" for size in halves)
                spread = " | ".join(f"{each:.2f}" for each in (*times, *peaks))
                print(f"| {name} | {density} | {kilo} | {ours / floor:.3f} | {ours / rows:.3f} | {lossy} | {spread} |")
                sys.stdout.flush()
                slow = sum(mask.size for mask in masks.values()) > LARGE and max(times) > TIME
                missed |= ours - FREE > FLOOR * floor or ours > ROWS * rows or slow
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
