"""Keyring: the keys of the service as one process knows them, in memory, so that a request need not ask the database.

Knows: the hash of every key, what it allows, until when, how often it may ask; when it last heard from the log. Must
never know: HTTP, or any route.

Laws:
    * A key that is revoked counts no more from then on in the process that revoked it, and in every other one from its
      next look at the log, ``refresh_seconds`` later. It is a ``Listener`` of the feed, the first to be told.
    * It fails closed: once neither the log nor the keys were read for ``TRUSTED_SECONDS``, it vouches for nobody until
      it has read them again.
    * One lookup and one SHA-256 a request; hashes are compared in constant time.
    * The service is open while it listens on loopback alone, no key is in its settings, and none was ever created. A
      created key closes it for good: revoking the last one does not open it again.
    * When a key was last used is written once a minute at most, by a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from app.config import Settings
from app.domain import Actor, AuditEntry, Caller, Key, Scope
from app.errors import KeyRequired, StoreBusy, TooManyRequests
from app.service.credentials import SETTINGS_KEY, hashed, id_of, same
from app.service.limits import Bucket, Failures
from app.store.database import Store

TRUSTED_SECONDS = 5.0
"""How long what was read may be relied on without a look at the log."""

EVERYTHING = frozenset(Scope)
LOCAL = Caller("local", EVERYTHING)
"""Whoever asks an open service."""

REVOKED = "key.revoked"
_ABOUT_KEYS = frozenset({"key.created", REVOKED})
_TEND_SECONDS = 5.0
_USE_SECONDS = 60.0
_NEVER = float("inf")
_NOBODY = "0" * 64
_KEYRING = Actor("keyring")
_log = logging.getLogger("app.service.keyring")


class Looked(Protocol):
    """Whoever keeps looking at the log."""

    looked_at: float

    def look(self) -> None:
        """Read what was changed."""


@dataclass(eq=False, slots=True)
class _Held:
    """One key."""

    caller: Caller
    hash: str
    ends: float
    bucket: Bucket
    revoked: bool = False

    @classmethod
    def of(cls, key: Key, hash: str, bucket: Bucket) -> _Held:
        caller = Caller(key.name, key.scopes, key.models, key.id, key.expires_at)
        ends = _NEVER if key.expires_at is None else key.expires_at.timestamp()
        return cls(caller, hash, ends, bucket, key.revoked_at is not None)


class Keyring:
    """Every key, in one process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Know the key of the settings alone, and trust nothing yet.

        Args:
            settings: of the deployment.
            clock: seconds that only grow; the feed's.
        """
        self._settings, self._clock = settings, clock
        self._own = _own(settings)
        self._held: dict[str, _Held] = {}
        self._closed = settings.api_key is not None or not settings.loopback
        self._failures = Failures(settings.wrong_keys_per_minute)
        self._uses: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._store: Store | None = None
        self._feed: Looked | None = None
        self._read_at = -float("inf")
        self._stale = True
        self._changes = 0
        self._reading = threading.Lock()
        self._leaving = threading.Event()

    # -- keeping up ----------------------------------------------------------------------------------------------------

    def start(self, store: Store, feed: Looked) -> None:
        """Read the keys, and rely on this feed from now on to be told of changes.

        Raises:
            StoreBusy: they cannot be read.
        """
        self._store, self._feed = store, feed
        self._read()

    @property
    def trusted(self) -> bool:
        """Whether what it knows is young enough to be relied on."""
        if self._stale or self._feed is None:
            return False
        return self._clock() - max(self._feed.looked_at, self._read_at) < TRUSTED_SECONDS

    def ready(self, presented: str | None, address: str) -> bool:
        """Whether it can tell about this key without the database; if not, ``refresh`` first. A key that claims an id
        which nobody has here may have been made by another process a moment ago, and is worth a look; unless it comes
        from an address that showed too many wrong ones.
        """
        if not self.trusted:
            return False
        key = "" if presented is None else id_of(presented)
        return not key or key in self._held or self._failures.refuses(address, self._clock()) > 0

    def refresh(self) -> None:
        """Read what may be new: everything if what is known is too old, else what was done since the last look.

        Raises:
            StoreBusy: it cannot be read; nobody may pass.
        """
        if self._feed is None or not self.trusted:
            self._read()
        else:
            self._feed.look()

    def follow(self, entries: Sequence[AuditEntry]) -> None:
        """Take in what was done to keys."""
        if not any(entry.kind in _ABOUT_KEYS for entry in entries):
            return
        self._closed = True
        for entry in entries:
            if entry.kind == REVOKED and (held := self._held.get(str(entry.document["parameters"].get("key")))):
                held.revoked = True  # whether or not the keys can be read now
        self.lose()

    def lose(self) -> None:
        """Read every key again."""
        self._changes += 1
        self._stale = True
        try:
            self._read()
        except Exception as error:  # nobody passes until a request, or the thread, reads them
            _log.warning("the keys cannot be read, so nobody is let in: %s; trying on", error)

    def _read(self) -> None:
        store = self._store
        if store is None:
            raise StoreBusy("the keys of this service were not read yet: try again")
        with self._reading:
            began, changes = self._clock(), self._changes
            with store.reading() as tx:
                found = tx.keys.hashes()
            self._held = {key.id: _Held.of(key, hash, self._bucket_of(key)) for key, hash in found}
            self._closed = self._closed or bool(found)
            # What was changed meanwhile, this may not have seen.
            self._read_at, self._stale = began, changes != self._changes

    def _bucket_of(self, key: Key) -> Bucket:
        """The one that it has, so that a change of another key gives nobody more."""
        limit = self._settings.requests_per_minute if key.requests_per_minute is None else key.requests_per_minute
        held = self._held.get(key.id)
        return held.bucket if held is not None and held.bucket.per_minute == limit else Bucket(limit)

    # -- asking --------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether everybody may do everything."""
        return not self._closed

    def quick(self, presented: str | None) -> Caller | None:
        """Who shows this key, when that is beyond doubt: a poll is then answered on the spot, and counts."""
        if not self._closed:
            return LOCAL if self.trusted else None
        if presented is None or not self.trusted:
            return None
        held, now = self._find(presented), self._clock()
        if held is None or held.revoked or self._over(held) or (held is self._own and self._failures.lately(now)):
            return None
        return self._passed(held, now) if held.bucket.take(now) else None

    def admit(self, presented: str | None, address: str) -> Caller:
        """Who shows this key.

        Args:
            presented: the key; None: there is none.
            address: of whoever shows it. Wrong keys are counted by it.

        Raises:
            KeyRequired: no key, a wrong one, or one that is over.
            TooManyRequests: this key asks too often, or this address showed too many wrong ones. A created key passes
                from such an address, because nobody can have guessed it; that of the settings, which may be a word
                that somebody chose, does not.
        """
        if not self._closed:
            return LOCAL
        if presented is None:
            raise KeyRequired(
                "this service needs a key: send it as `Authorization: Bearer <key>`, or set ESPALIER_KEY for the client"
            )
        held, now = self._find(presented), self._clock()
        if held is None or held is self._own:
            self._expect_few_failures(address, now)
        if held is None:
            self._failures.count(address, now)
            raise KeyRequired(
                "the key is none of this service: check ESPALIER_KEY against what `espalier key create` printed, or "
                "the server's ESPALIER_API_KEY"
            )
        self._expect_valid(held)
        return self._take(held, now)

    def returning(self, key: str) -> Caller:
        """Who signed in with the key of this id, once more. Keys that another process made are looked for.

        Raises:
            KeyRequired: it is over. TooManyRequests: it asks too often. StoreBusy: nobody can tell now.
        """
        if key != SETTINGS_KEY and key not in self._held:
            self.refresh()
        held = self._own if key == SETTINGS_KEY else self._held.get(key)
        if held is None:
            raise KeyRequired("the key of this session is gone: sign in again")
        self._expect_valid(held)
        return self._take(held, self._clock())

    def stands(self, caller: Caller) -> bool:
        """Whether somebody who was let in would still be: for answers that go on for long."""
        if caller.key == "":
            return not self._closed
        held = self._own if caller.key == SETTINGS_KEY else self._held.get(caller.key)
        ends = None if caller.expires_at is None else caller.expires_at.timestamp()
        return not (held is None or held.revoked or self._over(held) or (ends is not None and self._now() >= ends))

    @property
    def binding(self) -> str:
        """What sessions of the key of the settings are bound to, so that changing it ends them."""
        return "" if self._own is None else self._own.hash

    def _find(self, presented: str) -> _Held | None:
        # One hash and one comparison, whichever key it is, and whether or not there is one.
        held = self._held.get(id_of(presented), self._own)
        found = same(hashed(presented), _NOBODY if held is None else held.hash)
        return held if found else None

    def _take(self, held: _Held, now: float) -> Caller:
        if not held.bucket.take(now):
            raise TooManyRequests(
                f"the key {held.caller.name!r} may make {held.bucket.per_minute} requests a minute: wait, then go on",
                held.bucket.seconds(),
            )
        return self._passed(held, now)

    def _passed(self, held: _Held, now: float) -> Caller:
        if held.caller.key != SETTINGS_KEY:
            self._uses[held.caller.key] = now
        return held.caller

    def _expect_valid(self, held: _Held) -> None:
        name = held.caller.name
        if held.revoked:
            raise KeyRequired(f"the key {name!r} was revoked: ask whoever administers this service for another")
        if self._over(held):
            raise KeyRequired(f"the key {name!r} has expired: ask whoever administers this service for another")

    def _expect_few_failures(self, address: str, now: float) -> None:
        if wait := self._failures.refuses(address, now):
            raise TooManyRequests("too many wrong keys came from this address: wait, then show the right one", wait)

    def _over(self, held: _Held) -> bool:
        return held.ends != _NEVER and held.ends <= self._now()

    def _now(self) -> float:
        return time.time() if self._store is None else self._store.clock().timestamp()

    # -- last uses -----------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write down when keys were used, and read keys that could not be read, from a thread of its own."""
        thread = threading.Thread(target=self._run, name="keyring", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            thread.join(_TEND_SECONDS)

    def _run(self) -> None:
        while not self._leaving.wait(_TEND_SECONDS):
            self._tend()
        self._tend()

    def _tend(self) -> None:
        try:
            if self._stale:
                self._read()
            self.write_uses()
        except Exception as error:  # the thread must outlive every state of the database
            _log.warning("cannot write down when keys were used: %s", error)

    def write_uses(self) -> None:
        """Write down what is new since the last time, for each key once a minute at most.

        Raises:
            StoreBusy: the database cannot be written; nothing is lost, and it is tried again.
        """
        due = {key: at for key, at in self._uses.copy().items() if at - self._written.get(key, -_NEVER) >= _USE_SECONDS}
        if not due or self._store is None:
            return
        with self._store.transaction(_KEYRING) as tx:
            now = self._clock()
            for key, at in due.items():
                tx.keys.used(key, tx.now - timedelta(seconds=now - at))
        self._written |= due


def _own(settings: Settings) -> _Held | None:
    """The key of the settings, which has every scope and no end."""
    if settings.api_key is None:
        return None
    caller = Caller("key", EVERYTHING, None, SETTINGS_KEY)
    bucket = Bucket(settings.requests_per_minute)
    return _Held(caller, hashed(settings.api_key.get_secret_value()), _NEVER, bucket)
