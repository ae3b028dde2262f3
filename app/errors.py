"""Everything that can go wrong, drawn first, then defined. No HTTP status here: ``app.api.problems`` holds that table.

    EspalierError
    ├── BadInput                 what was sent cannot be used; nothing was changed
    │   ├── InvalidName
    │   ├── InvalidRecipe        .errors: [(pointer, message)]
    │   ├── InvalidInputSpec
    │   ├── InvalidMegabatch     .reason: a stable word, such as "not-npz" or "label-out-of-range"
    │   ├── InvalidWeights
    │   ├── InvalidCursor
    │   ├── DigestMismatch
    │   ├── UploadTooLarge
    │   ├── LengthMismatch
    │   ├── ChecksumMismatch     one part of a resumable upload; the parts before it stay
    │   ├── KeyReused            an idempotency key that came with other content before
    │   ├── InvalidWebhook       an address that nothing can or may be sent to
    │   ├── InvalidStamp         a decision names a version or checkpoint that is not the model's
    │   └── NotAnAncestor
    ├── NotFound
    │   ├── UnknownModel  UnknownMegabatch  UnknownEvaluationSet  UnknownCycle
    │   ├── UnknownVersion  UnknownAlias  UnknownEntry  UnknownProposal  UnknownKey
    │   ├── UnknownRevision  UnknownUpload  UploadExpired  UnknownWebhook  UnknownDelivery
    │   ├── NotRecorded          the version was made before this was written down
    │   └── VersionSwept         its row is there, its bytes are not
    ├── Conflict                 true in itself, but not now
    │   ├── ModelExists
    │   ├── KeyNameTaken         names of keys are never given twice: the log goes by them
    │   ├── MegabatchQuarantined
    │   ├── MegabatchErased      the same content was there, and was erased
    │   ├── EvaluationEmptied    an erasure would leave no evaluation examples
    │   ├── InputUnknown         what the model is fed is not known yet
    │   ├── NothingToTrain
    │   ├── ModelPaused
    │   ├── RecipeUnchanged      a revision that says what is in force
    │   ├── VerdictStands        a version that its guardrails withheld, promoted without saying so
    │   ├── ProposalClosed       decided, expired or overtaken
    │   ├── AliasMoved           a lost race: the alias's revision is another one by now
    │   ├── PreconditionMissing  a move of an alias without If-Match
    │   ├── OffsetMismatch       .expected: where the upload goes on
    │   ├── UploadBusy           another request is writing it
    │   ├── UploadClosed         it is complete
    │   ├── KeyInUse             the first request with this idempotency key still runs
    │   └── LeaseLost            the cycle was superseded, or another worker holds it
    ├── Denied
    │   ├── SelfApproval         one person's proposal needs another person's approval
    │   ├── ScopeMissing         the key does not allow it
    │   ├── OtherModel           the key is for other models
    │   └── KeyRequired
    ├── LearningFailed           a cycle cannot make a version of what it was given
    │   ├── TrainingDiverged     losses, scores or weights became infinite or NaN
    │   └── NetworkUnusable      the network does not fit its input, or has nothing to prune
    ├── Unavailable              try again later
    │   ├── StoreBusy  StorageFull  StorageFailed  TooManyUploads
    │   ├── BytesErased          the same bytes were erased elsewhere while they were kept
    │   ├── TooManyRequests      .seconds: after which it may be tried again
    │   └── StorageUnreachable  StorageRefused
    └── Fault                    a law of the house is broken
        ├── UnauditedChange      a transaction changed audited rows without an audit entry
        ├── RefusedSql           text or driver-level SQL, or a change of an audit entry
        ├── SchemaMismatch       the database needs `espalier migrate`
        ├── CorruptBlob  MissingBlob
        ├── LogBehind            the log is not a continuation of what was signed
        └── InvariantBroken      density, nesting or scored weights are not what the plan says

The message of an error says what to do. ``str(error)`` is that message.
"""

from __future__ import annotations

from collections.abc import Sequence


class EspalierError(Exception):
    """Root of the tree."""


class BadInput(EspalierError):
    """What was sent cannot be used; nothing was changed."""


class InvalidName(BadInput):
    """A name is not lower-case letters, digits and hyphens, 1 to 63 of them, starting with a letter or digit."""


class InvalidRecipe(BadInput):
    """A recipe cannot work. ``errors`` holds (JSON pointer, message) pairs."""

    def __init__(self, message: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class InvalidInputSpec(BadInput):
    """A declared input cannot work. ``errors`` holds (JSON pointer, message) pairs."""

    def __init__(self, message: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class InvalidMegabatch(BadInput):
    """An upload cannot be used as a megabatch. ``reason`` is a stable word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidWeights(BadInput):
    """Initial weights are not safetensors, or do not fit the network."""


class InvalidCursor(BadInput):
    """A page cursor was not made by this service."""


class DigestMismatch(BadInput):
    """The bytes that arrived do not have the digest that was declared."""


class UploadTooLarge(BadInput):
    """An upload exceeds the limit of this deployment."""


class LengthMismatch(BadInput):
    """An upload ended before, or went past, its declared length."""


class ChecksumMismatch(BadInput):
    """A part of a resumable upload does not have its checksum; it was dropped, and the parts before it stay."""


class KeyReused(BadInput):
    """An idempotency key was sent with other content before."""


class InvalidWebhook(BadInput):
    """Nothing can be sent to a webhook's address, or nothing may."""


class InvalidStamp(BadInput):
    """A decision is stamped with a version that the model does not have, or with another checkpoint than its."""


class NotAnAncestor(BadInput):
    """A rollback aims at a version that the champion does not descend from."""


class NotFound(EspalierError):
    """What was named does not exist."""


class UnknownModel(NotFound):
    """No model has this name."""


class UnknownMegabatch(NotFound):
    """The model has no megabatch of this number."""


class UnknownEvaluationSet(NotFound):
    """The model has no evaluation set."""


class UnknownCycle(NotFound):
    """The model has no cycle of this number."""


class UnknownVersion(NotFound):
    """The model has no version of this number or alias."""


class UnknownAlias(NotFound):
    """The model has no alias of this name."""


class UnknownRevision(NotFound):
    """A model's recipe has no revision of this number."""


class UnknownProposal(NotFound):
    """A model has no proposal of this number."""


class UnknownEntry(NotFound):
    """The log has no entry of this number."""


class UnknownKey(NotFound):
    """No key has this name."""


class UnknownUpload(NotFound):
    """No resumable upload has this id."""


class UnknownWebhook(NotFound):
    """No webhook has this id."""


class UnknownDelivery(NotFound):
    """The webhook has no delivery of this id, or it was forgotten by now."""


class UploadExpired(NotFound):
    """A resumable upload was left alone for too long."""


class NotRecorded(NotFound):
    """A version was made before this was written down about versions."""


class VersionSwept(NotFound):
    """The retention policy has removed the bytes of this version; its row, metrics and audit entries stay."""


class Conflict(EspalierError):
    """The request is sound, but the present state does not allow it."""


class ModelExists(Conflict):
    """A model of this name exists already, with another recipe or input."""


class KeyNameTaken(Conflict):
    """A key of this name exists, or existed: names are never given twice."""


class MegabatchQuarantined(Conflict):
    """The same content was uploaded before and is quarantined."""


class MegabatchErased(Conflict):
    """The same content was uploaded before, and it, or examples of it, were erased; or what is asked for needs them."""


class EvaluationEmptied(Conflict):
    """An erasure would take the last examples of the evaluation set that is in force."""


class InputUnknown(Conflict):
    """The model's shape, dtype or classes are not known yet, so nothing can be compared with them."""


class NothingToTrain(Conflict):
    """A cycle was asked for, and no eligible megabatch is there to train on."""


class RecipeUnchanged(Conflict):
    """A revision of a recipe would say what is in force."""


class ModelPaused(Conflict):
    """The model is paused; it must be resumed first."""


class VerdictStands(Conflict):
    """Guardrails withheld the version; to promote it all the same must be said, and is audited."""


class ProposalClosed(Conflict):
    """A proposal is decided, expired or overtaken by another move."""


class AliasMoved(Conflict):
    """The alias was moved since its revision was read."""


class PreconditionMissing(Conflict):
    """A move of an alias must say which revision of it was seen."""


class LeaseLost(Conflict):
    """The cycle is no longer this worker's: superseded, or reclaimed by another."""


class OffsetMismatch(Conflict):
    """A part does not begin where the upload goes on. ``expected`` is where it does."""

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(
            f"the upload goes on at byte {expected}, not at {provided}: ask for its offset, then send from there"
        )
        self.expected = expected
        self.provided = provided


class UploadBusy(Conflict):
    """Another request is writing or decoding this upload."""


class UploadClosed(Conflict):
    """The upload is complete; nothing can be appended."""


class KeyInUse(Conflict):
    """The first request with this idempotency key still runs."""


class Denied(EspalierError):
    """The caller may not do this."""


class SelfApproval(Denied):
    """A proposal is approved by others than who proposed it, and by each of them once."""


class ScopeMissing(Denied):
    """The key does not allow this: it lacks the scope."""


class OtherModel(Denied):
    """The key is for other models, or for some models where the whole service is asked about."""


class KeyRequired(Denied):
    """The request carries no key, or a wrong one."""


class LearningFailed(EspalierError):
    """A cycle cannot make a version of what it was given; the same recipe would fail again."""


class TrainingDiverged(LearningFailed):
    """A loss, a score or a weight became infinite or NaN."""


class NetworkUnusable(LearningFailed):
    """The network does not fit its input, or has nothing to prune."""


class Unavailable(EspalierError):
    """Try again later; nothing was changed."""


class StoreBusy(Unavailable):
    """The database is busy with another writer."""


class BytesErased(Unavailable):
    """The same bytes were erased elsewhere while they were kept; nothing was changed, and they may be sent again."""


class TooManyRequests(Unavailable):
    """A key, or an address that showed wrong ones, asked too often. ``seconds``: how long to wait."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class StorageFull(Unavailable):
    """The disk is full."""


class StorageFailed(Unavailable):
    """The disk, or the database's, reports errors: its owner must look at it."""


class StorageUnreachable(Unavailable):
    """The bucket that holds the blobs does not answer."""


class StorageRefused(Unavailable):
    """The bucket that holds the blobs is not there, or denies access: its owner must mend that."""


class TooManyUploads(Unavailable):
    """As many uploads are open, or bytes of them staged, as this deployment allows."""


class Fault(EspalierError):
    """A law of the house is broken."""


class UnauditedChange(Fault):
    """A transaction changed audited rows without an audit entry; it was rolled back."""


class RefusedSql(Fault):
    """Text or driver-level SQL outside migrations, or a change of an audit entry."""


class SchemaMismatch(Fault):
    """The database is not at this version's schema: run `espalier migrate`."""


class CorruptBlob(Fault):
    """A blob's bytes do not hash to its name."""


class MissingBlob(Fault):
    """A blob that a row names is not there."""


class LogBehind(Fault):
    """The log is older than a checkpoint of it that was signed, or was rewritten: it is not signed as it is."""


class InvariantBroken(Fault):
    """Counted density, nesting of masks, or the weights that were scored are not what the plan says."""
