"""Content-addressed bytes, on a disk or in a bucket, behind one small door.

    Blobs     the door: staging, hashing, verifying, sweeping
    Shelf     what a place for blobs must do
    Disk      a folder: fsync, rename, a lock on a file
    Bucket    S3-compatible objects, with a cache on this machine

Knows: which place a URL means. Must never know: what the bytes mean, or which rows name them.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.errors import StorageRefused
from app.store.blobs.bucket import Bucket
from app.store.blobs.cache import Cache
from app.store.blobs.door import Blobs
from app.store.blobs.objects import Objects
from app.store.blobs.shelf import Stored
from app.store.blobs.staging import Receiver, Staged, Staging, disk_errors

__all__ = ["Blobs", "Receiver", "Staged", "Stored", "disk_errors", "open_blobs"]

PATIENCE_SECONDS = 15.0
"""How long a request to a bucket is tried again before it fails."""


def open_blobs(
    url: str, folder: Path, *, cache_bytes: int, grace_seconds: float, patience_seconds: float = PATIENCE_SECONDS
) -> Blobs:
    """The blobs of a deployment. A bucket is asked for nothing yet: see ``Blobs.check``.

    Args:
        url: empty for the folder itself, ``file:///another/folder``, or ``s3://bucket/prefix``.
        folder: of this machine, for the blobs, or for what is on its way to a bucket and copies of what lies there.
        cache_bytes: what these copies may take together.
        grace_seconds: age from which a sweep takes bytes that no row names.
        patience_seconds: how long a request to a bucket is tried again.

    Raises:
        StorageRefused: the URL names no such place, or the AWS_* variables cannot be used.
    """
    parts = urlsplit(url)
    if not url or (parts.scheme == "file" and not parts.netloc and parts.path):
        return Blobs(Path(unquote(parts.path)) if url else folder)
    if parts.scheme == "s3" and parts.netloc:
        objects = Objects(url, patience_seconds)
        bucket = Bucket(objects, Cache(folder / "cache", cache_bytes), Staging(folder / "staging"), grace_seconds / 2)
        return Blobs(folder, bucket)
    raise StorageRefused(f"{url!r} is no place for blobs: use s3://bucket/prefix, file:///folder, or nothing")
