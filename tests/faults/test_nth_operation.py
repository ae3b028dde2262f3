"""The nth operation fails, n = 1 to the end, of the disk, of the database and of the bucket: a documented error, no
half state, and whoever tries again gets what an undisturbed run gives.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.api.problems import TABLE
from app.errors import EspalierError
from tests.faults import failing
from tests.faults.steps import (
    DIALECTS,
    STEPS,
    Place,
    Site,
    Step,
    differences,
    exact,
    picture,
    prepared,
    problems,
    tidied,
)

pytestmark = pytest.mark.timeout(3600)
LONELY = {"erased"}
"""What doctor may say between a fault and the next sweep: the erasure is done, and its bytes are about to go."""

Fault = Callable[[Place, int], AbstractContextManager[failing.Countdown]]

DISK: dict[str, Fault] = {
    "EIO": lambda place, nth: failing.disk(place.settings.data_dir.parent, nth, errno.EIO),
    "ENOSPC": lambda place, nth: failing.disk(place.settings.data_dir.parent, nth, errno.ENOSPC),
}
SQL: dict[str, Fault] = {
    "IOERR": lambda place, nth: failing.database(place.store, nth, sqlite3.SQLITE_IOERR),
    "FULL": lambda place, nth: failing.database(place.store, nth, sqlite3.SQLITE_FULL),
    "BUSY": lambda place, nth: failing.database(place.store, nth, sqlite3.SQLITE_BUSY),
}


class Case:
    """One step, and what it comes to when nothing fails."""

    def __init__(self, site: Site, step: Step, folder: Path) -> None:
        self.site, self.step, self.folder = site, step, folder
        with site.copied(folder) as copy, copy.opened() as place:
            self.before = exact(place)
            self.told = step.act(place)
            self.expected = picture(place, step.extra)
            assert problems(place) == []

    def fails(self, fault: Fault, nth: int, tally: Any, where: str) -> bool:
        """Whether there was an nth operation to fail."""
        with self.site.copied(self.folder) as copy, copy.opened() as place:
            failed, happened = self._attempt(place, fault, nth)
            if not happened:
                return False
            tally.add(injected=1)
            assert [one for one in problems(place) if getattr(one, "kind", "") not in LONELY] == [], where
            if failed and self.step.whole:
                assert exact(place) == self.before, f"{where}: half a state"
            self.step.resume(place)
            told = self.step.act(place)
            found = picture(place, self.step.extra)
            assert problems(place) == [], where
            wrong = differences(found, self.expected)
            tally.add(**wrong)
            assert not any(wrong.values()), (where, wrong)
            assert told == self.told, where
            assert tidied(place) == [], where
        return True

    def _attempt(self, place: Place, fault: Fault, nth: int) -> tuple[bool, bool]:
        with fault(place, nth) as operations:
            try:
                told = self.step.act(place)
            except EspalierError as error:
                said = error
            else:
                assert not operations.happened or told == self.told, "it said that it had done something else"
                return False, operations.happened
        assert any(kind in TABLE for kind in type(said).__mro__) and str(said)
        return True, operations.happened


def every(case: Case, fault: Fault, tally: Any, name: str) -> int:
    for nth in count(1):
        if not case.fails(fault, nth, tally, f"{case.step.name}: {name} at operation {nth}"):
            return nth - 1
    raise AssertionError


@pytest.fixture(scope="module", params=DIALECTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("nth") / "site", request.param) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("nth") / "small", "sqlite") as found:
        yield found


@pytest.mark.parametrize("kind", DISK)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_operation_on_a_file(small: Site, step: Step, kind: str, tmp_path: Path, tally: Any) -> None:
    operations = every(Case(small, step, tmp_path / "copy"), DISK[kind], tally, kind)
    assert operations > 0 or step.name in ("rollback", "promote", "key"), "nothing to fail"


@pytest.mark.parametrize("kind", SQL)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_statement(site: Site, step: Step, kind: str, tmp_path: Path, tally: Any) -> None:
    if site.database and kind != "IOERR":
        return  # there the connection is cut, whatever the kind
    assert every(Case(site, step, tmp_path / "copy"), SQL[kind], tally, kind) > 0


@pytest.mark.sample
@pytest.mark.parametrize("name", ["rollback", "key"])
def test_a_sample_of_faults(small: Site, name: str, tmp_path: Path, tally: Any) -> None:
    case = Case(small, STEPS[name], tmp_path / "copy")
    for nth in (1, 2, 5):
        case.fails(SQL["IOERR"], nth, tally, "IOERR")
        case.fails(DISK["EIO"], nth, tally, "EIO")
