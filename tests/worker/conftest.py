"""A store with one small learning problem, filled through the service functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.config import Settings
from app.domain import Actor, CycleState, InputSpec
from app.intake.arrays import Limits
from app.service import cycles, ingest, models
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from app.worker.runner import Worker
from espalier.formats import megabatch
from tests.decoding import decoded_here

RECIPE: dict[str, Any] = {
    "network": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "minibatch": 16, "learning_rate": 0.05},
}
LIMITS = Limits(max_bytes=2**26, seconds=60.0, memory_bytes=2**31)


@dataclass
class Shop:
    """A store, settings for quick workers, and a clock that can be moved."""

    url: str
    folder: Path
    ahead: timedelta = timedelta()
    lease_seconds: float = 3.0
    stores: list[Store] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings(
            data_dir=self.folder, tick_seconds=0.02, lease_seconds=self.lease_seconds, heartbeat_seconds=0.05
        )

    def store(self) -> Store:
        made = Store(self.url, Blobs(self.folder / "blobs"), clock=lambda: datetime.now(UTC) + self.ahead)
        self.stores.append(made)
        return made

    def migrate(self) -> None:
        migrate(self.url)

    def create(self, store: Store, name: str, **recipe: Any) -> None:
        models.create_model(
            store, name=name, recipe=RECIPE | recipe, input=InputSpec(), architectures=(), actor=Actor("tester")
        )

    def upload(self, store: Store, name: str, seed: int = 1) -> int | None:
        random = np.random.default_rng(seed)
        y = np.arange(60) % 3
        x = (np.eye(3, 5)[y] * 4 + random.normal(size=(60, 5))).astype(np.float32)
        with store.blobs.receiver(2**24) as receiver:
            receiver.write(megabatch.encode(x, y))
            staged = receiver.finish()
            accepted = ingest.accept_megabatch(store, name, staged, limits=LIMITS, actor=Actor("tester"))
        return accepted.cycle.number if accepted.cycle else None

    def published(self, store: Store, name: str, number: int) -> bool:
        return cycles.get_cycle(store, name, number).state is CycleState.PUBLISHED

    @contextmanager
    def working(self) -> Iterator[Worker]:
        """A worker that runs in a thread, stopped at the end."""
        worker = Worker(self.store(), self.settings, where=torch.device("cpu"))
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(30)
            assert not thread.is_alive(), "the worker did not stop"

    def until(self, look: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not look():
            assert time.monotonic() < end, "what was waited for did not happen"
            time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def _decoded_here(request: pytest.FixtureRequest) -> Iterator[None]:
    with decoded_here(request.module):
        yield


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """An empty folder, not migrated yet."""
    made = Shop(f"sqlite:///{tmp_path / 'espalier.db'}", tmp_path)
    yield made
    for store in made.stores:
        store.dispose()
