"""Memory: of the API process, and of a worker whose replay buffer is far larger than what it may hold.

    python -m benchmarks.memory [--gigabytes 2.5] [--folder DIR]

The API process is looked at idle, after requests, and after a large upload. Target: below 250 MB resident throughout,
and no torch in the process.

A worker is measured in two processes of its own, of the same network and minibatch: one takes plain dense training
steps, one runs a whole cycle over a replay buffer of so many gigabytes. Compared are their peaks of anonymous memory
(pages of mapped files are the kernel's to take back). Target: at most 1.15 x the plain one + 256 MB.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import torch

from app.domain import InputSpec, Normalisation
from app.learning.architectures import build
from app.learning.cycle import CycleInput, Examples, run_cycle
from app.learning.recipe import Recipe
from app.store.array_files import Column, side_by_side
from benchmarks._service import Service, service
from espalier import Client

TARGET_MB = 250.0
REQUESTS = 2_000
UPLOAD_ROWS = 64 * 1024  # of 256 float32: 64 MiB
SHAPE, CLASSES, FILES = (32, 32, 3), 10, 8


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.5, help="size of the worker's replay buffer")
    parser.add_argument("--folder", type=Path, help="where to put its files")
    parser.add_argument("--worker", choices=["plain", "cycle"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(_peak_of(_plain if options.worker == "plain" else partial(_cycle, options.folder)))
        return 0
    worker = _workers(options.gigabytes, options.folder)
    return max(worker, _api())


# -- the worker --------------------------------------------------------------------------------------------------------


def _workers(gigabytes: float, where: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="espalier-memory-", dir=where) as folder:
        for number in range(FILES):
            _keep(Path(folder), number, int(gigabytes * 1e9 / math.prod(SHAPE) / FILES))
        plain, cycle = (_measured(kind, folder) for kind in ("plain", "cycle"))
    target = 1.15 * plain + 256
    print(f"{f'worker, {gigabytes:g} GB of examples':<32}{'MB':>8}{'target':>10}")
    print(f"{'plain training, anonymous':<32}{plain:>8.0f}")
    print(f"{'a whole cycle, anonymous':<32}{cycle:>8.0f}{f'<= {target:.0f}':>10}")
    return 0 if cycle <= target else 1


def _keep(folder: Path, number: int, rows: int) -> None:
    """One megabatch, as a worker finds it."""
    random = np.random.default_rng(number)
    x = np.lib.format.open_memmap(folder / f"x{number}.npy", "w+", np.uint8, (rows, *SHAPE))
    for start in range(0, rows, 4096):
        x[start : start + 4096] = random.integers(0, 255, x[start : start + 4096].shape, dtype=np.uint8)
    x.flush()
    np.save(folder / f"y{number}.npy", random.integers(0, CLASSES, rows))
    np.save(folder / f"ids{number}.npy", random.integers(0, 2**64, rows, dtype=np.uint64))


def _measured(kind: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--worker", kind, "--folder", folder]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _peak_of(work: Callable[[], object]) -> float:
    """MB of anonymous memory at its peak while ``work`` runs, looked at every few milliseconds."""
    done, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _status(os.getpid(), "RssAnon"))

    torch.set_num_threads(1)
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak[0]


def _recipe() -> Recipe:
    training = {"epochs": 1, "least_steps": 0, "minibatch": 128}
    return Recipe.resolve({"network": {"name": "mlp", "hidden": [256, 256]}, "training": training})


def _plain() -> None:
    """What anyone's training loop holds: network, gradients, momentum, one minibatch."""
    network = build(_recipe().network, (math.prod(SHAPE),), CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for _ in range(200):
        x, y = torch.randn(128, math.prod(SHAPE)), torch.randint(CLASSES, (128,))
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def _cycle(folder: Path) -> None:
    """The first cycle of a model whose megabatches all came before it."""
    finds = [partial(Path, folder, f"x{number}.npy") for number in range(FILES)]
    given = [
        Examples(number, x, *(Column(partial(Path, folder, f"{kind}{number}.npy"), len(x)) for kind in ("y", "ids")))
        for number, x in enumerate(side_by_side(finds))
    ]
    numbers, classes = frozenset(range(FILES)), tuple(map(str, range(CLASSES)))
    spec = InputSpec(SHAPE, "uint8", classes, Normalisation())
    cycle = CycleInput(_recipe(), spec, None, 0, given, numbers, numbers)
    run_cycle(cycle, device=torch.device("cpu"), observe=lambda progress, snapshot: None)


# -- the API process ---------------------------------------------------------------------------------------------------


def _api() -> int:
    with service("--no-worker") as running, Client(running.url) as client:
        figures = [("idle", _resident(running))]
        client.create_model("memory", input={"classes": 2})
        _request(running)
        figures.append((f"after {REQUESTS:,} requests", _resident(running)))
        rows = np.random.default_rng(0).standard_normal((UPLOAD_ROWS, 256)).astype(np.float32)
        client.upload("memory", rows, np.arange(UPLOAD_ROWS) % 2)
        figures.append((f"after an upload of {rows.nbytes >> 20} MiB", _resident(running)))
        figures.append(("peak", _peak(running)))
        loaded = [pid for pid in _tree(running.pid) if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    worst = max(value for _, value in figures)
    print(f"{'API process, resident':<32}{'MB':>8}{'target':>10}")
    for what, value in figures:
        print(f"{what:<32}{value:>8.0f}{f'< {TARGET_MB:.0f}':>10}")
    print(f"{'torch is loaded':<32}{'yes' if loaded else 'no':>8}{'no':>10}")
    return 0 if worst < TARGET_MB and not loaded else 1


def _request(running: Service) -> None:
    paths = ("/v1/models", "/v1/models/memory", "/v1/audit", "/openapi.json", "/v1/models/none")
    with httpx.Client(base_url=running.url) as http:
        for number in range(REQUESTS):
            http.get(paths[number % len(paths)])


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _status(pid: int, key: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024 / 1e6


def _resident(running: Service) -> float:
    """MB of the largest process, when it has come to rest."""
    time.sleep(1.0)
    return max(_status(pid, "VmRSS") for pid in _tree(running.pid))


def _peak(running: Service) -> float:
    return _status(running.pid, "VmHWM")


if __name__ == "__main__":
    if not Path("/proc/self/task").exists():
        print("memory: needs Linux's /proc; skipped")
        sys.exit(0)
    sys.exit(main())
