"""Blobs in an S3-compatible bucket, with copies on this machine.

Knows: which objects hold a blob, and when they may go. Must never know: what the bytes mean, or which rows name them
(the sweep asks).

Laws:
    * Every time bytes are kept they become an object of a new key, ``sha256/ab/<62 digits>/<time>-<random>``; no object
      is ever written twice. A blob is there while any object of its digest is; the newest one counts.
    * So a removal can only hit the object that the sweep looked at, never what was kept since: the race between a sweep
      and a keep cannot lose bytes, though the bucket knows neither locks nor conditional removals. A new key is the pin
      that a keeper sets before it relies on bytes; it expires with the grace period.
    * An object goes when it is older than the grace period, and no row names its digest or a newer object of the same
      digest is there.
    * What is served comes from the cache; what enters the cache was hashed on its way.

What remains of the race: whoever keeps or touches bytes must commit the row that names them within half the grace
period, by clocks that agree with the bucket's to within the other half.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

from app.domain import Digest
from app.errors import MissingBlob, Unavailable
from app.store.blobs.cache import Cache
from app.store.blobs.objects import Object, Objects, Vanished
from app.store.blobs.shelf import SWEEP_BATCH, Local, Referenced, Stored, check_digest, hex_of, is_digest
from app.store.blobs.staging import Staging, disk_errors

log = logging.getLogger(__name__)

_NAMES = "sha256"
_PROBE = "probe"
_TRIES = 3
_LARGEST_COPY = 5_000_000_000
_STRIPES = 16


class Bucket:
    """Immutable objects by digest."""

    def __init__(self, objects: Objects, cache: Cache, staging: Staging, young_seconds: float) -> None:
        """Nothing is asked of the bucket yet.

        Args:
            objects: where the blobs lie.
            cache: copies on this machine.
            staging: on the cache's file system, for what is being fetched.
            young_seconds: age below which an object may be relied on as it is: half the grace period.
        """
        self._objects = objects
        self._cache = cache
        self._staging = staging
        self._young = young_seconds
        self._fetching = [threading.Lock() for _ in range(_STRIPES)]

    def check(self) -> None:
        """Write a probe, and list."""
        self._objects.put_bytes(_PROBE, b"espalier\n")
        next(self._objects.list(_NAMES), None)

    def publish(self, path: Path, digest: Digest, *, durable: bool) -> None:
        """Store the bytes under a new key; the file becomes the copy. They are durable once the bucket says so."""
        self._objects.put(_new_key(digest), path)
        self._cache.add(path, digest)

    def has(self, digest: Digest) -> bool:
        """Whether any object of this digest is there."""
        return is_digest(digest) and self._newest(digest) is not None

    def touch(self, digest: Digest) -> bool:
        """Copy the newest object to a new key, unless it is young."""
        for _ in range(_TRIES if is_digest(digest) else 0):
            newest = self._newest(digest)
            if newest is None:
                return False
            if newest.modified > time.time() - self._young:
                return True
            try:
                self._copy(newest, digest)
                return True
            except Vanished:
                continue  # swept meanwhile, or kept again
        return False

    def size(self, digest: Digest) -> int:
        """Bytes of the newest object."""
        newest = self._newest(digest)
        if newest is None:
            raise _missing(digest)
        return newest.size

    def local(self, digest: Digest) -> Local:
        """The copy; it is fetched where there is none. Threads that want the same blob wait for one of them."""
        with self._fetching[int(hex_of(digest)[:8], 16) % _STRIPES]:
            found = self._cache.find(digest)
            return Local(found, checked=False) if found else Local(self._fetch(digest), checked=True)

    def renewed(self, digest: Digest) -> Path:
        """Throw the copy away and fetch another."""
        log.warning("the copy of blob %s on this machine was damaged: fetching it again", digest)
        self._cache.drop(digest)
        return self._fetch(digest)

    def verify(self, digest: Digest) -> None:
        """Hash the newest object, past the cache."""
        for found in self._tries(digest):
            try:
                hashed = hashlib.sha256()
                for chunk in self._objects.chunks(found):
                    hashed.update(chunk)
            except Vanished:
                continue
            return check_digest(digest, hashed.hexdigest(), f"the bucket at {found.key}")
        raise _missing(digest)

    def discard(self, digest: Digest) -> None:
        """Remove every object of a digest. What cannot be removed now is left to the sweep: no row names it."""
        self._cache.drop(digest)
        try:
            self._objects.delete([found.key for found in self._objects.list(_folder(digest))])
        except Unavailable as trouble:
            log.warning("blob %s stays until it is swept: %s", digest, trouble)

    def erase(self, digest: Digest) -> None:
        """Remove the copy, then every object of a digest. A bucket that keeps versions of objects keeps them."""
        self._cache.drop(digest)
        self._objects.delete([found.key for found in self._objects.list(_folder(digest))])

    def drop_copy(self, digest: Digest) -> None:
        """Remove the copy."""
        self._cache.drop(digest)

    def stored(self) -> Iterator[Stored]:
        """Every digest, with what its objects take together."""
        for digest, found in self._groups():
            yield Stored(digest, sum(item.size for item in found))

    def stale(self) -> Iterator[tuple[Digest, str]]:
        """Copies that do not hash to their name."""
        remedy = "the copy on this machine is damaged: it is fetched again when it is read; check the disk"
        return ((digest, remedy) for digest in self._cache.wrong())

    def sweep(self, referenced: Referenced, limit: float) -> list[Digest]:
        """Look at objects that are old; a listing says when each was written, and none is ever written again."""
        self._cache.shrink()
        swept: list[Digest] = []
        old = ((digest, found) for digest, found in self._groups() if found[0].modified < limit)
        while groups := list(islice(old, SWEEP_BATCH)):
            named = referenced([digest for digest, _ in groups])
            self._objects.delete([key for digest, found in groups for key in _doomed(found, limit, digest in named)])
            # Somebody may have kept some of these bytes again meanwhile: they are there under another key.
            gone = [digest for digest, _ in groups if digest not in named and self._newest(digest) is None]
            for digest in gone:
                self._cache.drop(digest)
            swept += gone
        return swept

    # -- inside --------------------------------------------------------------------------------------------------------

    def _groups(self) -> Iterator[tuple[Digest, list[Object]]]:
        """Objects by digest, oldest first. Where a store lists out of order, a digest may come in several groups; then
        some of its duplicates stay, and nothing else.
        """
        for digest, found in groupby(self._objects.list(_NAMES), lambda item: _digest_of(item.key)):
            if is_digest(digest):
                yield digest, sorted(found)

    def _newest(self, digest: Digest) -> Object | None:
        return max(self._objects.list(_folder(digest)), default=None)

    def _tries(self, digest: Digest) -> Iterable[Object]:
        """The newest object, and the newest one again, should it have gone between a look and a read."""
        for _ in range(_TRIES):
            if (newest := self._newest(digest)) is None:
                return
            yield newest

    def _fetch(self, digest: Digest) -> Path:
        for found in self._tries(digest):
            try:
                return self._download(found, digest)
            except Vanished:
                continue
        raise _missing(digest)

    def _download(self, found: Object, digest: Digest) -> Path:
        path, hashed = self._staging.name(), hashlib.sha256()
        try:
            with disk_errors():
                with path.open("xb") as file:
                    for chunk in self._objects.chunks(found):
                        hashed.update(chunk)
                        file.write(chunk)
                check_digest(digest, hashed.hexdigest(), f"the bucket at {found.key}")
                path.chmod(0o444)
                return self._cache.add(path, digest)
        finally:
            path.unlink(missing_ok=True)

    def _copy(self, found: Object, digest: Digest) -> None:
        if found.size > _LARGEST_COPY:
            self._objects.put(_new_key(digest), self.local(digest).path)
        else:
            self._objects.copy(found.key, _new_key(digest))


def _doomed(found: list[Object], limit: float, named: bool) -> list[str]:
    """Keys of the old ones among a digest's objects; the newest of a digest that a row names is spared."""
    return [item.key for item in (found[:-1] if named else found) if item.modified < limit]


def _folder(digest: Digest) -> str:
    name = hex_of(digest)
    return f"{_NAMES}/{name[:2]}/{name[2:]}"


def _new_key(digest: Digest) -> str:
    return f"{_folder(digest)}/{time.time_ns():020d}-{secrets.token_hex(8)}"


def _digest_of(key: str) -> Digest:
    """The digest that a key belongs to; of a foreign key, no digest."""
    parts = key.split("/")
    return f"sha256:{parts[1]}{parts[2]}" if len(parts) == 4 and parts[0] == _NAMES else ""


def _missing(digest: Digest) -> MissingBlob:
    return MissingBlob(f"blob {digest} is missing in the bucket: restore it from a backup")
