"""Tasks: which runs are wanted, which are done, and doing the others in processes of one thread each.

Knows: files of results, processes, the clock. Must never know: what a figure means.

Laws:
    * A finished run is one file, written whole or not at all; it is not made again while its recipe and the code that
      its numbers come from stay as they are.
    * One failed run stops no other; it is reported and has no file.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from app.worker.device import choose, settle
from benchmarks.method import streams
from benchmarks.method.rows import ROWS, unusable
from benchmarks.method.runs import Figures, run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Task:
    """One run that is wanted."""

    stream: str
    row: str
    seed: int
    digest: str
    code: str

    @property
    def file(self) -> str:
        """Name of its result."""
        return f"{self.stream}.{self.row}.{self.seed}.{self.digest.removeprefix('sha256:')[:12]}.{self.code}.json"

    def __str__(self) -> str:
        return f"{self.stream} {self.row} seed {self.seed}"


def wanted(asked: Mapping[str, tuple[int, Sequence[str]]], data: Path, code: str) -> tuple[list[Task], list[str]]:
    """Every run, and why rows are left out; first seeds first, so that what is done is paired at any time.

    Args:
        asked: seeds and rows of each stream.
        data: folder of the real data.
        code: version of the code.
    """
    tasks, left_out = [], []
    for name, (seeds, rows) in asked.items():
        first = streams.make(name, data, 0)
        reasons = {row: unusable(ROWS[row], first) for row in rows}
        left_out += [f"{name} {row}: {reason}" for row, reason in reasons.items() if reason]
        usable = [row for row in rows if not reasons[row]]
        tasks += [
            Task(name, row, seed, ROWS[row].recipe(first, seed).digest, code) for seed in range(seeds) for row in usable
        ]
    return sorted(tasks, key=lambda task: task.seed), left_out


@cache
def code_version() -> str:
    """Digest of the code that the numbers come from, comments and docstrings aside; recipes have their own."""
    sources = [path for path in sorted((ROOT / "app" / "learning").rglob("*.py")) if path.parent.name != "recipe"]
    sources += [Path(__file__).with_name(f"{name}.py") for name in ("streams", "runs", "reference")]
    digest = hashlib.sha256()
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                body[0] = ast.Pass()
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:10]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# -- results -----------------------------------------------------------------------------------------------------------


def results(tasks: Iterable[Task], folder: Path) -> dict[Task, Figures]:
    """The figures of those that are done."""
    done = ((task, folder / task.file) for task in tasks)
    return {task: json.loads(path.read_text(encoding="utf-8")) for task, path in done if path.exists()}


def _keep(task: Task, figures: Figures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{task.file}.{os.getpid()}"
    partial.write_text(json.dumps(figures, separators=(",", ":"), allow_nan=False), encoding="utf-8")
    partial.replace(folder / task.file)


def machine() -> str:
    """This machine, in words."""
    device = choose("auto")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = os.cpu_count()
    return f"{model or platform.machine()}, {cores} cores, one torch thread a run, torch {torch.__version__}"


# -- doing -------------------------------------------------------------------------------------------------------------


def do(tasks: Sequence[Task], folder: Path, data: Path, workers: int) -> list[str]:
    """Run what is not done yet; returns what failed, with the reason."""
    left = [task for task in tasks if not (folder / task.file).exists()]
    print(f"{len(tasks)} runs, {len(tasks) - len(left)} of them done before; {workers} workers", flush=True)
    if not left:
        return []
    progress = _Progress(left, folder, workers)
    failed = []
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(workers, len(left)), mp_context=context, initializer=settle, initargs=(1,)) as pool:
        futures = {pool.submit(do_one, task, folder, data): task for task in left}
        try:
            for future in as_completed(futures):
                task, error = futures[future], future.exception()
                failed += [f"{task}: {error}"] if error else []
                progress.say(task, f"FAILED: {error}" if error else future.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def do_one(task: Task, folder: Path, data: Path) -> str:
    """Run one task and keep its figures; returns them in a few words."""
    device = choose("auto")
    begun = time.perf_counter()
    try:
        figures = run(streams.make(task.stream, data, task.seed), ROWS[task.row], task.seed, device)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None  # not every exception survives pickling
    facts: dict[str, Any] = {
        "stream": task.stream, "row": task.row, "seed": task.seed, "digest": task.digest, "code": task.code,
        "device": device.type, "machine": machine(), "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": time.perf_counter() - begun,
    }  # fmt: skip
    _keep(task, facts | figures, folder)
    accuracies = figures["accuracy"]
    density = figures["kept"][-1] / figures["total"]
    return f"{100 * accuracies[-1]:.1f} / {100 * fmean(accuracies):.1f} at density {density:.3f}"


class _Progress:
    """One line for each run, with the time that is left, as earlier runs of the same kind let expect."""

    def __init__(self, left: Sequence[Task], folder: Path, workers: int) -> None:
        self._left, self._all, self._workers = list(left), len(left), workers
        self._spent: dict[tuple[str, str], list[float]] = {}
        self._folder, self._begun = folder, time.monotonic()
        for path in folder.glob("*.json"):
            self._note(path)

    def _note(self, path: Path) -> None:
        found = json.loads(path.read_text(encoding="utf-8"))
        self._spent.setdefault((found["stream"], found["row"]), []).append(found["wall_seconds"])

    def say(self, task: Task, what: str) -> None:
        self._left.remove(task)
        if (self._folder / task.file).exists():
            self._note(self._folder / task.file)
        remaining = sum(map(self._expected, self._left)) / self._workers
        minutes = (time.monotonic() - self._begun) / 60
        number = self._all - len(self._left)
        print(f"[{number}/{self._all}] {task}: {what}; {minutes:.1f} min, {remaining / 60:.1f} min left", flush=True)

    def _expected(self, task: Task) -> float:
        same = self._spent.get((task.stream, task.row))
        alike = [seconds for (stream, _), each in self._spent.items() if stream == task.stream for seconds in each]
        every = [seconds for each in self._spent.values() for seconds in each]
        return fmean(same or alike or every or [0.0])
