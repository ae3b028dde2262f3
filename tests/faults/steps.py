"""What a deployment does, step by step, and what must be the same afterwards whatever happened in between.

A ``Step`` begins on a copy of one prepared deployment. Its ``act`` may be interrupted anywhere, and may be done again
by whoever comes next, as a client, a worker or an operator would; then ``picture`` tells what became of it all.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch

from app.config import Settings
from app.domain import Scope, UploadState
from app.errors import UnknownKey
from app.intake.arrays import Limits
from app.service import access, backup, erasure, history, ingest, megabatches, outcomes, promotion, release, uploads
from app.service.keyring import LOCAL
from app.service.notary import Notary
from app.service.removal import sweep_erased
from app.store.blobs import open_blobs
from app.store.database import Store
from app.store.migrate import migrate
from app.store.tables import AUDITED, metadata
from app.store.tables import uploads as uploads_table
from espalier.formats import megabatch
from espalier.formats.note import opened
from tests.conftest import SERVER, postgresql_database
from tests.scenarios.deployment import clusters
from tests.service.conftest import ACTOR, House

RECIPE: dict[str, Any] = {
    "seed": 3,
    "network": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 2, "minibatch": 16, "learning_rate": 0.05, "least_steps": 0},
    "guardrails": [],
}
LIMITS = Limits(max_bytes=2**26, seconds=120.0, memory_bytes=2**31)
"""Decoding takes a moment; but the suite runs on machines that do much else."""
OLD = 2 * 24 * 3600.0
DIALECTS = ["sqlite", "postgresql"] if SERVER else ["sqlite"]


def beside(folder: Path) -> Path:
    """Where a deployment in this folder is backed up to."""
    return folder.with_name(f"{folder.name}-backup")


class Place(House):
    """A deployment, opened as a process would open it."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(store, settings)
        self.notary = Notary(store, settings)

    def upload_bytes(self, data: bytes, name: str = "gas") -> ingest.Accepted:
        with self.store.blobs.receiver(LIMITS.max_bytes) as receiver:
            receiver.write(data)
            return ingest.accept_megabatch(self.store, name, receiver.finish(), limits=LIMITS, actor=ACTOR)

    def part(self) -> bytes:
        """The body of the upload that was begun."""
        return megabatch.encode(*clusters(7, n=60))

    def begun(self) -> str:
        """The id of the upload that was begun."""
        (found,) = (name for name, *_ in rows_of(self.store, uploads_table))
        return str(found)


def rows_of(store: Store, table: sa.Table) -> list[tuple[Any, ...]]:
    with store.reading() as tx:
        return [tuple(row) for row in tx.audit._connection.execute(sa.select(table))]


# -- deployments that are copied ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where a deployment lies."""

    folder: Path
    database: str
    blobs_url: str = ""
    snapshot_seconds: float = 0.0

    @property
    def settings(self) -> Settings:
        given = {"data_dir": self.folder, "database_url": self.database, "blobs_url": self.blobs_url}
        return Settings(
            **given, retry_seconds=0.0, snapshot_seconds=self.snapshot_seconds, log_name="example.com/espalier"
        )

    @property
    def url(self) -> str:
        return self.settings.resolved_database_url

    @contextmanager
    def opened(self) -> Iterator[Place]:
        settings = self.settings
        blobs = open_blobs(
            self.blobs_url,
            self.folder / "blobs",
            cache_bytes=2**30,
            grace_seconds=settings.orphan_grace_seconds,
            patience_seconds=0.0,
        )
        store = Store(self.url, blobs, busy_seconds=5.0)
        try:
            yield Place(store, settings)
        finally:
            store.dispose()

    @contextmanager
    def copied(self, folder: Path) -> Iterator[Site]:
        """A copy that is gone afterwards."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        try:
            if not self.database:
                yield replace(self, folder=folder)
            else:
                with postgresql_database(sa.make_url(self.database).database) as url:
                    yield replace(self, folder=folder, database=url)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(beside(folder), ignore_errors=True)


@contextmanager
def prepared(folder: Path, dialect: str, blobs_url: str = "") -> Iterator[Site]:
    """A deployment with a past: two versions, a megabatch that waits, an upload that was begun, orphans."""
    folder.mkdir()
    if dialect == "sqlite":
        yield _furnished(Site(folder, "", blobs_url))
        return
    with postgresql_database() as url:
        yield _furnished(Site(folder, url, blobs_url))


def _furnished(site: Site) -> Site:
    torch.set_num_threads(1)
    migrate(site.url)
    with replace(site, snapshot_seconds=3600.0).opened() as place:
        furnish(place)
    return site


def furnish(place: Place) -> None:
    place.create(recipe=RECIPE)
    for seed in (1, 2):
        place.upload(x=clusters(seed, n=60)[0], y=clusters(seed, n=60)[1])
        ended = place.cycle()
        assert ended is not None and ended.version == seed, ended
    place.upload(x=clusters(3, n=60)[0], y=clusters(3, n=60)[1])
    uploads.create_upload(
        place.store, "gas", uploads.Described(len(place.part())), settings=place.settings, actor=ACTOR
    )
    for number in range(3):
        orphan = place.store.blobs.path(place.store.blobs.put(b"nobody names me" + bytes([number])))
        os.utime(orphan, (time.time() - OLD,) * 2)


# -- steps -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing that is done to a deployment.

    Attributes:
        act: does it, or what is left of it; gives what its caller is told.
        whole: what it changes is changed in one transaction.
        resume: what others do first, when its process died.
        extra: kinds of entries that only say that it was tried again.
    """

    name: str
    act: Callable[[Place], Any]
    whole: bool = True
    resume: Callable[[Place], Any] = lambda _place: None
    extra: Collection[str] = ()


def upload(place: Place) -> Any:
    accepted = place.upload(x=clusters(9, n=60)[0], y=clusters(9, n=60)[1])
    return accepted.megabatch.number, accepted.megabatch.digest


def part(place: Place) -> Any:
    """The rest of a resumable upload, in two parts, and its end."""
    upload, data = place.begun(), place.part()
    found = uploads.get_upload(place.store, upload)
    while found.state is UploadState.OPEN:
        end = min(found.offset + len(data) // 2 + 1, len(data))
        with uploads.appending(place.store, upload, found.offset, length=None, settings=place.settings) as writer:
            writer.write([data[found.offset : end]])
            found = writer.record(complete=end == len(data))
    done = uploads.finish_upload(place.store, upload, limits=LIMITS, settings=place.settings, actor=ACTOR)
    return done.upload.megabatch


def cycle(place: Place) -> Any:
    """Work until the queue is empty."""
    while place.cycle() is not None:
        pass
    version = place.champion()
    return version.number, version.checkpoint, version.mask_digest


def reclaimed(place: Place) -> None:
    """What a worker does when it has seen for a whole lease that another one is silent."""
    outcomes.reclaim(place.store, place.settings, ACTOR, lambda held: held)


def roll_back(place: Place) -> Any:
    alias = release.get_alias(place.store, "gas", "champion")
    if alias.version == 1:
        return 1, alias.revision
    done = release.roll_back(
        place.store, "gas", to="1", reason="drift", quarantine=[2], expected_revision=alias.revision, actor=ACTOR
    )
    return done.version.number, done.alias.revision


def promote(place: Place) -> Any:
    alias = release.get_alias(place.store, "gas", "champion")
    if alias.version == 1:
        return 1, alias.revision
    moved = promotion.promote(place.store, "gas", 1, reason="better", expected_revision=alias.revision, actor=ACTOR)
    assert isinstance(moved, promotion.Moved)
    return moved.version.number, moved.alias.revision


def make_key(place: Place) -> Any:
    try:
        return access.get_key(place.store, "line-3").name
    except UnknownKey:
        wanted = access.Wanted("line-3", frozenset({Scope.READ}))
        return access.create_key(place.store, wanted, caller=LOCAL, actor=ACTOR).key.name


def sign(place: Place) -> Any:
    """Two checkpoints, the first one with a new key; between them the log grows. Each opens, and says what it holds."""
    for _ in range(2):
        found = opened(place.notary.checkpoint(), place.notary.verifier_keys())
        with place.store.reading() as tx:
            assert tx.audit.tree().root(found.size) == found.root
        megabatches.pin_megabatch(place.store, "gas", 1, pinned=True, reason="a rare fault", actor=ACTOR)
    with place.store.reading() as tx:
        assert tx.audit.checkpoints((0, 0), 10)


def rotate(place: Place) -> Any:
    """Another key signs first; both are in the log before they sign."""
    place.notary.checkpoint()
    if len(place.notary.verifier_keys()) == 1:
        place.notary.rotate("a year is over", ACTOR)
    opened(place.notary.checkpoint(), place.notary.verifier_keys())
    return len(place.notary.verifier_keys())


def download(place: Place) -> Any:
    told = []
    for form in ("sparse", "dense"):
        file = release.open_checkpoint(place.store, "gas", "champion", form)
        assert len(place.store.blobs.read(file.digest)) == file.size
        told.append(file.digest)
    return told


def back_up(place: Place) -> Any:
    folder = beside(place.settings.data_dir)
    taken = backup.back_up(place.store, place.settings, folder, progress=lambda _done, _of: None)
    assert backup.check(taken, progress=lambda _done, _of: None) == []
    assert all(backup.check(one, progress=lambda _done, _of: None) == [] for one in backup.snapshots_in(folder))
    return taken.head.size


def sweep(place: Place) -> Any:
    outcomes.sweep(place.store, place.settings, ACTOR)
    return history.unnamed(place.store).blobs


def erase(place: Place) -> Any:
    """A whole megabatch, and some examples of another; production goes on from a version that saw neither."""
    with place.store.reading() as tx:
        model = tx.ledger.model("gas")
        one = tx.buffer.megabatch("gas", 3)
        gone = tx.buffer.erased(model)
    samples: tuple[int, ...] = ()
    if 3 not in gone and not one.erasures:
        ids = io.BytesIO(place.store.blobs.read(one.ids))
        samples = tuple(int(each) for each in np.load(ids)[:5])
    asked = erasure.Asked((2,), samples, retrain=True)
    done = erasure.erase(place.store, "gas", asked, reason="line 4 asked for it", actor=ACTOR)
    sweep_erased(place.store, ACTOR)
    return done.versions


STEPS = {
    step.name: step
    for step in (
        Step("upload", upload),
        Step("part", part, whole=False),
        Step("cycle", cycle, whole=False, resume=reclaimed, extra={"cycle.reclaimed", "cycle.started", "cycle.failed"}),
        Step("rollback", roll_back),
        Step("promote", promote),
        Step("key", make_key),
        Step("checkpoint", sign, whole=False, extra={"log.key-created"}),
        Step("rotation", rotate, whole=False, extra={"log.key-created", "log.key-rotated"}),
        Step("download", download),
        Step("backup", back_up),
        Step("sweep", sweep, whole=False, extra={"data.swept"}),
        Step("erasure", erase, whole=False, extra={"data.erased"}),
    )
}

# -- what became of it -------------------------------------------------------------------------------------------------

_VOLATILE = {"id", "cycle_id", "key_id", "model_id", "hash", "failures", "not_before", "expires_at"}
_APART = ("seq", "time", "request_id", "actor", "rows")
"""What is not compared of an entry; digests of rows are of their times, too, and the doctor compares them."""


def picture(place: Place, without: Collection[str] = ()) -> dict[str, Any]:
    """All that must not depend on faults: rows without times and random numbers, and the log's entries.

    Args:
        without: kinds of entries to leave out.
    """
    found: dict[str, Any] = {}
    for name in sorted(AUDITED | {uploads_table.name}):
        table = metadata.tables[name]
        kept = [c.name for c in table.c if c.name not in _VOLATILE and not c.name.endswith("_at")]
        rows = [dict(zip(table.c.keys(), row, strict=True)) for row in rows_of(place.store, table)]
        found[name] = sorted((_plain([(column, row[column]) for column in kept]) for row in rows), key=repr)
    found["log"] = entries(place, without)
    return found


def entries(place: Place, without: Collection[str] = ()) -> list[Any]:
    found = _without_failed_attempts([entry.document for entry in _entries(place.store)])
    documents = [document for document in found if document["kind"] not in without]
    return [_plain({k: v for k, v in document.items() if k not in _APART}) for document in documents]


def _without_failed_attempts(documents: list[Any]) -> list[Any]:
    """What happened in a cycle before it failed is in the log with its failure; the attempt after it says its own."""
    kept: list[Any] = []
    for document in documents:
        if document["kind"] == "cycle.failed":
            while kept and kept[-1]["time"] == document["time"]:
                kept.pop()
        kept.append(document)
    return kept


def _entries(store: Store) -> Iterator[Any]:
    yield from history._entries(store)


_CHANCE = {"fingerprint", "id", "key", "at"}


def _plain(value: Any) -> Any:
    """A document without what a clock or a random number put into it."""
    if isinstance(value, dict):
        return {
            k: _plain(v)
            for k, v in sorted(value.items())
            if not k.endswith(("_seconds", "_ms", "_at")) and k not in _CHANCE
        }
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, int]:
    """What is missing, there twice, or not in the log: for the tally."""
    counted = {name: (Counter(map(repr, found[name])), Counter(map(repr, expected[name]))) for name in expected}
    missing = {name: (there - here).total() for name, (here, there) in counted.items()}
    more = {name: (here - there).total() for name, (here, there) in counted.items()}
    unaudited = missing.pop("log")
    return {"lost": sum(missing.values()), "doubled": sum(more.values()), "unaudited": unaudited}


def exact(place: Place) -> dict[str, Any]:
    """Every row of every table that says something about the models, and every blob that any row names."""
    found: dict[str, Any] = {name: sorted(map(repr, rows_of(place.store, metadata.tables[name]))) for name in AUDITED}
    found["log"] = [dataclasses.astuple(entry)[0] for entry in _entries(place.store)]
    with place.store.reading() as tx:
        found["blobs"] = sorted(d for d in tx.ledger.named_blobs() if place.store.blobs.has(d))
    return found


def problems(place: Place) -> list[Any]:
    """What ``espalier doctor`` finds, and keys that sign the log though it does not say so."""
    found: list[Any] = list(history.examine(place.store))
    if place.settings.log_keys.exists():
        logged = repr([entry.document for entry in _entries(place.store) if entry.kind.startswith("log.key-")])
        found += [f"key {key.text} signs, unaudited" for key in place.notary.verifier_keys() if key.text not in logged]
    return found


def tidied(place: Place) -> list[str]:
    """What is left when everything that nobody names is old and was swept: files that no row accounts for."""
    store, now = place.store, place.store.clock
    store.clock = lambda: now() + timedelta(seconds=3 * OLD)
    place.notary.tidy()
    uploads.sweep_uploads(store, place.settings)
    outcomes.sweep(store, place.settings, ACTOR)
    store.clock = now
    left = [str(path) for path in (store.blobs.root / "staging").rglob("*")]
    left += [str(path) for path in place.settings.data_dir.rglob(".*") if path.is_file()]
    unnamed = history.unnamed(store).blobs
    return [*left, f"{unnamed} blobs that nobody names"] if unnamed else left
