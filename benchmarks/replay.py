"""How fast are examples read? The replay store against memory, the disk, and what is usual.

    python -m benchmarks.replay [--rounds 7] [--gigabytes 2.5] [--folder DIR] [--threads 1]

The first table reads a whole epoch of 60,000 rows of float32 in minibatches of 128, from six megabatches: out of one
tensor in memory (``index_select``, the limit), by blocks, by exact random rows, and by the peers, which hold the same
rows in one file. Ways take turns; each round gives one ratio of CPU time (children included) to the one in memory.
Printed are samples per CPU second and the medians of the ratios. Targets: >= 0.9 by blocks and >= 0.4 by exact random
rows of 3 KB; 0.6 and 0.2 of 512 bytes.

The second table reads a store that is not in the page cache: its pages are dropped before every way. The floor is to
read all of its bytes in order. "Read / used" is what the disk gave over what was asked for. "Anonymous" is how much the
process grew meanwhile, mapped pages aside. Targets: >= 0.9 of the floor by blocks, <= 64 MB of anonymous memory.

The third is the share of a training step of the small CNN that reading and normalising its minibatch takes. Target:
<= 5 %.

The exit status is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from app.domain import InputSpec, Normalisation
from app.learning.architectures import build, prunable_parameters
from app.learning.mask import Mask
from app.learning.normalisation import NormalisationState, Preparation, network_shape
from app.learning.optimizers import minibatch_bounds
from app.learning.recipe import BlockReading, Cnn, ExactReading, Mlp, Network, Reading, Training
from app.learning.replay import epoch_order
from app.learning.rows import Examples, Rows
from app.learning.seeds import permutation, seed_for
from app.learning.training import Fit
from app.store.array_files import side_by_side

CPU = torch.device("cpu")
ROWS, FILES, MINIBATCH = 60_000, 6, 128
WARM = {768: {"by blocks": 0.9, "by exact rows": 0.4}, 128: {"by blocks": 0.6, "by exact rows": 0.2}}
"""Floats of a row -> targets."""

COLD, ANONYMOUS_MB, SHARE = 0.9, 64.0, 0.05
BLOCKS, EXACT = BlockReading(), ExactReading()

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


# -- ours --------------------------------------------------------------------------------------------------------------


def saved(folder: Path, rows: int, shape: tuple[int, ...], files: int, dtype: str = "float32") -> list[Path]:
    """Random rows in files of equal length, and their labels."""
    random, paths = np.random.default_rng(0), []
    for number in range(files):
        x = random.integers(0, 255, (rows // files, *shape), dtype=np.uint8).astype(dtype)
        paths.append(folder / f"{len(shape)}-{shape[0]}-{number}.npy")
        np.save(paths[-1], x)
    return paths


def rows_of(paths: Sequence[Path], network: Network, state: NormalisationState | None = None) -> Rows:
    """All rows of the files, read where they are stored."""
    arrays = side_by_side([partial(Path, path) for path in paths])
    shape, dtype = arrays[0].shape[1:], str(arrays[0].dtype)
    spec = InputSpec(shape, dtype, tuple("0123456789"), Normalisation("fixed" if state else "none", clip=None))
    given = [
        Examples(number, x, np.arange(len(x)) % 10, np.arange(len(x), dtype=np.uint64))
        for number, x in enumerate(arrays, 1)
    ]
    prepare, chosen = Preparation(spec, state, network, CPU), [np.ones(len(x), dtype=np.bool_) for x in arrays]
    return Rows(given, chosen, prepare, device=CPU, classes=10, hold=False)


def ours(rows: Rows, reading: Reading, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch, as a fit reads it."""
    order = epoch_order(np.ones(len(rows), dtype=np.bool_), None, seed, reading, rows.bounds, rows.row_bytes)
    return rows.minibatches(order[start:end] for start, end in minibatch_bounds(len(rows), MINIBATCH))


# -- what it is compared with ------------------------------------------------------------------------------------------


def in_memory(x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = permutation(len(x), seed)
    for start, end in minibatch_bounds(len(x), MINIBATCH):
        yield x.index_select(0, order[start:end]), y.index_select(0, order[start:end])


class Mapped(Dataset[tuple[Tensor, int]]):
    """A map-style data set over one memory-mapped file, as the documentation of DataLoader has it."""

    def __init__(self, path: Path) -> None:
        self._path, self._x = path, np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self._x[index].copy()), index % 10


def by_loader(path: Path, workers: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    yield from DataLoader(Mapped(path), MINIBATCH, shuffle=True, num_workers=workers, generator=random)


def by_sqlite(path: Path, width: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A blob a sample, one query a minibatch."""
    order = permutation(ROWS, seed)
    with sqlite3.connect(path) as database:
        for start, end in minibatch_bounds(ROWS, MINIBATCH):
            keys = order[start:end].tolist()
            marks = ",".join("?" * len(keys))
            found = dict(database.execute(f"SELECT id, x FROM samples WHERE id IN ({marks})", keys).fetchall())
            data = bytearray(b"".join(found[key] for key in keys))
            yield torch.frombuffer(data, dtype=torch.float32).view(-1, width), torch.tensor([k % 10 for k in keys])
    database.close()


def peers(folder: Path, paths: Sequence[Path], width: int) -> dict[str, Epoch]:
    whole = np.concatenate([np.load(path) for path in paths])
    one, database = folder / "whole.npy", folder / f"{width}.db"
    np.save(one, whole)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, x BLOB)")
        connection.executemany("INSERT INTO samples VALUES (?, ?)", ((n, x.tobytes()) for n, x in enumerate(whole)))
    connection.close()
    return {
        "in memory": partial(in_memory, torch.from_numpy(whole), torch.arange(ROWS) % 10),
        "SQLite, a blob a sample": partial(by_sqlite, database, width),
        "DataLoader over a memmap": partial(by_loader, one, 0),
        "DataLoader, 2 workers": partial(by_loader, one, 2),
    }


# -- warm --------------------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cost(epoch: Epoch, seed: int) -> float:
    """CPU seconds of an epoch; like training, it holds a minibatch while the next one is made."""
    begun, seen = cpu_seconds(), 0
    for x, y in epoch(seed):
        seen += len(x) if len(x) == len(y) else 0
    if seen != ROWS:
        raise RuntimeError(f"{seen} of {ROWS} rows came")
    return cpu_seconds() - begun


def warm(folder: Path, rounds: int) -> bool:
    met = True
    print(f"An epoch of {ROWS:,} rows in minibatches of {MINIBATCH}, page cache warm")
    print("| rows | way | samples / CPU s | ratio | target |")
    print("|---|---|---|---|---|")
    for width, targets in WARM.items():
        paths = saved(folder, ROWS, (width,), FILES)
        rows = rows_of(paths, Mlp())
        slow = peers(folder, paths, width)
        ways: dict[str, Epoch] = {
            "in memory": slow.pop("in memory"),
            "by blocks": partial(ours, rows, BLOCKS),
            "by exact rows": partial(ours, rows, EXACT),
        }
        found: dict[str, list[float]] = {way: [] for way in (*ways, *slow)}
        for turn in range(rounds + 1):  # the first one maps pages and fills caches
            for way in sorted(ways, reverse=bool(turn % 2)):
                found[way].append(cost(ways[way], turn))
        for way in slow:
            found[way] = [cost(slow[way], 0)] * (rounds + 1)
        memory = np.array(found["in memory"][1:])
        for way, seconds in found.items():
            ratio, target = float(np.median(memory / seconds[1:])), targets.get(way)
            met &= target is None or ratio >= target
            speed = ROWS / float(np.median(seconds[1:]))
            print(f"| {4 * width:,} B | {way} | {speed:,.0f} | {ratio:.2f} | {f'>= {target}' if target else ''} |")
    return met


# -- cold --------------------------------------------------------------------------------------------------------------


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache, and freed memory out of the process; maps of the files must be gone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def figure(of: str, key: str) -> float:
    """One figure of /proc/self, in MB."""
    value = Path(f"/proc/self/{of}").read_text().split(f"{key}:")[1].split()
    return int(value[0]) * (1024 if value[1:2] == ["kB"] else 1) / 1e6


def in_order(paths: Sequence[Path]) -> Iterator[int]:
    buffer = bytearray(8 * 2**20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield size


def by_rows(paths: Sequence[Path], reading: Reading, most: int) -> Iterator[int]:
    rows = rows_of(paths, Mlp())
    for x, _ in ours(rows, reading, 1):
        yield x.nbytes
        most -= x.nbytes
        if most <= 0:
            return


def cold(folder: Path, gigabytes: float, rounds: int) -> bool:
    width, files = 768, 5
    rows = int(gigabytes * 1e9 / (4 * width)) // files * files
    paths = saved(folder, rows, (width,), files)
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "all bytes in order (floor)": partial(in_order, paths),
        "by blocks": partial(by_rows, paths, BLOCKS, sys.maxsize),
        "by exact rows, a part": partial(by_rows, paths, EXACT, int(3e7)),
    }
    found = {way: np.array([read_cold(paths, read) for _ in range(1)]) for way, read in ways.items()}
    for _ in range(rounds - 1):
        for way, read in list(ways.items())[:2]:
            found[way] = np.vstack([found[way], read_cold(paths, read)])
    print(f"\nA store of {rows * 4 * width / 1e9:.1f} GB in {files} files, not in the page cache")
    print("| way | MB/s | of the floor | target | read / used | anonymous MB | target |")
    print("|---|---|---|---|---|---|---|")
    floor = found["all bytes in order (floor)"][:, 0]
    for way, figures in found.items():
        speed, amplified, grown = np.median(figures[:, 0]), np.median(figures[:, 1]), figures[:, 2].max()
        ratio = float(np.median(figures[:, 0] / floor[: len(figures)]))
        targets = (f">= {COLD}", f"<= {ANONYMOUS_MB:.0f}") if way == "by blocks" else ("", "")
        print(f"| {way} | {speed:,.0f} | {ratio:.2f} | {targets[0]} | {amplified:.2f} | {grown:.0f} | {targets[1]} |")
    blocks = found["by blocks"]
    return bool(np.median(blocks[:, 0] / floor) >= COLD and blocks[:, 2].max() <= ANONYMOUS_MB)


def read_cold(paths: Sequence[Path], read: Callable[[], Iterator[int]]) -> tuple[float, float, float]:
    """MB/s, bytes read over bytes used, and MB of anonymous memory that it took."""
    drop(paths)
    anonymous, there = figure("status", "RssAnon"), figure("io", "read_bytes")
    begun, used, most = time.perf_counter(), 0, anonymous
    for turn, size in enumerate(read()):
        used += size
        most = max(most, figure("status", "RssAnon")) if turn % 64 == 0 else most
    speed = used / 1e6 / (time.perf_counter() - begun)
    return speed, (figure("io", "read_bytes") - there) / (used / 1e6), most - anonymous


# -- beside training ---------------------------------------------------------------------------------------------------


def beside_training(folder: Path, rounds: int) -> bool:
    network, options = Cnn(), Training(minibatch=64)
    state = NormalisationState(np.full(1, 127, np.float32), np.full(1, 74, np.float32))
    rows = rows_of(saved(folder, 12_000, (28, 28, 1), FILES, "uint8"), network, state)
    built = build(network, network_shape((28, 28, 1), network), 10).train()
    prunable = prunable_parameters(built)
    order = partial(permutation, len(rows))
    fit = Fit(built, prunable, Mask.full(prunable), rows, None, options, partial(seed_for, 0, 1, 0), order)
    reading, learning = [], []
    for turn in range(rounds):
        at = order(turn)
        begun = time.process_time()
        minibatches = list(rows.minibatches(at[start : start + 64] for start in range(0, 64 * 40, 64)))
        read = time.process_time()
        for x, y in minibatches:
            fit._learn(x, y)
        reading.append((read - begun) / 40)
        learning.append((time.process_time() - read) / 40)
    share = float(np.median(np.array(reading) / (np.array(reading) + learning)))
    print("\nThe small CNN, 28 x 28 images of uint8, minibatches of 64, CPU time")
    print("| read and normalise, ms | train, ms | share of the step | target |")
    print("|---|---|---|---|")
    print(f"| {1e3 * np.median(reading):.3f} | {1e3 * np.median(learning):.2f} | {share:.3f} | <= {SHARE} |")
    return share <= SHARE


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each way in the first table")
    parser.add_argument("--gigabytes", type=float, default=2.5, help="size of the cold store; 0 leaves it out")
    parser.add_argument("--folder", type=Path, help="where to put files: a folder on the disk to measure")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="espalier-replay-", dir=options.folder) as folder:
        met = warm(Path(folder), options.rounds)
        met &= not options.gigabytes or cold(Path(folder), options.gigabytes, 3)
        met &= beside_training(Path(folder), options.rounds)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
