"""How long do the dashboard's pages take with years of work in the database?

    python -m benchmarks.pages [--rounds 15]

1,000 models: one with 10,000 versions and as many megabatches, the others with ten versions each and a cycle that
waits; 100,000 audit entries (rows of ``benchmarks/_rows.py``), on SQLite. Pages come from a service in a process of its
own, over HTTP, one at a time; printed is the median and the slowest of the rounds, after two that do not count.
Targets: the first page of models within 300 ms, a model's page within 500 ms.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx

from app.store.tables import metadata
from benchmarks._rows import BIG, Size, digest, fill
from benchmarks._service import service

SIZE = Size(models=1000, megabatches=10_000, versions=10_000, entries=100_000)
EACH = 10
TARGETS = {
    "/": 300,
    "/?after=model-00500": 300,
    "/?q=0099": 300,
    f"/models/{BIG}": 500,
    f"/models/{BIG}/live": 500,
    f"/models/{BIG}?before=5000": 500,
    "/models/model-00500": 500,
    f"/models/{BIG}/versions/9000": 500,
}


def spread(database: Path) -> None:
    """Give every other model the big one's first versions, with their cycles, and the champion among them."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, change in (
            ("cycles", {"number": "t.number + 1"}),
            ("versions", {"cycle": "t.cycle + 1"}),
            ("alias_moves", {}),
        ):
            columns = [column.name for column in metadata.tables[table].columns if column.name != "id"]
            taken = [change.get(name, "m.id" if name == "model_id" else f't."{name}"') for name in columns]
            named = ", ".join(f'"{name}"' for name in columns)
            key = "revision" if table == "alias_moves" else "number"
            connection.execute(
                f"INSERT INTO {table} ({named}) SELECT {', '.join(taken)} FROM {table} t, models m "
                f"WHERE t.model_id = 1 AND m.id > 1 AND t.{key} <= {EACH}"
            )
        connection.execute(
            f"INSERT INTO aliases (model_id, name, version, revision, moved_at) "
            f"SELECT m.id, 'champion', {EACH}, {EACH}, a.moved_at FROM models m, aliases a "
            "WHERE a.model_id = 1 AND m.id > 1"
        )


def seconds(http: httpx.Client, path: str, rounds: int) -> list[float]:
    """What a page takes, round by round."""
    found = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        answer = http.get(path, headers={"HX-Request": "true"} if path.endswith("/live") else {})
        found.append(time.perf_counter() - began)
        answer.raise_for_status()
    return found[2:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, serve, measure."""
    parser = argparse.ArgumentParser(description="How long the dashboard's pages take.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args(arguments).rounds
    with tempfile.TemporaryDirectory(prefix="espalier-pages-") as folder:
        database = Path(folder) / "espalier.db"
        fill(f"sqlite:///{database}", SIZE, digest("state"))
        spread(database)
        with service("--no-worker", ESPALIER_DATA_DIR=folder) as served, httpx.Client(base_url=served.url) as http:
            missed = measure(http, rounds)
    return 1 if missed else 0


def measure(http: httpx.Client, rounds: int) -> bool:
    """Print the table; whether a target was missed."""
    missed = False
    print("| page | median, ms | slowest, ms | target, ms |\n|---|---|---|---|")
    for path, target in TARGETS.items():
        taken = [1000 * each for each in seconds(http, path, rounds)]
        missed |= statistics.median(taken) > target
        print(f"| {path} | {statistics.median(taken):.0f} | {max(taken):.0f} | {target} |", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
