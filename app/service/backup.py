"""Backup: everything that a deployment remembers, as files in a folder, and back from there.

Knows: what belongs together (rows, the blobs that they name, the last signed checkpoint of the log), and in which order
it is copied. Must never know: how rows are spelled (``store.dump``), HTTP, torch.

A folder holds any number of snapshots, and every blob once:

    blobs/ab/abcd...                      bytes, by SHA-256
    snapshots/20260302T093000Z/
        database.jsonl.zst                every row
        blobs.txt                         the digests that they name, one a line
        checkpoint                        the log's last signed checkpoint, if one was signed
        manifest.json                     what the others must hash to; written last, so a snapshot is whole or is none

Laws:
    * A snapshot is one state of the database. Rows are copied before bytes, since bytes are there before rows.
    * A cycle that runs is copied as one that has not begun: its worker's snapshots come and go while it is copied.
    * What is in the folder already is not copied again; nothing of it is changed.
    * Restoring fills what is empty, or changes nothing: bytes first, rows last, every byte checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard

from app import __version__
from app.config import Settings
from app.domain import Actor, Digest, LogHead
from app.errors import CorruptBlob, Fault, MissingBlob, NotFound
from app.service.history import Finding, examine
from app.store.blobs import disk_errors
from app.store.database import Store, Transaction
from app.store.dump import lines, load, snapshot
from app.store.migrate import newest_revision
from espalier.formats.canonical import canonical_json, sha256_digest

FORMAT = "espalier-backup-1"

Progress = Callable[[int, int], None]
"""Told how many blobs are done, and how many there are."""

_TRIES = 3
_STAMP = "%Y%m%dT%H%M%SZ"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state, as it lies in a backup folder.

    Attributes:
        path: its own folder.
        made_at: when.
        head: of the log then.
        blobs: digests of all that it names.
        bytes: of those blobs together.
        missing: blobs that it names and that were not whole when it was made.
    """

    path: Path
    made_at: datetime
    head: LogHead
    blobs: tuple[Digest, ...]
    bytes: int
    missing: tuple[str, ...]


# -- out ---------------------------------------------------------------------------------------------------------------


def back_up(store: Store, settings: Settings, folder: Path, *, keep: int = 0, progress: Progress) -> Snapshot:
    """Add a snapshot of a deployment to a folder, while the deployment runs.

    Args:
        folder: made where it is missing; on another disk than the deployment, or it is no backup.
        keep: afterwards only so many of the newest snapshots stay, and the blobs that they name; 0: all.
        progress: told of each blob.

    Raises:
        StorageFull, StoreBusy, SchemaMismatch: no snapshot was added.
    """
    store.check_schema()
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
        for last in (False,) * (_TRIES - 1) + (True,):
            made = _attempt(store, settings, folder, progress, last=last)
            if made is not None:
                break
        assert made is not None, "the last attempt takes what it finds"
        if keep:
            _forget(folder, keep)
    return made


def _attempt(store: Store, settings: Settings, folder: Path, progress: Progress, *, last: bool) -> Snapshot | None:
    """One snapshot; None if bytes that it names were given up meanwhile, unless it is the last attempt."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as name:
        work = Path(name)
        with snapshot(settings.resolved_database_url, work) as connection:
            seen = Transaction(connection, Actor("backup"), store.clock())
            digests = sorted(seen.ledger.named_blobs(snapshots=False))
            head = seen.audit.head()
            _write_lines(work / "database.jsonl.zst", lines(connection))
        (work / "snapshot.db").unlink(missing_ok=True)
        missing, taken = _copy_blobs(store, folder / "blobs", digests, progress)
        if missing and not last and _given_up(store, missing):
            return None
        (work / "blobs.txt").write_text("".join(f"{digest}\n" for digest in digests))
        signed = settings.data_dir / "log" / "checkpoint"
        if signed.is_file():
            shutil.copyfile(signed, work / "checkpoint")
        told = tuple(f"{digest}: {why}" for digest, why in missing.items())
        return _finish(work, folder, store.clock(), head, taken, told)


def _write_lines(path: Path, given: Iterable[str]) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as packed:
        for line in given:
            packed.write(line.encode() + b"\n")


def _copy_blobs(
    store: Store, place: Path, digests: Sequence[Digest], progress: Progress
) -> tuple[dict[Digest, str], int]:
    """Copy what is not there yet. Returns what could not be copied and why, and the bytes of all the others."""
    missing: dict[Digest, str] = {}
    taken = 0
    for done, digest in enumerate(digests, 1):
        target = _place_of(place, digest)
        try:
            if not target.exists():
                _copy(store.blobs.verified(digest), target)
            taken += target.stat().st_size
        except (MissingBlob, CorruptBlob) as error:
            missing[digest] = str(error)
        progress(done, len(digests))
    return missing, taken


def _copy(source: Path, target: Path) -> None:
    """Bytes under their name, durable before the name is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, unfinished)
        _sync(unfinished)
        unfinished.replace(target)
        _sync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _given_up(store: Store, missing: Iterable[Digest]) -> bool:
    """Whether retention or an erasure took any of these after the snapshot: then another snapshot does not name it."""
    wanted = set(missing)
    with store.reading() as tx:
        return tx.ledger.references(wanted) != wanted


def _finish(work: Path, folder: Path, now: datetime, head: LogHead, taken: int, missing: tuple[str, ...]) -> Snapshot:
    for path in work.iterdir():
        _sync(path)
    document = {
        "format": FORMAT,
        "made_at": now.astimezone(UTC).isoformat(),
        "espalier": __version__,
        "schema": newest_revision(),
        "log": {"size": head.size, "root": head.root},
        "blob_bytes": taken,
        "missing": list(missing),
        "files": {path.name: _digest_of(path) for path in sorted(work.iterdir())},
    }
    manifest = work / "manifest.json"
    manifest.write_text(json.dumps({**document, "digest": _own_digest(document)}, indent=2) + "\n")
    _sync(manifest)
    target = _free_name(folder / "snapshots", now)
    target.mkdir(parents=True)
    for path in sorted(work.iterdir(), key=lambda path: path.name == manifest.name):
        path.replace(target / path.name)
    _sync(target)
    _sync(target.parent)
    return opened(target)


def _free_name(snapshots: Path, now: datetime) -> Path:
    stamp = now.astimezone(UTC).strftime(_STAMP)
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1000))]
    return next(snapshots / name for name in names if not (snapshots / name).exists())


def _forget(folder: Path, keep: int) -> None:
    """Remove all but the newest snapshots, and the blobs that no other one names."""
    found = snapshots_in(folder)
    for old in found[:-keep]:
        (old.path / "manifest.json").unlink()  # first: what is left is no snapshot any more
        shutil.rmtree(old.path)
    named = {digest for one in found[-keep:] for digest in one.blobs}
    for path in (folder / "blobs").glob("??/*"):
        if f"sha256:{path.name}" not in named:
            path.unlink()


# -- in ----------------------------------------------------------------------------------------------------------------


@disk_errors()
def restore(store: Store, settings: Settings, taken: Snapshot, *, progress: Progress) -> list[Finding]:
    """Fill an empty deployment from a snapshot, and judge it.

    Args:
        store: of a deployment whose database is empty, with or without a schema.
        taken: as ``newest`` or ``opened`` gave it.
        progress: told of each blob.

    Returns:
        What the fsck has to say about it: nothing, for a snapshot that was whole.

    Raises:
        Conflict: the database is not empty; nothing was changed.
        Fault: a file of the snapshot is not what it was; the database is as empty as before.
    """
    folder = taken.path.parent.parent / "blobs"
    gone = {line.partition(": ")[0] for line in taken.missing}
    for done, digest in enumerate(taken.blobs, 1):
        if digest not in gone:
            _take_in(store, _place_of(folder, digest), digest)
        progress(done, len(taken.blobs))
    with _read_lines(taken.path / "database.jsonl.zst") as copied:
        load(settings.resolved_database_url, copied)
    _restore_checkpoint(settings, taken)
    return examine(store)


def _take_in(store: Store, source: Path, digest: Digest) -> None:
    if store.blobs.has(digest):
        return
    try:
        with store.blobs.workspace() as work, source.open("rb") as given:
            staged = work / "blob"
            with staged.open("wb") as file:
                shutil.copyfileobj(given, file, _BLOCK)
            found, _ = store.blobs.keep(staged)
    except FileNotFoundError as error:
        raise Fault(f"{source} is missing in the backup: take another snapshot, or another copy of it") from error
    if found != digest:
        store.blobs.discard(found)
        raise Fault(f"{source} is damaged: its bytes hash to {found}")


def _restore_checkpoint(settings: Settings, taken: Snapshot) -> None:
    """What was signed before the backup, unless more was signed here since: that must not be forgotten."""
    source, target = taken.path / "checkpoint", settings.data_dir / "log" / "checkpoint"
    if source.is_file() and not target.exists():
        _copy(source, target)


@contextmanager
def _read_lines(path: Path) -> Iterator[Iterator[str]]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as packed:
        yield _split(packed)


def _split(packed: Any) -> Iterator[str]:
    rest = b""
    try:
        while block := packed.read(_BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            yield from (line.decode() for line in whole)
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise Fault("the copy of the database is damaged: take another snapshot") from error
    if rest:
        raise Fault("the copy of the database ends in the middle of a line: take another snapshot")


# -- what is there -----------------------------------------------------------------------------------------------------


def snapshots_in(folder: Path) -> list[Snapshot]:
    """Every whole snapshot of a folder, the oldest first."""
    found = [opened(path.parent) for path in (folder / "snapshots").glob("*/manifest.json")]
    return sorted(found, key=lambda one: (one.made_at, one.path.name))


def newest(folder: Path) -> Snapshot:
    """The newest snapshot of a folder.

    Raises:
        NotFound: there is none.
    """
    found = snapshots_in(folder)
    if not found:
        raise NotFound(f"{folder} holds no snapshot: `espalier backup` makes one")
    return found[-1]


@disk_errors()
def opened(path: Path) -> Snapshot:
    """A snapshot, once its own files are what its manifest says.

    Raises:
        NotFound: there is none here.
        Fault: a file of it is damaged or missing.
    """
    document = _manifest(path)
    for name, digest in document["files"].items():
        if not (path / name).is_file() or _digest_of(path / name) != digest:
            raise Fault(f"{path / name} is damaged or missing: take another snapshot, or another copy of it")
    return Snapshot(
        path=path,
        made_at=datetime.fromisoformat(document["made_at"]),
        head=LogHead(document["log"]["size"], document["log"]["root"]),
        blobs=tuple((path / "blobs.txt").read_text().split()),
        bytes=document["blob_bytes"],
        missing=tuple(document["missing"]),
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError as error:
        raise NotFound(f"{path} is no snapshot: it has no manifest.json") from error
    except ValueError as error:
        raise Fault(f"{path / 'manifest.json'} is damaged: take another snapshot") from error
    if document.pop("digest", None) != _own_digest(document):
        raise Fault(f"{path / 'manifest.json'} is damaged: take another snapshot")
    if document["format"] != FORMAT:
        raise Fault(f"{path} has the format {document['format']!r}, which this version cannot read")
    return document


def _own_digest(document: dict[str, Any]) -> Digest:
    """What a manifest says of itself, so that a bit of it that changed is seen."""
    return sha256_digest(canonical_json(document))


@disk_errors()
def check(taken: Snapshot, *, progress: Progress) -> list[str]:
    """Hash every blob of a snapshot where it lies. Returns what is wrong, in words."""
    folder, faults = taken.path.parent.parent / "blobs", list(taken.missing)
    gone = {line.partition(": ")[0] for line in taken.missing}
    for done, digest in enumerate(taken.blobs, 1):
        path = _place_of(folder, digest)
        if digest not in gone and not path.is_file():
            faults.append(f"{path} is missing")
        elif digest not in gone and _digest_of(path) != digest:
            faults.append(f"{path} is damaged")
        progress(done, len(taken.blobs))
    return faults


def _place_of(folder: Path, digest: Digest) -> Path:
    name = digest.removeprefix("sha256:")
    return folder / name[:2] / name


def _digest_of(path: Path) -> Digest:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
