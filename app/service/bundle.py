"""Bundles: a version with everything that shows where it comes from, as one file to hand on.

Knows: which bytes and entries go into a bundle, and in which order. Must never know: HTTP, torch, how a reader verifies
(``espalier.formats.bundle`` does, and is what the format is defined by).

Laws:
    * Every entry is proved against one signed checkpoint of the log, which is younger than all of them.
    * Memory does not grow with the checkpoint, nor with the length of the lineage's log; statements do not grow in
      number with the lineage but by the page.
    * While the log stands still, the same version gives the same bytes.
    * What is damaged is not handed out: entries and blobs are checked on their way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app.domain import Alias, Digest, Version
from app.errors import CorruptBlob
from app.service.bom import SPEC, bom
from app.service.card import card
from app.service.facts import Facts, gather
from app.service.notary import Notary
from app.service.release import open_checkpoint
from app.store.blobs import disk_errors
from app.store.database import Store
from espalier.formats import bundle, note, statement
from espalier.formats.archive import Writer
from espalier.formats.note import LogCheckpoint

_BLOCK = 1 << 18
_PAGE = 500
_KINDS = ("model.created", "recipe.revised", "model.classes-extended")
"""Kinds of entries that go into a bundle though they are about no version or cycle."""


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle's file, which is gone when its context ends."""

    path: Path
    digest: Digest
    size: int
    version: Version
    alias: Alias | None


@contextmanager
def open_bundle(store: Store, notary: Notary, name: str, ref: str) -> Iterator[OpenBundle]:
    """A version's bundle, for as long as the context lasts.

    Raises:
        UnknownModel, UnknownVersion, VersionSwept: no such version, or its bytes were given up.
        MissingBlob, CorruptBlob: its bytes are gone or changed.
        LogBehind, Fault: the log cannot be signed, or an entry does not hold.
        StorageFull: there is no room for the file; nothing is left of it.
    """
    found = open_checkpoint(store, name, ref, "sparse")
    facts, signed = gather(store, found.version), notary.checkpoint()
    with store.blobs.workspace() as folder:
        target = folder / "bundle.zip"
        with disk_errors(), target.open("x+b") as file:
            _write(store, notary, facts, found.path, signed, Writer(file), folder)
            file.flush()
            size = os.fstat(file.fileno()).st_size
            file.seek(0)
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        yield OpenBundle(target, digest, size, found.version, found.alias)


def _write(
    store: Store, notary: Notary, facts: Facts, checkpoint: Path, signed: str, archive: Writer, folder: Path
) -> None:
    log = LogCheckpoint.of(note.split(signed)[0])
    keys = "".join(f"{key.text}\n" for key in notary.verifier_keys())
    proofs = folder / "proofs"
    members = {
        bundle.README: archive.add(bundle.README, [_readme(facts).encode()]),
        bundle.CARD: archive.add(bundle.CARD, [card(facts).encode()]),
        bundle.BOM: archive.add(bundle.BOM, [bom(facts)]),
        bundle.NOTE: archive.add(bundle.NOTE, [signed.encode()]),
        bundle.KEYS: archive.add(bundle.KEYS, [keys.encode()]),
        bundle.ENTRIES: archive.add(bundle.ENTRIES, _entries(store, facts, log, proofs)),
        bundle.PROOFS: archive.add(bundle.PROOFS, _blocks(proofs)),
    }
    name = bundle.checkpoint_name(facts.version.model, facts.version.number)
    members[name] = archive.add(name, _blocks(checkpoint), checkpoint.stat().st_size)
    if members[name] != facts.version.checkpoint:
        raise CorruptBlob(f"{checkpoint} was changed while it was read: restore it from a backup")
    predicate = {
        "format": bundle.FORMAT,
        "manifest": dict(facts.manifest),
        "members": members,
        "log": {"origin": log.origin, "size": log.size, "root": log.root.hex()},
    }
    payload = statement.statement(name, facts.version.checkpoint, predicate)
    archive.add(bundle.STATEMENT, [statement.envelope(payload, notary.sign(statement.pae(payload)))])
    archive.close()


def _entries(store: Store, facts: Facts, log: LogCheckpoint, proofs: Path) -> Iterator[bytes]:
    """The entries of the lineage, one a line as they were hashed; their proofs are written beside, meanwhile."""
    numbers = _numbers(store, facts, log.size)
    with proofs.open("x", encoding="ascii") as file:
        file.write(f'{{"size":{log.size},"root":"{log.root.hex()}","proofs":[')
        for start in range(0, len(numbers), _PAGE):
            page = numbers[start : start + _PAGE]
            with store.reading() as tx:  # a transaction a page: on SQLite a long one would keep every writer waiting
                spelled, tree = tx.audit.spelled(page), tx.audit.tree()
                paths = [[item.hex() for item in tree.inclusion(seq, log.size)] for seq, _, _ in spelled]
            for place, ((seq, data, _), path) in enumerate(zip(spelled, paths, strict=True), start):
                file.write(("," if place else "") + f"\n{_json({'seq': seq, 'path': path})}")
                yield data + b"\n"
        file.write("\n]}\n")


def _numbers(store: Store, facts: Facts, size: int) -> Sequence[int]:
    """Numbers of the entries that are about the lineage, in order; those that came after the checkpoint are left."""
    name, line = facts.version.model, facts.line
    with store.reading() as tx:
        found = tx.audit.numbers_of(name, _KINDS)
        found |= tx.audit.numbers_about(name, "version", [ancestor.number for ancestor in line])
        found |= tx.audit.numbers_about(name, "cycle", [ancestor.cycle for ancestor in line])
    return sorted(seq for seq in found if seq <= size)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, _BLOCK), b"")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _readme(facts: Facts) -> str:
    version = facts.version
    name = bundle.checkpoint_name(version.model, version.number)
    return f"""{version.model}, version {version.number}: an Espalier bundle ({bundle.FORMAT}).

Verify it before you use it. You need the public key of the service's audit log, which you must have from a source that
you trust, and not from this file:

    pip install espalier-ml
    espalier verify FILE.zip --key "<name>+<hash>+<key>"

What is in it:

    {name}
        the checkpoint, as it was published
    {bundle.STATEMENT}
        the checkpoint's manifest and the digest of every other file here: an in-toto statement, signed (DSSE)
    {bundle.CARD}
        what the model is, how it was judged, on what data, and its limits
    {bundle.BOM}
        the same as a bill of materials (CycloneDX {SPEC})
    {bundle.ENTRIES}
        what the audit log says of this version and of every ancestor, one entry a line
    {bundle.PROOFS}
        for each entry the proof that it is in the log
    {bundle.NOTE}
        the log's size and root, signed
    {bundle.KEYS}
        the public keys, for you to compare with the one that you trust; by themselves they prove nothing

docs/log-format.md of Espalier describes all of it, for other verifiers.
"""
