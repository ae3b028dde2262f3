"""A small learning problem, and the steps that a deployment takes with it, through the service functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.config import Settings
from app.domain import Actor, Cycle, InputSpec, Version
from app.intake.arrays import Limits
from app.service import ingest, models, release, training
from app.service.lease import Running
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.formats import megabatch
from tests.decoding import decoded_here

ACTOR = Actor("tester", "request-1")
LIMITS = Limits(max_bytes=64 * 2**20, seconds=30.0, memory_bytes=2 * 2**30)
RECIPE: dict[str, Any] = {
    "network": {"name": "mlp", "hidden": [16]},
    "training": {"epochs": 3, "minibatch": 16, "learning_rate": 0.05},
    "schedule": {"name": "app", "tau": 4.5, "stages": 4},
}


def blob_of_examples(seed: int, n: int = 120, features: int = 8, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clusters around fixed centres, one per class: learnable in a few epochs."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, features)) * 3
    y = random.integers(0, classes, n)
    y[:classes] = np.arange(classes)
    return (centres[y] + random.normal(size=(n, features))).astype(np.float32), y.astype(np.int64)


@dataclass
class House:
    """A store with settings, and the use cases as one-liners."""

    store: Store
    settings: Settings
    running: Running = field(default_factory=lambda: Running("worker-1"))

    def create(self, name: str = "gas", recipe: dict[str, Any] | None = None, **spec: Any) -> None:
        models.create_model(
            self.store,
            name=name,
            recipe=recipe or RECIPE,
            input=InputSpec(**spec),
            architectures=self.settings.architectures,
            actor=ACTOR,
        )

    def upload(self, name: str = "gas", seed: int = 1, **arrays: Any) -> ingest.Accepted:
        x, y = arrays.get("x"), arrays.get("y")
        if x is None:
            x, y = blob_of_examples(seed)
        return self.upload_bytes(megabatch.encode(x, y), name)

    def upload_bytes(self, data: bytes, name: str = "gas") -> ingest.Accepted:
        with self.store.blobs.receiver(LIMITS.max_bytes) as receiver:
            receiver.write(data)
            return ingest.accept_megabatch(self.store, name, receiver.finish(), limits=LIMITS, actor=ACTOR)

    def cycle(self) -> Cycle | None:
        return training.run_next_cycle(self.store, self.settings, running=self.running, device=torch.device("cpu"))

    def grow(self, versions: int, name: str = "gas") -> None:
        """Upload and train until the model has this many versions."""
        for number in range(1, versions + 1):
            self.upload(name, seed=number)
            ended = self.cycle()
            assert ended is not None and ended.version == number, ended

    def champion(self, name: str = "gas") -> Version:
        return release.get_version(self.store, name, "champion").version

    def manifest(self, ref: int | str = "champion", name: str = "gas") -> Mapping[str, Any]:
        return release.get_manifest(self.store, name, str(ref))[1]

    def revision(self, name: str = "gas") -> int:
        return release.get_alias(self.store, name, "champion").revision

    def kinds(self, name: str | None = "gas") -> list[str]:
        with self.store.reading() as tx:
            return [entry.kind for entry in tx.audit.entries(name, None, 1000).items]


@pytest.fixture(scope="module", autouse=True)
def _decoded_here(request: pytest.FixtureRequest) -> Iterator[None]:
    with decoded_here(request.module):
        yield


@pytest.fixture
def house(store: Store, tmp_path: Path) -> House:
    return House(store, Settings(data_dir=tmp_path / "data", retry_seconds=0.0))


@pytest.fixture
def second_house(house: House, tmp_path: Path) -> Iterator[House]:
    """Another deployment of the same kind, to compare with; its database is SQLite."""
    url = f"sqlite:///{tmp_path / 'second.db'}"
    migrate(url)
    store = Store(url, Blobs(tmp_path / "second" / "blobs"))
    yield House(store, house.settings)
    store.dispose()
