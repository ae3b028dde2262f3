"""Facts: what the service knows of a version, gathered for whoever has to judge it elsewhere.

Knows: which rows say what about a version and its data. Must never know: how it is written down (``card``, ``bom``,
``bundle``), HTTP, torch.

Law: nothing is estimated. What was not measured is absent here, and said to be so there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from app.domain import Digest, EvaluationSet, Megabatch, Model, Version, VersionStatus
from app.errors import CorruptBlob
from app.service.state import state_of
from app.store.database import Store, Transaction
from espalier.formats.bundle import manifest_text

_PAGE = 500
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version of the line, as short as a long line needs it."""

    number: int
    cycle: int
    status: VersionStatus
    stage: int
    target_density: float
    density: float
    validation_accuracy: float | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a version.

    Attributes:
        manifest: the checkpoint's.
        line: the version and its ancestors, itself first.
        megabatches: that the lineage has taken in, by number.
        evaluation: the set that it was measured on, if there was one.
    """

    model: Model
    version: Version
    manifest: Mapping[str, Any]
    line: tuple[Ancestor, ...]
    megabatches: tuple[Megabatch, ...]
    evaluation: EvaluationSet | None

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list((self.manifest.get("input") or {}).get("classes") or ())

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The whole recipe that the version was made by."""
        return self.manifest.get("recipe") or {}


def gather(store: Store, version: Version) -> Facts:
    """Everything that is known of a version.

    Raises:
        MissingBlob, CorruptBlob: its checkpoint, or what it hands on, cannot be read.
    """
    manifest = _manifest(store, version)
    seen = list(state_of(store.blobs, version).seen)
    line = tuple(_line(store, version))
    with store.reading() as tx:
        model = tx.ledger.model(version.model)
        evaluation = _evaluation(tx, model, manifest.get("evaluation_set"))
        return Facts(model, version, manifest, line, tuple(tx.buffer.training_set(model, seen)), evaluation)


def _manifest(store: Store, version: Version) -> Mapping[str, Any]:
    """The manifest as the checkpoint has it, which is what its digest covers."""
    path = store.blobs.verified(version.checkpoint)
    try:
        with path.open("rb") as file:
            found: Mapping[str, Any] = json.loads(manifest_text(iter(partial(file.read, _BLOCK), b"")))
    except ValueError as error:
        raise CorruptBlob(f"{path} is no checkpoint ({error}): restore it from a backup") from error
    return found


def _line(store: Store, version: Version) -> Iterator[Ancestor]:
    number: int | None = version.number
    while number is not None:  # a transaction a page: on SQLite a long one would keep every writer waiting
        with store.reading() as tx:
            page = tx.ledger.ancestry(version.model, number, _PAGE)
        yield from map(_in_short, page.items)
        number = None if page.next is None else int(page.next)


def _in_short(version: Version) -> Ancestor:
    accuracy = version.metrics.get("validation_accuracy")
    return Ancestor(
        *(version.number, version.cycle, version.status, version.stage, version.target_density, version.density),
        *(accuracy, version.created_at),
    )


def _evaluation(tx: Transaction, model: Model, digest: Digest | None) -> EvaluationSet | None:
    return next((found for found in tx.buffer.evaluation_sets(model) if found.digest == digest), None)
