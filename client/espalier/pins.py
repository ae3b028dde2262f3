"""Pins: the last signed checkpoint of each log that this machine has seen, and the keys that it trusts for it.

Knows: where pins lie, and how they are written so that they survive. Must never know: whether two checkpoints are
consistent (``evidence`` does), or HTTP.

Laws:
    * One file for each service, by its address; it is replaced atomically, and never by an older checkpoint.
    * A pin that cannot be read is an error, not an absence: whoever damages it must not get a first use again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from espalier.errors import EspalierClientError, ProofRejected
from espalier.formats.note import LogCheckpoint, VerifierKey, split

if sys.platform != "win32":
    import fcntl

FORMAT = "espalier-pin-1"


@dataclass(frozen=True, slots=True)
class Pin:
    """What is remembered of one service.

    Attributes:
        keys: of its log, that are trusted.
        note: the last signed checkpoint, as it was served.
        given: whether the user gave the keys; otherwise they were trusted on first use.
    """

    url: str
    keys: tuple[VerifierKey, ...]
    note: str
    given: bool

    @property
    def log(self) -> LogCheckpoint:
        """What the note says."""
        return LogCheckpoint.of(split(self.note)[0])


class Pins:
    """The pins of this machine, in a folder of their own."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Name the folder; it is made when something is pinned.

        Args:
            folder: by default ``ESPALIER_PINS``, else ``espalier/pins`` where the user's programs keep their state.
        """
        self.folder = Path(folder or os.environ.get("ESPALIER_PINS") or _state() / "espalier" / "pins")

    def path(self, url: str) -> Path:
        """The file of a service."""
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"

    def read(self, url: str) -> Pin | None:
        """What is remembered of a service; None when it was never seen.

        Raises:
            EspalierClientError: the file cannot be read.
        """
        path = self.path(url)
        try:
            document = json.loads(path.read_text("utf-8"))
            if document["format"] != FORMAT or document["url"] != url:
                raise ValueError(f"it is not of the format {FORMAT}, or of another service")
            keys = tuple(VerifierKey.parse(key) for key in document["keys"])
            pin = Pin(url, keys, str(document["note"]), document["given"] is True)
            _ = pin.log
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ProofRejected) as error:
            raise EspalierClientError(
                f"what is remembered of the log of {url} cannot be read: {path}: {error}\n"
                f"restore the file; or, if you know why it is damaged, `espalier --url {url} audit pin --forget`"
            ) from error
        return pin

    def write(self, pin: Pin) -> None:
        """Remember a service, unless a later checkpoint of the same log was remembered meanwhile.

        Raises:
            EspalierClientError: the file cannot be written.
        """
        path = self.path(pin.url)
        try:
            with self._alone(path):
                there = self.read(pin.url)
                if there is not None and there.log.origin == pin.log.origin and there.log.size > pin.log.size:
                    return
                document = {
                    "format": FORMAT,
                    "url": pin.url,
                    "keys": [key.text for key in pin.keys],
                    "given": pin.given,
                    "note": pin.note,
                    "seen_at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                _replace(path, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            raise EspalierClientError(
                f"the checkpoint of the log cannot be remembered at {path}: {error.strerror}; name another folder with "
                "ESPALIER_PINS"
            ) from error

    def keep_conflict(self, url: str, note: str) -> Path:
        """Keep a signed checkpoint that contradicts the pin: the two together show others what the log did."""
        path = self.path(url).with_suffix(".conflict")
        with contextlib.suppress(OSError):  # what is wrong with the log must be told all the same
            _replace(path, note)
        return path

    def forget(self, url: str) -> bool:
        """Forget a service; returns whether it was known."""
        there = self.path(url).exists()
        self.path(url).unlink(missing_ok=True)
        return there

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """While this lasts, no other process writes this pin."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_suffix(".lock").open("a") as lock:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _state() -> Path:
    """Where programs of this user keep what they remember (XDG base directories; on Windows, the local profile)."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
