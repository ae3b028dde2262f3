"""What a place for blobs must do, and what a digest looks like.

Knows: names. Must never know: disks, buckets, rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.domain import Digest
from app.errors import CorruptBlob, MissingBlob

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Referenced = Callable[[Iterable[Digest]], set[Digest]]
"""Which of these digests any row names."""

SWEEP_BATCH = 500
"""How many digests a sweep asks about at a time."""


@dataclass(frozen=True, slots=True)
class Local:
    """A file of this machine that holds a blob, and whether its bytes were checked just now."""

    path: Path
    checked: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob that is there, and the bytes that it takes."""

    digest: Digest
    size: int


class Shelf(Protocol):
    """Where blobs lie by name. All raise ``StorageUnreachable`` and ``StorageRefused`` where it lies far away."""

    def check(self) -> None:
        """Find out whether it can be used, before anything depends on it."""

    def publish(self, path: Path, digest: Digest, *, durable: bool) -> None:
        """Give the bytes of a staged file their name, and make them young; the file is moved or left.

        Args:
            path: a file of which this is the digest.
            digest: the name.
            durable: the file's bytes are on the disk already.
        """

    def has(self, digest: Digest) -> bool:
        """Whether a blob of this name is there."""

    def touch(self, digest: Digest) -> bool:
        """Like ``has``, and it is young enough now that a row may follow."""

    def size(self, digest: Digest) -> int:
        """Bytes of a blob, or ``MissingBlob``."""

    def local(self, digest: Digest) -> Local:
        """A file with its bytes, or ``MissingBlob``, or ``CorruptBlob`` where they had to be fetched."""

    def renewed(self, digest: Digest) -> Path:
        """A file with checked bytes, in place of one that proved wrong; ``CorruptBlob`` where there is no other."""

    def verify(self, digest: Digest) -> None:
        """Hash the bytes where they really lie: ``MissingBlob`` or ``CorruptBlob``."""

    def discard(self, digest: Digest) -> None:
        """Remove a blob, if it is there."""

    def erase(self, digest: Digest) -> None:
        """Remove a blob for certain, and any copy on this machine; durable when it returns."""

    def drop_copy(self, digest: Digest) -> None:
        """Remove the copy on this machine of a blob that lies elsewhere, if there is one."""

    def stored(self) -> Iterator[Stored]:
        """Every blob."""

    def stale(self) -> Iterator[tuple[Digest, str]]:
        """Local copies whose bytes are wrong, and how."""

    def sweep(self, referenced: Referenced, limit: float) -> list[Digest]:
        """Remove what no row names and is older than ``limit`` (seconds since the epoch). Returns what went."""


def hex_of(digest: Digest) -> str:
    """The 64 digits of a digest.

    Raises:
        MissingBlob: it is none, so nothing has that name.
    """
    if not DIGEST.fullmatch(digest):
        raise MissingBlob(
            f"{digest!r} is no digest: expected sha256: and 64 lower-case hexadecimal digits; "
            "the row that names it was changed: restore the database from a backup"
        )
    return digest.removeprefix("sha256:")


def is_digest(text: str) -> bool:
    """Whether this can be the name of a blob."""
    return DIGEST.fullmatch(text) is not None


def check_digest(digest: Digest, found: str, where: str) -> None:
    """Compare a blob's name with the hexadecimal SHA-256 of its bytes.

    Raises:
        CorruptBlob: they differ.
    """
    if digest != f"sha256:{found}":
        raise CorruptBlob(
            f"blob {digest} in {where} hashes to sha256:{found}: its bytes changed; restore it from a backup"
        )
