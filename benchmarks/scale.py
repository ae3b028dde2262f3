"""Does a page cost the same after years? Each operation on a database a hundredth as full, and on a full one.

    python -m benchmarks.scale [--share 10] [--rounds 15]

Full is 1,000 models, 10,000 megabatches, 100,000 versions and cycles of one model, and 1,000,000 audit entries (see
``benchmarks/_rows.py``), on SQLite, and on PostgreSQL too where ESPALIER_TEST_DATABASE_URL names a server. Every
operation runs in a transaction of its own, which is rolled back, so the time of commits, which does not grow, hides
nothing; the two databases take turns. Printed is the fastest of the rounds, since neighbours on the machine only ever
add; the floor is the small database. Target: at most 1.5 x.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa

from app.domain import CHAMPION, Actor, CycleTrigger, MegabatchDraft, Model
from app.service import models
from app.store.blobs import Blobs
from app.store.database import Store, Transaction
from app.store.decisions import Sought
from app.store.numbers import Numbers
from app.store.search import Sought as Entries
from benchmarks._rows import BIG, Size, digest, fill

FULL = Size(models=1000, megabatches=10_000, versions=100_000, entries=1_000_000)
TARGET = 1.5
ACTOR = Actor("benchmark")

Operation = Callable[[Transaction, Size], object]


class Undone(Exception):
    """Raised to roll back."""


# -- operations --------------------------------------------------------------------------------------------------------


def _big(tx: Transaction) -> Model:
    return tx.ledger.model(BIG)


def _upload(tx: Transaction, size: Size) -> None:
    blobs = [digest(f"new {name}") for name in ("arrays", "x", "y", "ids")]
    model = tx.ledger.lock_model(BIG)
    megabatch, new = tx.buffer.add_megabatch(model, MegabatchDraft(*blobs, examples=1, bytes=1, histogram=(1, 0)))
    assert new
    waiting = tx.buffer.eligible(model, seen=range(1, tx.ledger.covered(model) + 1))
    assert [m.number for m in waiting] == [megabatch.number]
    tx.ledger.enqueue_cycle(model, CycleTrigger.MEGABATCHES, megabatch.number)


def _append(tx: Transaction, size: Size) -> None:
    tx.audit.append("test", model=BIG, parameters={"cycle": 7, "version": 7})
    guard = tx.audit._connection.get_execution_options()["espalier_guard"]
    with guard.writing_log():
        tx.audit.write()


def _one_claim(tx: Transaction, size: Size) -> None:
    claimed = tx.ledger.claim_cycle("worker-1", 60.0)
    assert claimed is not None and claimed.model.name == "model-00002"


OPERATIONS: dict[str, Operation] = {
    "models": lambda tx, size: [models._summary(tx, model) for model in tx.ledger.models(None, 10).items],
    "models, later": lambda tx, size: tx.ledger.models(f"model-{size.models // 2:05}", 10),
    "megabatches": lambda tx, size: tx.buffer.megabatches(BIG, None, 10),
    "megabatches, later": lambda tx, size: tx.buffer.megabatches(BIG, size.megabatches // 2, 10),
    "cycles": lambda tx, size: tx.ledger.cycles(BIG, None, 10),
    "cycles, later": lambda tx, size: tx.ledger.cycles(BIG, size.versions // 2, 10),
    "versions": lambda tx, size: tx.ledger.versions(BIG, None, 10),
    "versions, later": lambda tx, size: tx.ledger.versions(BIG, size.versions // 2, 10),
    "time line": lambda tx, size: tx.ledger.time_line(BIG, None, 10),
    "time line, later": lambda tx, size: tx.ledger.time_line(BIG, size.versions // 2, 10),
    "lineage": lambda tx, size: tx.ledger.ancestry(BIG, size.versions, 10),
    "lineage, later": lambda tx, size: tx.ledger.ancestry(BIG, size.versions // 2, 10),
    "alias history": lambda tx, size: tx.ledger.alias_history(BIG, CHAMPION, None, 10),
    "alias history, later": lambda tx, size: tx.ledger.alias_history(BIG, CHAMPION, size.versions // 2, 10),
    "alias at a time": lambda tx, size: tx.ledger.alias_at(BIG, CHAMPION, tx.ledger.version(BIG, 5).created_at),
    "audit": lambda tx, size: tx.audit.entries(None, None, 10),
    "audit, later": lambda tx, size: tx.audit.entries(None, size.entries // 2, 10),
    "audit of a model": lambda tx, size: tx.audit.entries(BIG, size.entries // 2, 10),
    "audit of a small model": lambda tx, size: tx.audit.entries("model-00002", None, 5),
    "audit of a kind": lambda tx, size: tx.audit.entries(None, size.entries // 2, 10, "alias.moved"),
    "audit of a kind of a model": lambda tx, size: tx.audit.entries(BIG, size.entries // 2, 10, "alias.moved"),
    "audit of an actor": lambda tx, size: tx.audit.find(Entries(actor="worker"), size.entries // 2, 10),
    "audit of a rare actor": lambda tx, size: tx.audit.find(Entries(actor="nobody"), None, 10, newest=True),
    "audit since a time": lambda tx, size: tx.audit.find(
        Entries(since=tx.ledger.version(BIG, 5).created_at), size.entries // 2, 10
    ),
    "audit with a text": lambda tx, size: tx.audit.find(Entries(text="in none"), size.entries // 2, 10, newest=True),
    "audit of all": lambda tx, size: tx.audit.find(
        Entries(BIG, "alias.moved", "nobody", tx.ledger.version(BIG, 5).created_at), size.entries // 2, 10
    ),
    "audit of a version": lambda tx, size: tx.audit.about(BIG, [("cycle", 150), ("version", 150)]),
    "versions of a megabatch": lambda tx, size: tx.custody.versions_of(_big(tx), 5, None, 10),
    "versions of a megabatch, later": lambda tx, size: tx.custody.versions_of(_big(tx), 5, size.versions // 2, 10),
    "megabatches of a version": lambda tx, size: tx.custody.megabatches_of(_big(tx), size.versions // 2, None, 10),
    "decisions": lambda tx, size: tx.decisions.decisions(_big(tx), Sought(), None, 10),
    "decisions, later": lambda tx, size: tx.decisions.decisions(_big(tx), Sought(), size.versions // 2, 10),
    "decisions of a version": lambda tx, size: tx.decisions.decisions(_big(tx), Sought(version=7), None, 10),
    "decisions of an example": lambda tx, size: tx.decisions.decisions(_big(tx), Sought(example="often"), None, 10),
    "decisions of an example, later": lambda tx, size: tx.decisions.decisions(
        _big(tx), Sought(example="often"), size.versions // 2, 10
    ),
    "decisions of a batch": lambda tx, size: tx.decisions.between(_big(tx), 5, 15),
    "append": _append,
    "poll": lambda tx, size: tx.ledger.version(BIG, CHAMPION),
    "latest": lambda tx, size: tx.ledger.version(BIG, "latest"),
    "manifest": lambda tx, size: tx.ledger.manifest(BIG, 7),
    "upload and enqueue": _upload,
    "claim": _one_claim,
    "attempt before": lambda tx, size: tx.ledger.attempt_before(tx.ledger.cycle(BIG, size.versions)),
    "held since": lambda tx, size: tx.ledger.held_since(_big(tx), 5),
    "accepted, the newest": lambda tx, size: tx.buffer.accepted(_big(tx), since=size.megabatches - 5),
    "eligible": lambda tx, size: tx.buffer.eligible(
        _big(tx), seen=Numbers.of_runs([(1, 4), (6, size.megabatches - 1)])
    ),
    "quarantined": lambda tx, size: tx.buffer.quarantined(_big(tx)),
    "queue": lambda tx, size: (tx.ledger.queue(_big(tx)), tx.ledger.open_cycles(_big(tx))),
    "supersede": lambda tx, size: tx.ledger.supersede_cycles(_big(tx), "moved"),
    "references": lambda tx, size: tx.ledger.references([digest(str(n)) for n in range(20)]),
    "last tick": lambda tx, size: tx.ledger.last_tick(_big(tx)),
    "stalled": lambda tx, size: tx.ledger.reclaim(tx.ledger.held_leases()),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def seconds(store: Store, size: Size, operation: Operation) -> float:
    """Of one run, without connecting and rolling back."""
    took = 0.0
    try:
        with store.transaction(ACTOR) as tx:
            began = time.perf_counter()
            operation(tx, size)
            took = time.perf_counter() - began
            raise Undone
    except Undone:
        return took


def compare(small: tuple[Store, Size], full: tuple[Store, Size], rounds: int) -> bool:
    """Print the table; whether a target was missed."""
    print("| operation | at a hundredth, ms | full, ms | ratio | target |\n|---|---|---|---|---|")
    missed = False
    for name, operation in OPERATIONS.items():
        for store, size in (small, full):
            seconds(store, size, operation)
        taken = [[seconds(store, size, operation) for store, size in (small, full)] for _ in range(rounds)]
        before, now = (1e3 * min(column) for column in zip(*taken, strict=True))
        missed |= now > TARGET * before
        print(f"| {name} | {before:.2f} | {now:.2f} | {now / before:.2f} | {TARGET} |", flush=True)
    return missed


def share_of(share: int) -> Size:
    """A part of the full size; ten models and twenty megabatches at least, so that there is something to wait for."""
    parts = (max(20, FULL.megabatches // share), FULL.versions // share, FULL.entries // share)
    return Size(max(10, FULL.models // share), *parts)


@contextmanager
def postgresql(server: str) -> Iterator[str]:
    """A database that is gone in the end."""
    url, name = sa.make_url(server), f"espalier_scale_{uuid.uuid4().hex}"
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def run(dialect: str, folder: Path, server: str, sizes: Sequence[Size], rounds: int) -> bool:
    """Fill two databases and compare them; whether a target was missed."""
    with ExitStack() as stack:
        opened: list[tuple[Store, Size]] = []
        for number, size in enumerate(sizes):
            sqlite = f"sqlite:///{folder / f'{number}.db'}"
            url = sqlite if dialect == "sqlite" else stack.enter_context(postgresql(server))
            blobs = Blobs(folder / f"blobs-{dialect}-{number}")
            began = time.monotonic()
            fill(url, size, blobs.put(b"state"))
            print(f"{dialect}: {size} in {time.monotonic() - began:.0f} s", flush=True)
            store = Store(url, blobs)
            stack.callback(store.dispose)
            opened.append((store, size))
        return compare(*opened, rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=1, help="of the full size, to try it out: 10 for a tenth")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    server = os.environ.get("ESPALIER_TEST_DATABASE_URL", "")
    sizes = share_of(100 * options.share), share_of(options.share)
    missed = False
    for dialect in ("sqlite", "postgresql") if server else ("sqlite",):
        with tempfile.TemporaryDirectory(prefix="espalier-scale-") as folder:
            missed |= run(dialect, Path(folder), server, sizes, options.rounds)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
