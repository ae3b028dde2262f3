"""Opening: the store of a deployment, from its settings. API, worker and commands all open it here.

Knows: which settings say where rows and bytes lie. Must never know: what is done with them.
"""

from __future__ import annotations

from app.config import Settings
from app.store.blobs import Blobs, open_blobs
from app.store.database import Store


def open_store(settings: Settings) -> Store:
    """The store of a deployment. Nothing is asked of the database or of a bucket yet.

    Raises:
        StorageRefused: the blobs' place cannot be used.
    """
    return Store(settings.resolved_database_url, blobs_of(settings))


def blobs_of(settings: Settings) -> Blobs:
    """The blobs of a deployment.

    Raises:
        StorageRefused: their place cannot be used.
    """
    return open_blobs(
        settings.blobs_url,
        settings.data_dir / "blobs",
        cache_bytes=settings.cache_bytes,
        grace_seconds=settings.orphan_grace_seconds,
    )
