"""Bundles: a checkpoint with everything that shows where it comes from, in one file, verified without a service.

Knows: which members a bundle has, and how each of them is verified. Must never know: a service, or which keys to trust.
``docs/log-format.md`` describes the bytes for other verifiers.

Laws:
    * Trust comes from the keys that the caller gives. The keys in the bundle are for people to compare, and prove
      nothing.
    * Every byte is covered: the members by the signed statement, the statement by its signature, the rest of the file
      by its one spelling (``archive``).
    * Each refusal names the member.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from espalier.errors import CheckpointMismatch, ProofRejected
from espalier.formats import note as notes
from espalier.formats import statement as statements
from espalier.formats.archive import Archive
from espalier.formats.canonical import canonical_json
from espalier.formats.checkpoint import METADATA_KEY
from espalier.formats.lineage import Lineage, Made, grown
from espalier.formats.note import LogCheckpoint, VerifierKey
from espalier.formats.proof import leaf_hash, read_hash, verify_inclusion

FORMAT = "espalier-bundle-1"

README = "README.txt"
CARD = "MODEL_CARD.md"
BOM = "bom.cdx.json"
NOTE = "audit/checkpoint"
ENTRIES = "audit/entries.jsonl"
PROOFS = "audit/proofs.json"
KEYS = "audit/keys"
STATEMENT = "manifest.dsse.json"

_BEFORE = (README, CARD, BOM, NOTE, KEYS, ENTRIES, PROOFS)
"""The members before the checkpoint, in their order. After it comes the statement."""

_SMALL, _LARGE, _LINE = 1 << 24, 1 << 29, 1 << 26
"""Bytes that a small member, the proofs, and one entry may have: far more than any honest one needs."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VerifiedBundle:
    """What a bundle holds, all of it verified.

    Attributes:
        model, version: which version it is.
        checkpoint: name of the member that holds the checkpoint.
        digest, bytes: of the checkpoint.
        manifest: the checkpoint's.
        log: the checkpoint of the log that everything is proved against.
        signers: the trusted keys that signed the statement.
        entries: audit entries, each proved to be in the log.
        lineage: the version and its ancestors up to the first, as the log tells them.
        pruning_steps: of all of them.
        grown: versions whose network got other weights than their parent's, so that masks could not be compared.
    """

    model: str
    version: int
    checkpoint: str
    digest: str
    bytes: int
    manifest: Mapping[str, Any]
    log: LogCheckpoint
    signers: tuple[VerifierKey, ...]
    entries: int
    lineage: tuple[Made, ...]
    pruning_steps: int
    grown: tuple[int, ...]


def checkpoint_name(model: str, version: int) -> str:
    """The member that holds a version's checkpoint."""
    return f"{model}-{version}.safetensors"


def verify_bundle(path: str | Path, keys: Sequence[VerifierKey], *, progress: Progress | None = None) -> VerifiedBundle:
    """Verify a bundle with the log's public keys alone.

    Args:
        path: the file, as it was downloaded.
        keys: those of the log that the caller trusts; one good signature is enough.
        progress: told the bytes of the checkpoint that were hashed, and all of them.

    Raises:
        ProofRejected: naming the member that does not hold, and why.
        CheckpointMismatch: the checkpoint is not the one that the statement is about, or does not hold its manifest.
        OSError: the file cannot be read.
    """
    with Archive(Path(path)) as archive:
        with _naming(STATEMENT):
            said, signers = statements.opened(archive.read(STATEMENT, _LARGE), keys)
            about = _About.read(said)
        _expect_members(archive, about, progress)
        _expect_manifest(archive, about)
        with _naming(NOTE):
            text = _text(archive.read(NOTE, _SMALL))
            log = notes.opened(text, keys)
            if about.log != {"origin": log.origin, "size": log.size, "root": log.root.hex()}:
                raise ProofRejected("it is not the checkpoint of the log that the statement names")
        lineage, entries = _read_entries(archive, about, log)
        with _naming(ENTRIES):
            line = tuple(lineage.followed(about.version))
            _expect_made(about, line)
    steps = sum(len(made.steps) for made in line)
    other = tuple(child.version for child, parent in pairwise(line) if grown(child, parent))
    size = archive.members[about.name].size
    return VerifiedBundle(
        *(about.model, about.version, about.name, about.digest, size, about.manifest),
        *(log, signers, entries, line, steps, other),
    )


@dataclass(frozen=True)
class _About:
    """What the statement says: which checkpoint, which manifest, which members, which log."""

    name: str
    digest: str
    manifest: Mapping[str, Any]
    members: Mapping[str, str]
    log: Mapping[str, Any]
    model: str
    version: int

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> _About:
        try:
            predicate = said["predicate"]
            (subject,) = said["subject"]
            name, digest = subject["name"], "sha256:" + subject["digest"]["sha256"]
            manifest, members, log = predicate["manifest"], predicate["members"], predicate["log"]
            model, version = manifest["model"], manifest["version"]
            known = predicate["format"] == FORMAT and members.get(name) == digest
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ProofRejected(f"the statement is not about a checkpoint in a bundle ({error!r:.99})") from None
        if not known or name != checkpoint_name(str(model), version) or type(version) is not int:
            raise ProofRejected(f"the statement is not one of the format {FORMAT} about {name}")
        return cls(name, digest, manifest, members, log, model, version)


def _expect_members(archive: Archive, about: _About, progress: Progress | None) -> None:
    """The members are those of a bundle, in their order, and each is one that the statement names, with its digest."""
    ordered = [*_BEFORE, about.name, STATEMENT]
    if list(archive.members) != ordered or about.members.keys() != {*ordered} - {STATEMENT}:
        strange = sorted(archive.members.keys() ^ {*ordered}) or "they are in another order"
        raise ProofRejected(f"{STATEMENT}: the members of the file are not those of a bundle: {strange}")
    for name, wanted in about.members.items():
        state, done, size = hashlib.sha256(), 0, archive.members[name].size
        for block in archive.blocks(name):
            state.update(block)
            done += len(block)
            if progress is not None and name == about.name:
                progress(done, size)
        if (found := "sha256:" + state.hexdigest()) != wanted:
            kind = CheckpointMismatch if name == about.name else ProofRejected
            raise kind(f"{name}: its bytes hash to {found}, but the signed statement says {wanted}")


def _expect_manifest(archive: Archive, about: _About) -> None:
    """The manifest in the checkpoint is the one of the statement, to the letter."""
    try:
        text = manifest_text(archive.blocks(about.name))
    except ValueError as error:
        raise CheckpointMismatch(f"{about.name}: it has no manifest that can be read ({error})") from None
    if text != canonical_json(dict(about.manifest)).decode():
        raise CheckpointMismatch(f"{about.name}: its manifest is not the one of the signed statement")


def manifest_text(blocks: Iterable[bytes]) -> str:
    """The manifest in a checkpoint, as it stands there; no more is read than it takes.

    Raises:
        ValueError: there is none.
    """
    try:
        text = json.loads(_header(blocks))["__metadata__"][METADATA_KEY]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{error!r:.99}") from None
    if not isinstance(text, str):
        raise ValueError("it is no text")
    return text


def _header(blocks: Iterable[bytes]) -> bytes:
    """The header of a safetensors file: eight bytes with its length, then JSON."""
    data, needed = b"", 8
    for block in blocks:
        data += block
        if len(data) >= 8:
            needed = 8 + int.from_bytes(data[:8], "little")
        if needed > _LARGE or len(data) >= needed:
            break
    if len(data) < needed:
        raise ValueError("it is cut off inside its header")
    return data[8:needed]


def _read_entries(archive: Archive, about: _About, log: LogCheckpoint) -> tuple[Lineage, int]:
    """Prove every entry to be in the log, and read what it says."""
    proofs = _proofs(archive, log)
    lineage, before, count = Lineage(about.model), 0, 0
    for line in archive.lines(ENTRIES, _LINE):
        with _naming(ENTRIES):
            entry = _entry(line)
            seq = entry["seq"]
            if seq <= before:
                raise ProofRejected(f"entry {seq} follows entry {before}: they are out of order", seq)
        with _naming(PROOFS):
            said, path = next(proofs, (None, []))
            if said != seq:
                raise ProofRejected(f"the next proof is of entry {said}, not of entry {seq}", seq)
            verify_inclusion(leaf_hash(line), seq, log.size, path, log.root)
        with _naming(ENTRIES):
            lineage.read(entry)
        before, count = seq, count + 1
    if (more := next(proofs, None)) is not None:
        raise ProofRejected(f"{PROOFS}: there is a proof of entry {more[0]}, but no such entry")
    return lineage, count


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProofRejected(f"a line is no JSON: {str(error)[:99]}") from None
    if not isinstance(entry, dict) or type(entry.get("seq")) is not int:
        raise ProofRejected("a line is no entry of a log")
    return entry


def _proofs(archive: Archive, log: LogCheckpoint) -> Iterator[tuple[int, list[bytes]]]:
    """Number and inclusion path of each entry."""
    with _naming(PROOFS):
        try:
            document = json.loads(archive.read(PROOFS, _LARGE))
            about, listed = (document["size"], document["root"]), list(document["proofs"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ProofRejected(f"they cannot be read ({error!r:.99})") from None
        if about != (log.size, log.root.hex()):
            raise ProofRejected(f"they are for a log of {about[0]!r:.30} entries, not for the one that {NOTE} signs")
    return map(_proof, listed)


def _proof(item: Any) -> tuple[int, list[bytes]]:
    try:
        return item["seq"], [read_hash(hashed) for hashed in item["path"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ProofRejected(f"a proof cannot be read ({error!r:.99})") from None


def _expect_made(about: _About, line: Sequence[Made]) -> None:
    """The entry of the version says what the manifest says."""
    made, manifest = line[0], about.manifest
    if about.digest not in made.outputs:
        raise ProofRejected(f"entry {made.seq} of version {made.version} does not name {about.digest}", made.seq)
    for name, found in (("cycle", made.cycle), ("parent", made.parent), ("mask_digest", made.mask)):
        if manifest.get(name) != found:
            raise ProofRejected(
                f"entry {made.seq} says {name} {found!r}, but the manifest {manifest.get(name)!r}", made.seq
            )
    if len(line) > 1 and manifest.get("parent_checkpoint") not in line[1].outputs:
        raise ProofRejected(f"the manifest's parent_checkpoint is none that entry {line[1].seq} names", line[1].seq)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProofRejected("it is not UTF-8") from None


@contextmanager
def _naming(member: str) -> Iterator[None]:
    """Let a refusal begin with the member that it is about."""
    try:
        yield
    except ProofRejected as error:
        if str(error).startswith(f"{member}"):
            raise
        raise ProofRejected(f"{member}: {error}", error.seq) from None
