"""What is asked all the time costs the same after a year as after a week: counted, not timed.

On SQLite the steps of its virtual machine are counted; on PostgreSQL the rows that the scans of every plan touched. Of
so few rows PostgreSQL might well read all: it is asked not to, which shows whether an index serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.store.blobs import Blobs
from app.store.database import Store
from benchmarks._rows import Size, fill
from benchmarks.scale import OPERATIONS, Operation, Undone
from tests.builders import ACTOR
from tests.conftest import DATABASES, postgresql_database

SMALL = Size(models=30, megabatches=60, versions=300, entries=3000)
LARGE = Size(models=300, megabatches=600, versions=3000, entries=30_000)
"""Ten times as much: written in a few seconds, and large enough for a scan to show."""

AT_MOST = 1.5
FEW = 40
"""Rows, or tens of steps, that say nothing."""


@dataclass
class Filled:
    """A store, how much there is in it, and what its statements have cost."""

    store: Store
    size: Size
    spent: int = 0

    def cost(self, operation: Operation) -> int:
        """Of the second time: in the first one connections are opened. Whatever it changes is undone."""
        for _ in range(2):
            self.spent = 0
            with suppress(Undone), self.store.transaction(ACTOR) as tx:
                operation(tx, self.size)
                raise Undone
        return self.spent


@pytest.fixture(scope="module", params=DATABASES)
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Filled, Filled]]:
    """A small store and one that has grown tenfold."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("small", "large")]
        if request.param == "sqlite":
            urls = [f"sqlite:///{folder / 'espalier.db'}" for folder in folders]
        else:
            urls = [stack.enter_context(postgresql_database()) for _ in folders]
        places = zip(urls, folders, (SMALL, LARGE), strict=True)
        small, large = (_filled(url, folder, size) for url, folder, size in places)
        yield small, large
        small.store.dispose()
        large.store.dispose()


def _filled(url: str, folder: Path, size: Size) -> Filled:
    blobs = Blobs(folder / "blobs")
    fill(url, size, blobs.put(b"state"))
    found = Filled(Store(url, blobs), size)
    if found.store.dialect == "sqlite":
        sa.event.listen(found.store._engine, "connect", lambda driver, _record: _count_steps(driver, found))
    else:
        sa.event.listen(found.store._engine, "connect", lambda driver, _record: _prefer_indexes(driver))
        sa.event.listen(found.store._engine, "before_cursor_execute", lambda *given: _count_rows(found, *given[:4]))
    return found


def _count_steps(driver: Any, found: Filled) -> None:
    def count() -> int:
        found.spent += 1
        return 0

    driver.set_progress_handler(count, 10)


def _prefer_indexes(driver: Any) -> None:
    driver.execute("SET enable_seqscan = off")
    driver.commit()


def _count_rows(found: Filled, connection: sa.Connection, _cursor: Any, statement: str, parameters: Any) -> None:
    if statement.startswith(("SELECT", "WITH")):
        driver = connection.connection.cursor()
        driver.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        found.spent += _touched(driver.fetchone()[0][0]["Plan"])


def _touched(plan: dict[str, Any]) -> int:
    here = 0
    if "Relation Name" in plan or "Index Name" in plan:
        removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        here = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return here + sum(_touched(part) for part in plan.get("Plans", ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_it_costs_the_same_when_there_is_ten_times_as_much(grown: tuple[Filled, Filled], name: str) -> None:
    small, large = (filled.cost(OPERATIONS[name]) for filled in grown)
    assert large <= AT_MOST * small + FEW, f"{small} before, {large} now"


def test_a_scan_would_be_seen(grown: tuple[Filled, Filled]) -> None:
    """The test above can fail, whatever plan PostgreSQL makes of either."""
    small, large = (filled.cost(lambda tx, size: tx.audit.indexed(size.entries)) for filled in grown)
    assert large > 2 * AT_MOST * small + FEW
