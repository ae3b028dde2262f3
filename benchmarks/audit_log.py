"""What do an append, a proof, a checkpoint and a bundle cost when the log has a million entries?

    python -m benchmarks.audit_log [--entries 1000 10000 100000 1000000] [--rounds 200]

Logs of these sizes are written row by row (``benchmarks/_rows.py``), on SQLite, and on PostgreSQL too where
ESPALIER_TEST_DATABASE_URL names a server; everything else goes through the store, its triggers and its guard. An
``append`` is a transaction of one entry, with its commit. Its floor is a plain INSERT of a row of the same size and its
commit, into the same database by the driver. All logs and floors take turns, because disks differ from minute to
minute. ``inclusion`` and ``consistency`` are the service's work for a proof, of an entry and a size
taken by chance, each in a transaction of its own. ``sign`` is one more entry's checkpoint, the files' fsyncs included.
The bundle is of a version with 50 ancestors that was published after all the others. ``verify`` is
``espalier audit verify --offline`` without reading files, and the doctor's own check, in entries a second.

Printed are lower quartiles, since neighbours on the machine only ever add. Targets: an append to any of the logs takes
at most 1.5 x as long as one to the smallest; a proof <= 5 ms, verifying a bundle <= 1 s. The exit status is 1 on miss.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from app.config import Settings
from app.domain import CHAMPION, Actor
from app.service import history
from app.service.bundle import open_bundle
from app.service.notary import Notary
from app.store.blobs import Blobs
from app.store.database import Store
from benchmarks._rows import fill_log
from benchmarks.scale import postgresql
from espalier.formats.bundle import verify_bundle
from espalier.formats.proof import Frontier, leaf_hash
from tests.lineages import Lineage

GROWTH, PROOF, BUNDLE = 1.5, 0.005, 1.0
ANCESTORS = 50
ACTOR = Actor("benchmark", "request-1")


def seconds(work: Callable[[], object]) -> float:
    """Of one run."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def quartile(taken: Sequence[float]) -> float:
    """The lower one: neighbours on the machine only ever add."""
    return statistics.quantiles(taken, n=4)[0]


def typical(work: Callable[[], object], rounds: int) -> float:
    return quartile([seconds(work) for _ in range(rounds)])


@dataclass(frozen=True)
class Log:
    """A log of some size, and what it is asked with."""

    size: int
    store: Store
    notary: Notary
    folder: Path

    def append(self) -> None:
        with self.store.transaction(ACTOR) as tx:
            tx.audit.append("pruning.step", model="big", parameters={"cycle": 7, "step": 3, "kept": 4096})

    def inclusion(self) -> None:
        history.prove_inclusion(self.store, random.randint(1, self.size), self.size)

    def consistency(self) -> None:
        history.prove_consistency(self.store, random.randint(1, self.size), self.size)

    def sign(self) -> float:
        """Seconds for the checkpoint of a log that has just grown."""
        self.append()
        return seconds(self.notary.checkpoint)


class Floor:
    """A row of the size of an entry, inserted and committed by the driver alone."""

    def __init__(self, store: Store) -> None:
        self._connection = store._engine.raw_connection()
        self._cursor = self._connection.cursor()
        self._cursor.execute("CREATE TABLE benchmark_floor (seq INTEGER PRIMARY KEY, document TEXT NOT NULL)")
        self._connection.commit()
        self._seq = 0
        hole = "?" if store._engine.dialect.name == "sqlite" else "%s"
        self._insert = f"INSERT INTO benchmark_floor VALUES ({hole}, {hole})"

    def __call__(self) -> None:
        self._seq += 1
        self._cursor.execute(self._insert, (self._seq, "x" * 300))
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


def appended(logs: Sequence[Log], rounds: int) -> list[tuple[float, float]]:
    """Quartiles of an append and of its floor, for each log. All logs take turns, so that they have the same disk."""
    floors = [Floor(log.store) for log in logs]
    taken = [
        [(seconds(log.append), seconds(floor)) for log, floor in zip(logs, floors, strict=True)] for _ in range(rounds)
    ]
    for floor in floors:
        floor.close()
    return [(quartile([a for a, _ in column]), quartile([f for _, f in column])) for column in zip(*taken, strict=True)]


def checked(log: Log) -> tuple[float, float]:
    """Entries a second: hashed from their bytes, and checked row by row as the doctor does."""
    with log.store.reading() as tx:
        lines = [bytes(line) for _, line, _ in tx.audit.spelled(range(1, min(log.size, 20_000) + 1))]

    def hashed() -> None:
        frontier = Frontier()
        for line in lines:
            frontier = frontier.append(leaf_hash(line))

    return len(lines) / seconds(hashed), log.size / seconds(lambda: history.verify_log(log.store))


def bundled(log: Log) -> tuple[float, float, int]:
    """Seconds to build a bundle and to verify it, and its entries."""
    line = Lineage(log.store)
    for number in range(ANCESTORS + 1):
        line.publish(prune=1 if number < 90 else 0)
    path = log.folder / "bundle.zip"

    def build() -> None:
        with open_bundle(log.store, log.notary, "gas", CHAMPION) as found:
            path.write_bytes(found.path.read_bytes())

    build_s, keys = typical(build, 3), log.notary.verifier_keys()
    verify_s = typical(lambda: verify_bundle(path, keys), 5)
    return build_s, verify_s, verify_bundle(path, keys).entries


def row(log: Log, append_s: float, plain_s: float, first_s: float, rounds: int) -> bool:
    """Print what a log costs; whether all targets are met."""
    inclusion_s, consistency_s = typical(log.inclusion, rounds), typical(log.consistency, rounds)
    sign_s = quartile([log.sign() for _ in range(20)])
    met = append_s <= GROWTH * first_s and max(inclusion_s, consistency_s) <= PROOF
    print(
        f"| {log.size:,} | {1e3 * append_s:.2f} | {1e3 * plain_s:.2f} | {append_s / plain_s:.2f} | "
        f"{append_s / first_s:.2f} | {1e3 * inclusion_s:.2f} | {1e3 * consistency_s:.2f} | {1e3 * sign_s:.2f} | "
        f"{'ok' if met else 'MISSED'} |",
        flush=True,
    )
    return met


def run(dialect: str, folder: Path, server: str, sizes: Sequence[int], rounds: int) -> bool:
    """Measure logs of these sizes; whether all targets are met."""
    with ExitStack() as stack:
        logs = [_opened(stack, dialect, folder, server, size) for size in sorted(sizes)]
        print(f"\n{dialect}, in ms\n")
        print("| entries | append | floor | to floor | growth | inclusion | consistency | sign | |\n|" + "---|" * 9)
        taken = appended(logs, rounds)
        rows = [row(log, *times, taken[0][0], rounds) for log, times in zip(logs, taken, strict=True)]
        return all([*rows, _largest(logs[-1])])


def _opened(stack: ExitStack, dialect: str, folder: Path, server: str, size: int) -> Log:
    here = folder / f"{dialect}-{size}"
    here.mkdir()
    sqlite = f"sqlite:///{here / 'espalier.db'}"
    url = sqlite if dialect == "sqlite" else stack.enter_context(postgresql(server))
    fill_log(url, size)
    store = Store(url, Blobs(here / "blobs"))
    stack.callback(store.dispose)
    log = Log(size, store, Notary(store, Settings(data_dir=here, database_url=url)), here)
    log.notary.checkpoint()
    return log


def _largest(log: Log) -> bool:
    build_s, verify_s, entries = bundled(log)
    hashed, rows = checked(log)
    met = verify_s <= BUNDLE
    print(
        f"\nat {log.size:,}: a bundle of {ANCESTORS + 1} versions ({entries} entries) is built in {build_s:.2f} s and "
        f"verified in {verify_s:.3f} s (<= {BUNDLE:g}: {'ok' if met else 'MISSED'}); of a whole log "
        f"{hashed:,.0f} entries a second are hashed, and {rows:,.0f} checked by the doctor"
    )
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(arguments)
    server = os.environ.get("ESPALIER_TEST_DATABASE_URL", "")
    met = True
    for dialect in ("sqlite", "postgresql") if server else ("sqlite",):
        with tempfile.TemporaryDirectory(prefix="espalier-audit-log-") as folder:
            met &= run(dialect, Path(folder), server, options.entries, options.rounds)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
