"""Objects in an S3-compatible bucket, and what its errors mean here.

Knows: the client, its patience, its errors. Must never know: digests, caches, what an object is for.

Laws:
    * A request that fails for a passing reason is tried again, for a bounded time, with growing waits.
    * Memory is bounded: files go up in parts and come down in ranges, a few of them at a time.
    * Every error is one of ours, and says what to do: ``Vanished``, ``StorageRefused``, ``StorageUnreachable``,
      ``StorageFull``.

Credentials, region and endpoint come from the standard ``AWS_*`` variables, which the client reads by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from app.errors import StorageFull, StorageRefused, StorageUnreachable

_PART = 8 * 1024 * 1024
_AT_ONCE = 4
_REQUEST_SECONDS = 60
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FULL = ("XMinioStorageFull", "QuotaExceeded", "507 Insufficient")
_PASSING = (408, 429)


class Vanished(Exception):
    """There is no such object, or not any more."""


@dataclass(frozen=True, order=True, slots=True)
class Object:
    """An object as the bucket lists it; the order is that of age, by seconds since the epoch, then by key."""

    modified: float
    key: str
    size: int


class Objects:
    """The objects of one bucket under one prefix; keys are relative to it."""

    def __init__(self, url: str, patience_seconds: float) -> None:
        """Nothing is asked of the bucket yet.

        Args:
            url: ``s3://bucket/prefix``.
            patience_seconds: how long a request is tried again.

        Raises:
            StorageRefused: the variables cannot be used.
        """
        parts = urlsplit(url)
        self._name = url
        try:
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options={"allow_http": _plain_http(), "timeout": timedelta(seconds=_REQUEST_SECONDS)},
                retry_config={
                    "max_retries": 10,
                    "retry_timeout": timedelta(seconds=patience_seconds),
                    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3)},
                },
            )
        except (BaseError, ValueError) as error:
            raise StorageRefused(f"cannot use {url}: {_told(error)}: mend the AWS_* variables") from error

    def put(self, key: str, file: Path) -> None:
        """Store a file's bytes, all of them or none: in one request, or in parts when it is large."""
        with self._translated():
            obstore.put(self._store, key, file, chunk_size=_PART, max_concurrency=_AT_ONCE)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store a few bytes."""
        with self._translated():
            obstore.put(self._store, key, data)

    def copy(self, key: str, to: str) -> None:
        """Copy within the bucket: up to 5 GB, which is what S3 copies in one request."""
        with self._translated():
            obstore.copy(self._store, key, to)

    def chunks(self, found: Object) -> Iterator[bytes]:
        """An object's bytes, in order."""
        offsets = range(0, found.size, _PART)
        if len(offsets) == 1:
            yield self._range(found, 0)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(offsets), _AT_ONCE):
                window = offsets[start : start + _AT_ONCE]
                yield from pool.map(lambda offset: self._range(found, offset), window)

    def _range(self, found: Object, offset: int) -> bytes:
        with self._translated():
            return bytes(obstore.get_range(self._store, found.key, start=offset, end=min(offset + _PART, found.size)))

    def list(self, folder: str) -> Iterator[Object]:
        """Every object under a folder, by key on most stores."""
        with self._translated():
            for chunk in obstore.list(self._store, prefix=folder):
                for meta in chunk:
                    yield Object(meta["last_modified"].timestamp(), meta["path"], meta["size"])

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already do not matter."""
        if keys:
            with self._translated():
                obstore.delete(self._store, list(keys))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise self._meaning(error) from error

    def _meaning(self, error: Exception) -> Exception:
        text = str(error)
        told, found = _told(error), _STATUS.search(text)
        status = int(found[1]) if found else None
        if "NoSuchBucket" in text:
            return StorageRefused(f"there is no bucket at {self._name}: create it, or correct ESPALIER_BLOBS_URL")
        if isinstance(error, FileNotFoundError):
            return Vanished(told)
        if any(word in text for word in _FULL):
            return StorageFull(f"the bucket at {self._name} is full: free space, then send it again")
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or (status is not None and 300 <= status < 500 and status not in _PASSING):
            return StorageRefused(
                f"{self._name} refuses ({told}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, "
                "AWS_ENDPOINT_URL, and that they may list, read, write and delete there"
            )
        return StorageUnreachable(
            f"{self._name} cannot be reached ({told}): try again; check AWS_ENDPOINT_URL and the network if it lasts"
        )


def _plain_http() -> bool:
    """Whether the operator's own endpoint is one without TLS."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _told(error: Exception) -> str:
    """The store's own word for what went wrong where it has one, else the first line of the error."""
    text = str(error)
    if code := _CODE.search(text):
        return code[1]
    return text.strip().partition("\n")[0][:300]
