"""The real application on a real database, and the steps that a client and a worker take with it."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from httpx import Response

from app.api.application import create_app
from app.config import Settings
from app.domain import Actor, CycleTrigger, Layer, MegabatchDraft, Verdict, Version, VersionDraft, VersionStatus
from app.service.state import State, encode_state
from app.store.database import Store
from app.store.migrate import migrate
from app.store.numbers import Numbers
from espalier.formats import checkpoint, megabatch
from espalier.formats.canonical import sha256_digest
from tests.decoding import decoded_here

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have httpx2; the client package speaks httpx
    from starlette.testclient import TestClient

WORKER = Actor("worker-1")
RECIPE: dict[str, Any] = {"network": {"name": "mlp", "hidden": [4]}}
OCTETS = {"Content-Type": "application/octet-stream"}


def examples(seed: int = 1, n: int = 24, features: int = 4, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A small labelled set in which every class occurs."""
    random = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.int64) % classes
    return random.normal(size=(n, features)).astype(np.float32), y


def upload_bytes(seed: int = 1) -> bytes:
    return megabatch.encode(*examples(seed))


def store_array(store: Store, array: np.ndarray) -> str:
    packed = io.BytesIO()
    np.save(packed, array)
    return store.blobs.put(packed.getvalue())


def content_digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@dataclass
class House:
    """An application with a client, and what happens around it."""

    app: FastAPI
    http: TestClient
    settings: Settings

    @property
    def store(self) -> Store:
        store: Store = self.app.state.store
        return store

    def create(self, name: str = "gas", **body: Any) -> Response:
        return self.http.post("/v1/models", json={"name": name, "recipe": RECIPE, **body})

    def upload(self, seed: int = 1, name: str = "gas", data: bytes | None = None, **headers: str) -> Response:
        body = upload_bytes(seed) if data is None else data
        return self.http.post(f"/v1/models/{name}/megabatches", content=body, headers={**OCTETS, **headers})

    def publish(self, seed: int = 1, name: str = "gas", passed: bool = True) -> Version:
        """Take in a megabatch, and publish what a worker would have made of it."""
        store = self.store
        self._take_in(seed, name)
        with store.transaction(WORKER) as tx:
            claim = tx.ledger.claim_cycle("worker-1", 60)
            assert claim is not None
            tx.audit.append("cycle.started", model=name, parameters={"cycle": claim.cycle.number})
        random = np.random.default_rng(seed)
        weight = random.normal(size=(4, 8)).astype(np.float32)
        mask = np.abs(weight) > 0.5
        arrays, masks = {"0.weight": np.where(mask, weight, np.float32(0))}, {"0.weight": mask}
        data = checkpoint.encode(arrays, masks, {"model": name, "version": claim.next_version})
        dense = checkpoint.encode_dense(checkpoint.decode(data))
        parent = claim.parent
        draft = VersionDraft(
            status=VersionStatus.PUBLISHED if passed else VersionStatus.WITHHELD,
            stage=(parent.stage if parent else 0) + 1,
            depth=(parent.depth if parent else 0) + 1,
            target_density=0.5,
            kept=int(mask.sum()),
            total=mask.size,
            layers=(Layer("0.weight", (4, 8), int(mask.sum()), mask.size),),
            metrics={"validation_accuracy": 0.75},
            verdict=Verdict(passed, () if passed else ("accuracy fell",)),
            checkpoint=store.blobs.put(data),
            checkpoint_bytes=len(data),
            dense=sha256_digest(dense),
            dense_bytes=len(dense),
            mask_digest=checkpoint.mask_digest(masks),
            state=store.blobs.put(encode_state(State(Numbers(range(1, claim.cycle.through + 1))))),
            megabatches=claim.cycle.through,
            manifest=checkpoint.decode(data).manifest,
        )
        with store.transaction(WORKER) as tx:
            model = tx.ledger.lock_model(name)
            version = tx.ledger.publish_version(claim, draft)
            if passed:
                tx.ledger.move_alias(model, "champion", version.number, expected_revision=None, reason="passed")
            parameters = {"cycle": claim.cycle.number, "version": version.number}
            tx.audit.append("version.published", model=name, parameters=parameters)
        return version

    def _take_in(self, seed: int, name: str) -> None:
        """What an upload comes to, without the subprocess that decodes it."""
        x, y = examples(seed)
        parts = [store_array(self.store, array) for array in (x, y, megabatch.example_ids(x))]
        draft = MegabatchDraft(megabatch.arrays_digest(x, y), *parts, len(x), x.nbytes, (8, 8, 8))
        with self.store.transaction(WORKER) as tx:
            model = tx.ledger.lock_model(name)
            taken, new = tx.buffer.add_megabatch(model, draft)
            assert new
            tx.ledger.enqueue_cycle(model, CycleTrigger.MEGABATCHES, taken.number)
            tx.audit.append("megabatch.accepted", model=name, parameters={"megabatch": taken.number})

    def revision(self, name: str = "gas") -> dict[str, str]:
        """If-Match for a move of the champion."""
        return {"If-Match": self.http.get(f"/v1/models/{name}/aliases/champion").headers["ETag"]}

    def staged(self) -> list[Path]:
        """What lies in staging: nothing should, between requests."""
        staging = self.store.blobs.root / "staging"
        return sorted(staging.iterdir()) if staging.exists() else []


@pytest.fixture(scope="module", autouse=True)
def _decoded_here(request: pytest.FixtureRequest) -> Iterator[None]:
    with decoded_here(request.module):
        yield


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url, max_upload_bytes=256 * 1024)


@contextmanager
def opened(settings: Settings) -> Iterator[House]:
    """A started application."""
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False) as http:
        yield House(app, http, settings)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    with opened(settings) as found:
        yield found


@pytest.fixture(scope="module")
def still_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """An application for requests that change nothing, with one model, ``gas``."""
    still = Settings(data_dir=tmp_path_factory.mktemp("still"))
    still.data_dir.mkdir(exist_ok=True)
    migrate(still.resolved_database_url)
    with opened(still) as found:
        found.create().raise_for_status()
        yield found


@pytest.fixture
def locked_house(settings: Settings) -> Iterator[House]:
    """The same, with a key."""
    with opened(Settings(**{**settings.model_dump(), "api_key": "a-long-key"})) as found:
        yield found


def problem(response: Response, status: int, slug: str) -> dict[str, Any]:
    """Check that an answer is a problem document of this kind, and return it."""
    assert response.headers["Content-Type"] == "application/problem+json", response.text
    document: dict[str, Any] = response.json()
    assert (response.status_code, document["type"]) == (status, f"urn:espalier:problem:{slug}"), document
    assert document["status"] == status
    assert document["title"] and document["detail"]
    assert isinstance(document["errors"], list)
    assert document["request_id"] == response.headers["X-Request-Id"]
    return document
