"""The nth operation fails, n = 1 to the end, of the disk, of the database and of the bucket: a documented error, no
half state, and whoever tries again gets what an undisturbed run gives.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.api.problems import TABLE
from app.errors import EspalierError
from tests.faults import failing
from tests.faults.steps import (
    DIALECTS,
    OLD,
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
from tests.s3 import S3

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
        with self.copied() as copy, copy.opened() as place:
            self.before = exact(place)
            self.told = step.act(place)
            self.expected = picture(place, step.extra)
            assert problems(place) == []

    def copied(self) -> AbstractContextManager[Site]:
        return self.site.copied(self.folder)

    def fails(self, fault: Fault, nth: int, tally: Any, where: str) -> bool:
        """Whether there was an nth operation to fail."""
        with self.copied() as copy, copy.opened() as place:
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


def every(case: Case, fault: Fault, tally: Any, name: str, stride: int = 1) -> int:
    """Let each operation fail in turn, or every so-manyth; gives the number of the last one."""
    for nth in count(1, stride):
        if not case.fails(fault, nth, tally, f"{case.step.name}: {name} at operation {nth}"):
            return nth - stride
    raise AssertionError


@pytest.fixture(scope="module", params=DIALECTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("nth") / "site", request.param) as found:
        yield replace(found, snapshot_seconds=3600.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("nth") / "small", "sqlite") as found:
        yield replace(found, snapshot_seconds=3600.0)


@pytest.fixture(scope="module")
def in_a_bucket(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3, Site]]:
    """A deployment whose blobs lie in a bucket; nothing of it is cached on this machine."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.environment.items():
            patched.setenv(name, value)
        folder = tmp_path_factory.mktemp("nth") / "bucket"
        bucket = s3_server.new_bucket()
        with prepared(folder, "sqlite", f"s3://{bucket}") as found:
            s3_server.age(bucket, "", OLD)
            shutil.rmtree(folder / "blobs" / "cache")
            yield s3_server, replace(found, snapshot_seconds=3600.0)


class BucketCase(Case):
    """The same, on a copy of the bucket."""

    def __init__(self, s3: S3, site: Site, step: Step, folder: Path) -> None:
        self.s3 = s3
        super().__init__(site, step, folder)

    @contextmanager
    def copied(self) -> Iterator[Site]:
        with super().copied() as copy:
            yield replace(copy, blobs_url=f"s3://{self.s3.copy(self.site.blobs_url.removeprefix('s3://'))}")


@pytest.mark.parametrize("status", [500, 503, 403])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_request(in_a_bucket: tuple[S3, Site], step: Step, status: int, tmp_path: Path, tally: Any) -> None:
    s3, site = in_a_bucket
    case = BucketCase(s3, site, step, tmp_path / "copy")
    stride = 1 if status == 500 else 3  # what follows is the same; the words are not
    every(case, lambda _place, nth: failing.bucket(s3, nth, status), tally, f"status {status}", stride)


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
    stride = 2 if site.database else 1 if kind == "IOERR" else 3
    assert every(Case(site, step, tmp_path / "copy"), SQL[kind], tally, kind, stride) > 0


@pytest.mark.sample
@pytest.mark.parametrize("name", ["rollback", "key"])
def test_a_sample_of_faults(small: Site, name: str, tmp_path: Path, tally: Any) -> None:
    case = Case(small, STEPS[name], tmp_path / "copy")
    for nth in (1, 2, 5):
        case.fails(SQL["IOERR"], nth, tally, "IOERR")
        case.fails(DISK["EIO"], nth, tally, "EIO")


@pytest.mark.sample
def test_a_database_that_is_full_for_long_pauses_no_model(small: Site, tmp_path: Path, tally: Any) -> None:
    """However often a version could not be published, the next attempt is made; it was no fault of the cycle."""
    with small.copied(tmp_path / "copy") as copy, copy.opened() as place:
        for attempt in range(1, place.settings.max_failures + 2):
            with failing.statements(place.store, "INSERT INTO versions", sqlite3.SQLITE_FULL):
                ended = place.cycle()
            tally.add(injected=1)
            assert ended is not None and (ended.state, ended.failures) == ("queued", attempt)
        ended = place.cycle()
        assert ended is not None and ended.version == 3
        assert problems(place) == []
