"""The notary: signs the log's head, and never two heads that contradict each other.

Knows: what was signed last, and what may be signed next. Must never know: HTTP, or what entries mean.

Laws:
    * Only a committed head is signed, and what is signed is stored before anybody sees it: in the database, and in a
      file beside the blobs.
    * The next checkpoint continues the last one: the root at the last one's size, recomputed from the entries, is the
      one that was signed. A log that is shorter than what was signed, as after an older backup, or that was rewritten,
      is not signed (``LogBehind``) until a new epoch is begun, which the log itself records.
    * While nothing was appended, nothing is signed or written.
    * A key signs only once the log says so: its entry is committed, then its file is written. Killed in between, the
      log names a key that signs nothing, and the next one is named beside it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence

from app import crash
from app.config import Settings
from app.domain import Actor, LogHead, SignedHead
from app.errors import Conflict, Fault, LogBehind, StorageFailed, StorageFull, StoreBusy
from app.service.agreement import CHANGED, RESTORE
from app.store.database import Store, Transaction
from app.store.signing import SigningFiles
from espalier.errors import ProofRejected
from espalier.formats.note import LogCheckpoint, SignerKey, VerifierKey, opened, sign, split

ACTOR = Actor("notary")

_EPOCH = "/epoch-"
_PAGE = 500
_GONE = f"rows at its end are gone: {RESTORE}"


class Notary:
    """Signs for one deployment; each process has its own."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._name = settings.log_name
        self._files = SigningFiles(settings.data_dir / "log", settings.log_keys)

    # -- signing -------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> str:
        """The signed note of the present head.

        Where it cannot be stored, because a disk is full or failing or the database is busy, the last one that was.

        Raises:
            LogBehind: the database is older than what was signed, or was rewritten; with the remedy.
            Fault: the signing key cannot be used.
        """
        signers = self._signers()
        kept = self._files.kept()
        try:
            with self._store.reading() as tx:
                head = tx.audit.head()
            if kept is not None and _says(kept, signers, head):
                return kept
            with self._files.alone():
                return self._sign(signers)
        except (StorageFull, StorageFailed, StoreBusy):
            if kept is None:
                raise
            self._opened(kept, signers)
            return kept

    def _sign(self, signers: Sequence[SignerKey]) -> str:
        """Sign the present head, as the only process of this machine that does."""
        with self._store.reading() as tx:
            head = tx.audit.head()
            kept = self._files.kept()
            if kept is not None and _says(kept, signers, head):
                return kept
            self._expect_continuation(tx, head, signers, kept)
        note = sign(_body(signers[0], head), signers)
        crash.point("notary.signed")
        with self._store.transaction(ACTOR) as tx:
            tx.audit.keep_checkpoint(head, note)
        crash.point("notary.stored")
        self._files.keep(note)
        crash.point("notary.filed")
        return note

    def _expect_continuation(
        self, tx: Transaction, head: LogHead, signers: Sequence[SignerKey], kept: str | None
    ) -> None:
        last = tx.audit.last_checkpoint()
        if kept is not None:
            _expect(tx, head, self._opened(kept, signers), "the file beside the blobs")
        if last is not None:
            said = LogCheckpoint(_origin(signers[0], last.head.epoch), last.head.size, bytes.fromhex(last.head.root))
            _expect(tx, head, said, "the database")

    def _opened(self, note: str, signers: Sequence[SignerKey]) -> LogCheckpoint:
        try:
            return opened(note, [signer.verifier for signer in signers])
        except ProofRejected as error:
            raise Fault(
                f"the last signed checkpoint of this machine does not hold ({error}): restore it, and the key, from a "
                "backup"
            ) from error

    def sign(self, payload: bytes) -> list[tuple[VerifierKey, bytes]]:
        """Signatures over bytes, by each key; the caller sees to it that they can be taken for nothing else."""
        return [(signer.verifier, signer.sign_bytes(payload)) for signer in self._signers()]

    # -- keys ----------------------------------------------------------------------------------------------------------

    def verifier_keys(self) -> list[VerifierKey]:
        """What readers of the log verify with; the first is the present one."""
        return [signer.verifier for signer in self._signers()]

    def rotate(self, reason: str, actor: Actor) -> VerifierKey:
        """Sign with a new key first. The old ones go on signing beside it until they are retired."""
        old = self._signers()
        new = SignerKey.generate(old[0].name)
        with self._files.alone():
            with self._store.transaction(actor) as tx:
                keys = {"new": new.verifier.text, "beside": [signer.verifier.text for signer in old]}
                tx.audit.append("log.key-rotated", model=None, reason=reason, parameters=keys)
            self._files.write_signers([new, *old])
        self.checkpoint()
        return new.verifier

    def retire(self, reason: str, actor: Actor) -> list[VerifierKey]:
        """Stop signing with all keys but the present one.

        Raises:
            Conflict: there is no other.
        """
        present, *old = self._signers()
        if not old:
            raise Conflict("there is one signing key alone: rotate it first")
        self.checkpoint()  # signed by the present key, too, so that it can be opened by that alone from now on
        with self._files.alone():
            with self._store.transaction(actor) as tx:
                keys = {"present": present.verifier.text, "retired": [signer.verifier.text for signer in old]}
                tx.audit.append("log.key-retired", model=None, reason=reason, parameters=keys)
            self._files.write_signers([present])
        return [signer.verifier for signer in old]

    def _signers(self) -> tuple[SignerKey, ...]:
        """The keys of this machine; the first one is made when it is first needed."""
        return self._files.signers() or self._first()

    def _first(self) -> tuple[SignerKey, ...]:
        with self._files.alone():
            if found := self._files.signers():
                return found
            with self._store.reading() as tx:
                if tx.audit.last_checkpoint() is not None:
                    raise self._key_gone()
            key = SignerKey.generate(self._name or f"espalier-{secrets.token_hex(4)}")
            with self._store.transaction(ACTOR) as tx:
                tx.audit.append("log.key-created", model=None, parameters={"key": key.verifier.text})
            self._files.write_signers([key])
        return (key,)

    def tidy(self) -> None:
        """Remove what a process left that was killed while it wrote a key or a checkpoint."""
        with self._files.alone():
            pass

    # -- epochs --------------------------------------------------------------------------------------------------------

    def begin_epoch(self, reason: str, actor: Actor, *, new_key: bool = False) -> LogHead:
        """Go on from the database as it is, whatever was signed before: the log says what was given up.

        Args:
            reason: why; it stands in the log.
            actor: who begins it.
            new_key: the key is lost, with every copy of it: sign with a new one of the same name from here on.

        Returns:
            The head with the entry that says so.

        Raises:
            Conflict: a new key was asked for, but there is one.
            Fault: there is none, and none was asked for.
        """
        if new_key and self._files.signers():
            raise Conflict(f"the signing key is at {self._files.keys}: rotate it, or go on with it in the new epoch")
        signers = () if new_key else self._signers()
        with self._files.alone():
            given_up = self._last_here(signers)
            fresh = self._replacement(given_up) if new_key else None
            with self._store.transaction(actor) as tx:
                head = tx.audit.head()
                epoch = max(head.epoch, _epoch_of(given_up.origin) if given_up else 1) + 1
                about = {"epoch": epoch, "continues": head.size, "given_up": given_up and _told(given_up)}
                tx.audit.begin_epoch(epoch, reason=reason, parameters=about)
                if fresh is not None:
                    tx.audit.append("log.key-created", model=None, parameters={"key": fresh.verifier.text})
            if fresh is not None:  # in this order: killed in between, there is no key still, and this can be run again
                self._files.give_up()
                self._files.write_signers([fresh])
            with self._store.reading() as tx:
                return tx.audit.head()

    def _last_here(self, signers: Sequence[SignerKey]) -> LogCheckpoint | None:
        """What was signed last on this machine; unverified where there is no key to do it with."""
        kept = self._files.kept()
        if kept is None:
            return None
        return self._opened(kept, signers) if signers else _unverified(kept)

    def _replacement(self, given_up: LogCheckpoint | None) -> SignerKey:
        with self._store.reading() as tx:
            last = tx.audit.last_checkpoint()
        before = given_up or (None if last is None else _unverified(last.note))
        if before is None:
            raise Conflict("nothing was signed yet: the first key is made when it is needed")
        return SignerKey.generate(self._name or before.origin.partition(_EPOCH)[0])

    # -- whether what was signed holds ---------------------------------------------------------------------------------

    def examine(self) -> Iterator[tuple[str, str]]:
        """Checkpoints that were signed and do not hold, or that the log does not continue: which, and why. Makes no
        key and signs nothing.
        """
        own, logged, kept = self._own_keys(), self._logged_keys(), self._files.kept()
        if isinstance(own, Fault):
            yield f"key file {self._files.keys}", str(own)
            own = []
        elif kept is not None and not own:  # it has signed; machines that never did need no key
            yield f"key file {self._files.keys}", str(self._key_gone())
        elif why := self._fault_of_keys(own, logged):
            yield f"key file {self._files.keys}", why
        keys = list(dict.fromkeys([*own, *logged]))
        if kept is not None:
            with self._store.reading() as tx:
                why = _fault_of_kept(tx, kept, keys)
            if why is not None:
                yield "the last signed checkpoint, in the file beside the blobs", why
        given_up = self._given_up()
        with self._store.reading() as tx:
            epoch = tx.audit.head().epoch
        if epoch != max(given_up, default=0) + 1:
            yield "audit log", f"its head says epoch {epoch}, its entries {max(given_up, default=0) + 1}: {CHANGED}"
        after = 0, 0
        while True:  # a transaction a page: on SQLite a long one would keep every writer waiting
            with self._store.reading() as tx:
                page = tx.audit.checkpoints(after, _PAGE)
                faults = [(signed, _fault_of(tx, signed, keys, given_up)) for signed in page]
            yield from ((_named(signed), why) for signed, why in faults if why is not None)
            if len(page) < _PAGE:
                return
            after = page[-1].head.epoch, page[-1].head.size

    def _own_keys(self) -> list[VerifierKey] | Fault:
        try:
            return [signer.verifier for signer in self._files.signers()]
        except Fault as fault:
            return fault

    def _fault_of_keys(self, own: Sequence[VerifierKey], logged: Sequence[VerifierKey]) -> str | None:
        with self._store.reading() as tx:
            epoch = tx.audit.head().epoch
        # Where an older database was put back, the entry that named the key may be given up, and the epoch says so.
        strange = [key for key in own if key not in logged] if epoch == 1 else []
        if strange:
            named = ", ".join(f"{key.name}+{key.hash.hex()}" for key in strange)
            return f"no audit entry names the key {named}: it is not the log's: put the copy of the log's own key there"
        return None

    def _key_gone(self) -> Fault:
        return Fault(
            f"the log was signed before, but its key is not at {self._files.keys}: put its copy there, or set "
            "ESPALIER_LOG_KEY_FILE; when no copy is left, `espalier audit new-epoch --new-key`"
        )

    def _logged_keys(self) -> list[VerifierKey]:
        """Keys that ever signed, as the log says; the signatures of retired ones are checked by them."""
        found = []
        for kind, name in (("log.key-created", "key"), ("log.key-rotated", "new")):
            with self._store.reading() as tx:
                entries = tx.audit.entries(None, None, _PAGE, kind).items
            found += [VerifierKey.parse(str(entry.document["parameters"][name])) for entry in entries]
        return found

    def _given_up(self) -> dict[int, int]:
        """By epoch: how many entries of it the next one continues; later ones of it are given up."""
        with self._store.reading() as tx:
            entries = tx.audit.entries(None, None, _PAGE, "log.epoch-began").items
        told = [entry.document["parameters"] for entry in entries]
        return {int(about["epoch"]) - 1: int(about["continues"]) for about in told}


def _fault_of_kept(tx: Transaction, note: str, keys: Sequence[VerifierKey]) -> str | None:
    head, last = tx.audit.head(), tx.audit.last_checkpoint()
    try:
        said = opened(note, keys)
        _expect(tx, head, said, "it")
    except ProofRejected as error:
        return f"{error}: put it back from a backup"
    except LogBehind as error:
        return str(error)
    if last is None or (last.head.epoch, last.head.size) < (_epoch_of(said.origin), said.size):
        return f"the database holds no checkpoint of {said.size} entries, though it was signed: {_GONE}"
    return None


def _fault_of(
    tx: Transaction, signed: SignedHead, keys: Sequence[VerifierKey], given_up: Mapping[int, int]
) -> str | None:
    head, present = signed.head, tx.audit.head()
    try:
        said = opened(signed.note, keys)
    except ProofRejected as error:
        return f"{error}: {CHANGED}"
    if (_epoch_of(said.origin), said.size, said.root.hex()) != (head.epoch, head.size, head.root):
        return f"its row says {head.size} entries and {head.root}, its note something else: {CHANGED}"
    if head.epoch > present.epoch or (head.epoch == present.epoch and head.size > present.size):
        return f"the log has {present.size} entries (epoch {present.epoch}) only: {_GONE}"
    continued = head.epoch == present.epoch or head.size <= given_up.get(head.epoch, 0)
    if continued and (found := tx.audit.tree().root(head.size).hex()) != head.root:
        return f"the first {head.size} entries of the log hash to {found} now, not to {head.root}: rewritten: {RESTORE}"
    return None


def _named(signed: SignedHead) -> str:
    return f"signed checkpoint of {signed.head.size} entries (epoch {signed.head.epoch})"


def _expect(tx: Transaction, head: LogHead, said: LogCheckpoint, where: str) -> None:
    """Make sure that a log continues a checkpoint.

    Raises:
        LogBehind: it does not.
    """
    epoch = _epoch_of(said.origin)
    if epoch < head.epoch:
        return  # given up, and the log says so
    if epoch > head.epoch or said.size > head.size:
        raise LogBehind(
            f"the log has {head.size} entries (epoch {head.epoch}), but {where} holds a signed checkpoint of "
            f"{said.size} (epoch {epoch}): an older database was put back. Restore a newer one, or run `espalier audit "
            "new-epoch`"
        )
    found = tx.audit.tree().root(said.size)
    if found != said.root:
        raise LogBehind(
            f"the first {said.size} entries of the log hash to {found.hex()}, but {where} holds a signed checkpoint "
            f"that says {said.root.hex()}: the log was rewritten, or an older database went on without it. Run "
            "`espalier doctor`; `espalier audit new-epoch` goes on from what is there"
        )


def _says(note: str, signers: Sequence[SignerKey], head: LogHead) -> bool:
    """Whether a note is that of this head, signed by every key."""
    return note.startswith(f"{_body(signers[0], head)}\n") and all(
        f"— {signer.name} " in note and _signed_by(note, signer) for signer in signers
    )


def _signed_by(note: str, signer: SignerKey) -> bool:
    try:
        opened(note, [signer.verifier])
    except ProofRejected:
        return False
    return True


def _body(signer: SignerKey, head: LogHead) -> str:
    return LogCheckpoint(_origin(signer, head.epoch), head.size, bytes.fromhex(head.root)).body()


def _origin(signer: SignerKey, epoch: int) -> str:
    return signer.name if epoch == 1 else f"{signer.name}{_EPOCH}{epoch}"


def _epoch_of(origin: str) -> int:
    _, found, number = origin.rpartition(_EPOCH)
    return int(number) if found and number.isdecimal() else 1


def _unverified(note: str) -> LogCheckpoint:
    try:
        return LogCheckpoint.of(split(note)[0])
    except ProofRejected as error:
        raise Fault(f"the last signed checkpoint cannot be read ({error}): restore it from a backup") from error


def _told(given_up: LogCheckpoint) -> dict[str, object]:
    return {"origin": given_up.origin, "size": given_up.size, "root": given_up.root.hex()}
