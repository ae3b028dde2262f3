"""Evidence: what the service's log has signed, checked on this machine against what it signed before.

Knows: how checkpoints and proofs are asked for, what a fork, a rewind and a changed key look like. Must never know: how
a proof is computed (``formats.proof``), or where pins lie (``pins``).

Laws:
    * A checkpoint is handed out only when a trusted key signed it and it continues the last one that this machine saw.
    * Without a key from the user, the keys of the first look are trusted from then on (trust on first use): that shows
      later changes, not that the first look was right.
    * What the service cannot prove counts as refuted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from espalier.errors import ApiProblem, EspalierClientError, ProofRejected
from espalier.formats.canonical import canonical_json
from espalier.formats.lineage import MADE
from espalier.formats.note import LogCheckpoint, VerifierKey, opened
from espalier.formats.proof import leaf_hash, read_hash, verify_consistency, verify_inclusion
from espalier.pins import Pin, Pins
from espalier.records import AuditEntry, Version
from espalier.resources import page
from espalier.transport import Transport, json_of, path_of


def read_keys(given: str | Path) -> tuple[VerifierKey, ...]:
    """The log's public keys, from a file or as text: ``<name>+<hash>+<base64>``, several with white space between.

    Raises:
        EspalierClientError: there is none.
    """
    try:
        text = Path(given).read_text("utf-8") if _is_file(given) else str(given)
        keys = tuple(VerifierKey.parse(word) for word in text.split())
    except (OSError, UnicodeDecodeError, ProofRejected) as error:
        raise EspalierClientError(
            f"{str(given)[:120]!r} is no public key of a log, nor a file with one: {error}; it looks like "
            "example.com/espalier+0a1b2c3d+Aa4P..., and `espalier audit key` on the server prints it"
        ) from error
    if not keys:
        raise EspalierClientError(f"{str(given)[:120]!r} holds no public key of a log")
    return keys


def _is_file(given: str | Path) -> bool:
    try:
        return Path(given).is_file()
    except OSError:  # too long to be a name
        return False


class Evidence:
    """The log of one service: ``client.log``."""

    def __init__(self, http: Transport, key: str | Path | None = None, pins: str | Path | None = None) -> None:
        """Nothing is asked yet.

        Args:
            http: the connection.
            key: the log's public key, or a file with it; by default ``ESPALIER_LOG_KEY``, else none.
            pins: folder for what is remembered; by default ``ESPALIER_PINS``, else the user's state folder.
        """
        self._http = http
        chosen = key or os.environ.get("ESPALIER_LOG_KEY")
        self.given = read_keys(chosen) if chosen else ()
        self.pins = Pins(pins)

    def trusted(self) -> tuple[VerifierKey, ...]:
        """The keys that are trusted for this service: those that were given, else those of the first look."""
        if self.given:
            return self.given
        pin = self.pins.read(self._http.url)
        return self._first_look() if pin is None else pin.keys

    def checkpoint(self) -> LogCheckpoint:
        """The present signed checkpoint, after it was compared with the last one that this machine saw.

        Raises:
            ProofRejected: it is not signed by a trusted key, or the log was forked, rewound or begun anew; with what
                that means. What was pinned stays.
        """
        return self.signed()[1]

    def signed(self) -> tuple[str, LogCheckpoint]:
        """The same, with the note as it was served."""
        url, pin = self._http.url, self.pins.read(self._http.url)
        keys = self.given or (pin.keys if pin is not None else self._first_look())
        note = self._http.request("GET", path_of("audit", "checkpoint")).text
        try:
            found = opened(note, keys)
        except ProofRejected as error:
            raise ProofRejected(f"{error}\n{self._other_key()}") from None
        if pin is not None:
            self._expect_continued(pin.log, found, note)
        if pin is None or (pin.note, pin.keys, pin.given) != (note, keys, bool(self.given)):
            self.pins.write(Pin(url, keys, note, bool(self.given)))
        return note, found

    def prove(self, entry: AuditEntry, log: LogCheckpoint | None = None) -> LogCheckpoint:
        """Check that an entry is in the log.

        Args:
            entry: as the service answered it.
            log: the checkpoint that it must be in; by default the present one.

        Raises:
            ProofRejected: it is not, or the entry is not what its leaf says.
        """
        leaf = leaf_hash(canonical_json(dict(entry.fact)))
        if entry.fact.get("seq") != entry.seq or leaf.hex() != entry.leaf:
            raise ProofRejected(f"entry {entry.seq} does not hash to its leaf: it was changed on its way", entry.seq)
        found = log or self.checkpoint()
        path = self._hashes("inclusion", seq=entry.seq, size=found.size)
        verify_inclusion(leaf, entry.seq, found.size, path, found.root)
        return found

    def expect_continued(self, before: LogCheckpoint) -> LogCheckpoint:
        """Check that the log still begins with what it was at a signed checkpoint, such as that of a bundle.

        Raises:
            ProofRejected: it does not.
        """
        now = self.checkpoint()
        older, younger = sorted((before, now), key=lambda log: log.size)
        if older.origin != younger.origin:
            raise ProofRejected(f"the checkpoints are of different logs: {older.origin} and {younger.origin}")
        self._expect_consistent(older, younger)
        return now

    def expect_logged(self, version: Version) -> AuditEntry:
        """The entry that tells how a version came about, after it was proved to be in the log.

        Raises:
            ProofRejected: no entry names the version's checkpoint, or it is not in the log.
        """
        path, digest = path_of("models", version.model, "versions", version.number, "audit"), version.checkpoint.digest
        for entry in page(self._http, AuditEntry, path).items:
            told = (entry.fact.get("kind"), entry.fact.get("model"))
            number = (entry.fact.get("parameters") or {}).get("version")
            if told[0] in MADE and (told[1], number) == (version.model, version.number):
                if digest in (entry.fact.get("outputs") or ()):
                    self.prove(entry)
                    return entry
                break
        raise ProofRejected(
            f"{version.model}:{version.number}: no audit entry names {digest} as what its cycle made: do not use it, "
            "and ask who runs the service"
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _first_look(self) -> tuple[VerifierKey, ...]:
        document = json_of(self._http.request("GET", path_of("audit", "keys")))
        keys = tuple(VerifierKey.parse(str(key)) for key in document.get("keys") or ())
        if not keys:
            raise EspalierClientError(f"{self._http.url} names no key of its log: is it older than this client?")
        return keys

    def _hashes(self, kind: str, **params: int) -> Sequence[bytes]:
        """A proof's hashes; a service that has none refutes itself."""
        try:
            document = json_of(self._http.request("GET", path_of("audit", "proofs", kind), params=params))
            return [read_hash(item) for item in document["path"]]
        except ApiProblem as problem:
            if problem.status not in (400, 404, 422):
                raise
            raise ProofRejected(f"the service has no {kind} proof for {params}: {problem}") from problem
        except (LookupError, TypeError, ValueError) as error:
            raise ProofRejected(f"the service's {kind} proof cannot be read: {error!r:.99}") from error

    def _expect_continued(self, pinned: LogCheckpoint, found: LogCheckpoint, note: str) -> None:
        if found.origin != pinned.origin:
            self._refuse(
                note,
                f"the log of {self._http.url} called itself {pinned.origin} and is now {found.origin}: it was begun "
                "anew, or an epoch of it (then an entry log.epoch-began says what was given up, and why). What was "
                "signed before is no longer vouched for",
            )
        if found.size < pinned.size:
            self._refuse(
                note,
                f"the log of {self._http.url} had {pinned.size} entries and now shows {found.size}: it was rewound, as "
                "by an older backup, or you are shown an old state of it",
            )
        try:
            self._expect_consistent(pinned, found)
        except ProofRejected as error:
            self._refuse(
                note,
                f"the log of {self._http.url} is not the one that this machine saw at {pinned.size} entries: its "
                f"history was rewritten, or you are shown another one than others are (a fork). {error}",
            )

    def _expect_consistent(self, older: LogCheckpoint, younger: LogCheckpoint) -> None:
        path: Sequence[bytes] = ()
        if 0 < older.size < younger.size:
            path = self._hashes("consistency", first=older.size, second=younger.size)
        verify_consistency(older.size, younger.size, older.root, younger.root, path)

    def _refuse(self, note: str, why: str) -> NoReturn:
        kept = self.pins.keep_conflict(self._http.url, note)
        raise ProofRejected(
            f"{why}\nboth signed checkpoints are kept: {self.pins.path(self._http.url)} and {kept}; show them to "
            "whoever runs the service. `espalier audit pin --forget` begins anew, once you know why"
        )

    def _other_key(self) -> str:
        if self.given:
            return (
                "the key that you gave did not sign it: compare it with `espalier audit key` on the server; if the key "
                "was rotated, get the new one by a way that you trust"
            )
        return (
            f"this machine trusted other keys when it first saw {self._http.url}: the key was changed, or another "
            "service answers there. If you know why, get the new key by a way that you trust and give it with "
            "--log-key, or begin anew with `espalier audit pin --forget`"
        )
