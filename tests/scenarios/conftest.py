"""A deployment of real processes on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment


@pytest.fixture
def on_each_database(database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """A migrated deployment without processes: on the embedded database, and on PostgreSQL where there is one."""
    url = "" if database_url.startswith("sqlite") else database_url
    with Deployment(tmp_path, url) as made:
        yield made


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A migrated deployment without processes, on the embedded database."""
    with Deployment(tmp_path) as made:
        yield made
