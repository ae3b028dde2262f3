"""Outcomes: an outage is no fault of a cycle, and costs no version, no pause and no half state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain import CycleState, ModelState
from app.errors import StorageUnreachable
from app.service import history, models
from app.store.blobs import open_blobs
from app.store.database import Store
from tests.s3 import S3
from tests.service.conftest import House


@pytest.fixture
def machines(s3: S3, database_url: str, tmp_path: Path) -> Iterator[list[Store]]:
    """Two stores on one database and one bucket, each with its own copies."""
    url = f"s3://{s3.new_bucket()}"
    stores = [
        Store(
            database_url,
            open_blobs(url, tmp_path / name, cache_bytes=2**30, grace_seconds=3600, patience_seconds=0.2),
        )
        for name in ("api", "worker")
    ]
    yield stores
    for store in stores:
        store.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 403])
def test_a_bucket_that_goes_away_at_any_request_of_a_cycle_costs_nothing(
    house: House, machines: list[Store], s3: S3, status: int
) -> None:
    """From the n-th request on, for every n, until the cycle comes through: more often than it may fail by itself."""
    api, worker = (replace(house, store=store) for store in machines)
    api.create()
    api.upload()
    for n in range(1, 40):
        with s3.failing(lambda number, *_, n=n: (status, "AsTheTestWants") if number >= n else None):  # type: ignore[misc]
            ended = worker.cycle()
        assert ended is not None
        assert history.examine(api.store) == []
        if ended.state is CycleState.PUBLISHED:
            break
        assert (ended.state, ended.version) == (CycleState.QUEUED, None)
        assert "Storage" in str(ended.reason)
        assert models.describe_model(api.store, "gas").model.state is ModelState.ACTIVE
    assert n > api.settings.max_failures
    assert ended.version == 1
    assert api.kinds().count("version.published") == 1
    assert worker.cycle() is None


def test_an_upload_while_the_bucket_is_away_leaves_nothing_and_succeeds_afterwards(
    house: House, machines: list[Store], s3: S3
) -> None:
    api = replace(house, store=machines[0])
    api.create()
    for n in range(1, 20):
        before = api.kinds()
        with s3.failing(lambda number, *_, n=n: (503, "SlowDown") if number >= n else None) as asked:  # type: ignore[misc]
            with suppress(StorageUnreachable):
                api.upload()
            if len(asked) < n:
                break
        assert api.kinds() == before
        assert [path for path in (api.store.blobs.root / "staging").rglob("*") if path.is_file()] == []
    assert n > 3
    assert api.kinds().count("megabatch.accepted") == 1
    assert history.examine(api.store) == []
