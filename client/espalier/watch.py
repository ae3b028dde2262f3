"""Watch: the version that an alias names, whenever it names another one.

Knows: conditional requests, long polls, what to do while the service is away, and how the last good version is kept on
disk. Must never know: what a version is good for.

Laws:
    * A version is handed over once, in the order in which the alias named them, and only when its bytes are there and
      their digest was compared, where a file is wanted.
    * What was handed over last stays in force, whatever the service or the network does; where a file is wanted, it
      stays in force over a restart of this machine too, without a service.
    * Looks are spread out in time: at random after an error, later and later up to the interval.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from espalier.download import fetch, file_digest
from espalier.errors import EspalierClientError
from espalier.records import Reference, Version
from espalier.transport import Transport, backoff, path_of

_LOG = logging.getLogger("espalier")

_TICK = 0.1
"""Seconds after which a watch that was told to stop has noticed it."""

_OFFLINE = 3.0
"""Seconds without an answer after which a kept version is handed over, at the start."""

_MARGIN = 5.0
"""Seconds by which a long poll ends before this side would give up on it."""


@dataclass(frozen=True)
class _Seen:
    """What a look brought: the version, if it is another one, its tag, and whether the service waits when asked to."""

    version: Version | None
    tag: str
    waits: bool


class Watch:
    """Versions as an alias comes to name them: iterate over it. As a context manager, it is stopped in the end.

        with client.watch("gas-sensors@champion", directory="models") as watch:
            for version in watch:
                load(watch.path)

    ``stop`` may be called from any thread, and from signal handlers.

    Attributes:
        last: the version that was handed over last.
        path: its checkpoint, where a file is wanted.
    """

    def __init__(
        self,
        transport: Transport,
        version: Reference | str,
        *,
        interval: float = 30.0,
        jitter: float = 0.2,
        stop: threading.Event | None = None,
        directory: str | Path | None = None,
        path: str | Path | None = None,
    ) -> None:
        """Nothing is asked for yet: that begins with the iteration.

        Args:
            transport: the service.
            version: what to watch, such as ``gas@champion``.
            interval: seconds between two looks, where the service does not answer by itself when the alias moves; and
                the longest wait after an error.
            jitter: share by which each wait is randomly longer or shorter.
            stop: set it to end the watch.
            directory: folder to download each version to, as ``<model>-<number>.safetensors``.
            path: one file instead, replaced whole with each version.

        Raises:
            EspalierClientError: the reference names no version, or both a folder and a file are wanted.
        """
        if directory is not None and path is not None:
            raise EspalierClientError("a watch downloads to a directory or to a path: give one of them")
        self._transport = transport
        self._of = version if isinstance(version, Reference) else Reference.parse(version)
        self._interval, self._jitter = interval, jitter
        self._stop = stop or threading.Event()
        self._folder, self._file = (None if place is None else Path(place) for place in (directory, path))
        self.last: Version | None = None
        self.path: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the watch: the iteration ends within moments, or when the download that is under way has ended."""
        self._stop.set()

    def __iter__(self) -> Iterator[Version]:
        """Each version, once its bytes are in place."""
        kept = self._kept()
        tag, failures = "", 0
        while not self._stop.is_set():
            began, seen = time.monotonic(), None
            try:
                seen = self._look(tag, _OFFLINE if kept else None)
                found = seen.version if seen else kept
                moved = found if found and (self.last is None or found.number != self.last.number) else None
                file = self._download(moved) if moved and moved is not kept else self._target(kept)
            except EspalierClientError as error:
                _LOG.warning("watching %s: %s; the last good version stays in force", self._of, error)
                seen, moved, file = None, kept, self._target(kept)
                failures += 1
            if moved is not None and not self._stop.is_set():
                kept = None
                self._keep(moved)
                self.last, self.path = moved, file
                yield moved
            if seen is not None:
                tag, failures = seen.tag, 0
            self._pause(seen, failures, time.monotonic() - began)

    # -- one look ------------------------------------------------------------------------------------------------------

    def _look(self, tag: str, patience: float | None) -> _Seen | None:
        """What the alias names now; None when the watch was stopped, or patience ran out, before there was an answer.

        The request runs in a thread of its own, so that a stop need not wait for its end.
        """
        answers: queue.SimpleQueue[_Seen | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(tag, answers), name=f"watch {self._of}", daemon=True).start()
        until = None if patience is None else time.monotonic() + patience
        while not self._stop.is_set() and (until is None or time.monotonic() < until):
            try:
                answer = answers.get(timeout=_TICK)
            except queue.Empty:
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer
        return None

    def _ask(self, tag: str, answers: queue.SimpleQueue[_Seen | Exception]) -> None:
        headers = {"Prefer": f"wait={max(1, int(self._transport.timeout - _MARGIN))}"}
        try:
            path = path_of("models", self._of.model, "versions", self._of.ref)
            answer = self._transport.request("GET", path, headers=headers | ({"If-None-Match": tag} if tag else {}))
            version = None if answer.status_code == 304 else Version.from_json(_object(answer.content))
            answers.put(_Seen(version, answer.headers.get("etag", ""), "preference-applied" in answer.headers))
        except Exception as error:  # it is raised where somebody can hear it
            answers.put(error)

    def _pause(self, seen: _Seen | None, failures: int, took: float) -> None:
        """Until the next look: none where the service itself waits, or the interval. At random: clients spread out."""
        if failures:
            self._stop.wait(backoff(failures, base=min(0.25, self._interval), longest=self._interval))
        elif seen is not None:
            # An answer that came at once may come at once again, as from a service that is about to stop.
            wait = self._interval if not seen.waits else 0.0 if took > 1 else _TICK
            self._stop.wait(wait * random.uniform(1 - self._jitter, 1 + self._jitter))

    # -- on disk -------------------------------------------------------------------------------------------------------

    def _target(self, version: Version | None) -> Path | None:
        if version is None:
            return None
        if self._folder is not None:
            return self._folder / f"{version.model}-{version.number}.safetensors"
        return self._file

    def _download(self, version: Version) -> Path | None:
        target = self._target(version)
        if target is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        path = path_of("models", version.model, "versions", version.number, "checkpoint")
        digest = version.checkpoint.digest
        return fetch(self._transport, path, target, params={"format": "sparse"}, expected=digest)

    def _note(self) -> Path | None:
        """Where it is written down which version was handed over last: beside the file, or in the folder."""
        if self._folder is not None:
            return self._folder / f".{self._of.model}@{self._of.ref}.json"
        return None if self._file is None else self._file.with_name(f".{self._file.name}.json")

    def _keep(self, version: Version) -> None:
        note = self._note()
        if note is None:
            return
        with tempfile.NamedTemporaryFile("w", dir=note.parent, prefix=note.name, delete=False) as file:
            json.dump({"watched": str(self._of), "version": version.document}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(note)

    def _kept(self) -> Version | None:
        """The version that an earlier watch handed over last, if its bytes are still what they were."""
        note = self._note()
        try:
            said = {} if note is None else _object(note.read_bytes())
            version = Version.from_json(said["version"]) if said.get("watched") == str(self._of) else None
            target = None if version is None else self._target(version)
            sound = target is not None and version is not None and file_digest(target) == version.checkpoint.digest
        except (OSError, KeyError, EspalierClientError):
            return None
        return version if sound else None


def follow(watch: Watch, on_change: Callable[[Version, Path | None], None]) -> Version | None:
    """Call ``on_change`` for every version of a watch, until it is stopped; the last one."""
    for version in watch:
        on_change(version, watch.path)
    return watch.last


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise EspalierClientError("what came is no JSON object: is this an Espalier service, or is a proxy between?")
    return document
