"""Settling: complete uploads become megabatches, in tasks of their own, so that no request has to stay for it.

Knows: which uploads this process is decoding. Must never know: how an upload is decoded, or which protocol it came by.

Laws:
    * An upload is decoded once at a time, whoever asks: in this process by one task, among processes by its file's
      lock. Whoever asks for an upload that a killed process left complete sets it going again.
    * A request that goes away does not stop what it began.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import anyio

from app.config import Settings
from app.domain import Actor, UploadState
from app.errors import EspalierError, UploadBusy
from app.intake.arrays import Limits
from app.service import uploads
from app.service.uploads import Outcome
from app.store.database import Store

_LOOK_SECONDS = 0.2
_log = logging.getLogger("app.api")


class Settling:
    """The uploads that this process is decoding."""

    def __init__(self, store: Store, settings: Settings, limiter: anyio.CapacityLimiter) -> None:
        self._store = store
        self._settings = settings
        self._limiter = limiter
        self._limits = Limits(max_bytes=settings.max_megabatch_bytes, seconds=settings.decode_seconds)
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}

    async def settled(self, upload: str, actor: Actor, *, seconds: float | None = None) -> Outcome:
        """What became of an upload: set going what is left to do, and stay for it.

        Args:
            seconds: the longest stay; None stays to the end.

        Returns:
            Its outcome; or, after that time, the upload as it stands.

        Raises:
            UnknownUpload, UploadExpired, Unavailable, Fault: it has no outcome yet.
        """
        found = await anyio.to_thread.run_sync(uploads.get_upload, self._store, upload)
        if found.state is not UploadState.COMPLETE:
            return Outcome(found)
        task = self.begin(upload, actor)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else Outcome(found)

    def begin(self, upload: str, actor: Actor) -> asyncio.Task[Outcome]:
        """Set the decoding of a complete upload going, unless it goes already."""
        task = self._tasks.get(upload)
        if task is None:
            task = self._tasks[upload] = asyncio.create_task(self._finish(upload, actor))
            task.add_done_callback(partial(self._ended, upload))
        return task

    async def close(self) -> None:
        """Wait for what is being decoded."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _finish(self, upload: str, actor: Actor) -> Outcome:
        finish = partial(
            uploads.finish_upload, self._store, upload, limits=self._limits, settings=self._settings, actor=actor
        )
        while True:
            try:
                return await anyio.to_thread.run_sync(finish, limiter=self._limiter)
            except UploadBusy:  # another process is at it
                await asyncio.sleep(_LOOK_SECONDS)

    def _ended(self, upload: str, task: asyncio.Task[Outcome]) -> None:
        del self._tasks[upload]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, EspalierError):
            _log.error("upload %s could not be decoded; the next request for it tries again", upload, exc_info=error)
