"""The words of the house, as values.

Knows: what a model, a megabatch, a cycle, a version, an alias and an audit entry are (docs/glossary.md says the same
in prose). Must never know: SQL, HTTP, torch, files, or how any of these is stored. Standard library only.

Laws:
    * Values are frozen; a change is a new value.
    * Times are timezone-aware UTC. Digests are ``sha256:<64 hex>``. Densities lie in (0, 1].
    * Versions, megabatches and cycles are numbered per model; version numbers are contiguous and never re-issued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar, get_args

T = TypeVar("T")

Digest = str
"""``sha256:`` and 64 lower-case hexadecimal digits."""

CHAMPION = "champion"
"""The alias that clients get."""

LATEST = "latest"
"""The newest published version, whether or not it is the champion: computed, never stored."""


class ModelState(StrEnum):
    """Whether a model's cycles may run."""

    ACTIVE = "active"
    PAUSED = "paused"


class MegabatchStatus(StrEnum):
    """Whether a megabatch may be trained on; of an erased one, nothing but the fact is left."""

    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    ERASED = "erased"


class Scope(StrEnum):
    """What a key allows. No scope includes another, but ``admin``, which includes all."""

    READ = "read"
    INGEST = "ingest"
    TRAIN = "train"
    RELEASE = "release"
    AUDIT = "audit"
    ADMIN = "admin"


class UploadState(StrEnum):
    """Where a resumable upload stands."""

    OPEN = "open"
    COMPLETE = "complete"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class CycleState(StrEnum):
    """Where one attempt to prune, retrain and judge stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHED = "published"
    WITHHELD = "withheld"
    FAILED = "failed"
    SUPERSEDED = "superseded"


OPEN_CYCLES = (CycleState.QUEUED, CycleState.RUNNING)


class VersionStatus(StrEnum):
    """What the verdict made of a version: published ones may become champion, withheld ones need a promotion."""

    PUBLISHED = "published"
    WITHHELD = "withheld"


class CycleTrigger(StrEnum):
    """Why a cycle was enqueued."""

    MEGABATCHES = "megabatches"
    CRON = "cron"
    MANUAL = "manual"
    ROLLBACK = "rollback"
    GUARDRAIL = "guardrail"
    QUARANTINE = "quarantine"
    ERASURE = "erasure"
    RECIPE = "recipe"
    INITIAL_WEIGHTS = "initial-weights"


class Phase(StrEnum):
    """The four phases of a cycle, in order."""

    ARRIVAL = "arrival"
    PRUNE = "prune"
    TRAIN = "train"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How inputs are scaled before the network sees them.

    Attributes:
        name: ``none``; ``fixed`` (``mean`` and ``std`` given here); ``first-megabatch`` (statistics of the training
            rows of the first megabatch, then frozen: they stand in every checkpoint); ``running`` (of all training rows
            that a version's lineage has taken in: each checkpoint has its own).
        signed_log: apply ``sign(x) * log1p(|x|)`` first (sensor data of very different scales).
        clip: clamp the standardised values to ``[-clip, clip]``; None leaves them.
        mean, std: one value per feature (flat inputs) or per channel (images, channels last); only for ``fixed``.
    """

    name: Literal["none", "fixed", "first-megabatch", "running"] = "first-megabatch"
    signed_log: bool = False
    clip: float | None = 8.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


UnseenClasses = Literal["reject", "extend"]
"""What becomes of a label beyond a model's classes."""

Resize = Literal["reject", "stretch", "crop", "pad"]
"""What becomes of an image whose height and width are not the model's."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model is fed. Fields that are None are inferred from the first megabatch.

    Attributes:
        shape: shape of one example without the batch axis; ``(features,)`` or ``(height, width, channels)``.
        dtype: ``float32`` or ``uint8``, as stored.
        classes: class names in label order; label ``i`` means ``classes[i]``.
        normalisation: how inputs are scaled; None until it is inferred.
        unseen_classes: what becomes of a megabatch with a label beyond ``classes``: it is refused (``reject``), or
            the classes grow, and the network's head with them (``extend``).
        label: name of the column that holds the labels, where an upload has columns; None: the usual names are tried.
        features: names of the columns that become the features, in this order; None until the first upload with
            columns shows them.
        resize: what becomes of images of another height and width: refused (``reject``), or fitted.
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    classes: tuple[str, ...] | None = None
    normalisation: Normalisation | None = None
    unseen_classes: UnseenClasses = "reject"
    label: str | None = None
    features: tuple[str, ...] | None = None
    resize: Resize = "reject"

    @property
    def complete(self) -> bool:
        """True when nothing is left to infer that training needs."""
        return None not in (self.shape, self.dtype, self.classes, self.normalisation)


@dataclass(frozen=True, slots=True)
class Model:
    """One registered, long-running learning problem.

    ``generation`` counts what invalidates running cycles: alias moves, quarantines, erasures, recipe revisions.
    """

    id: int
    name: str
    state: ModelState
    paused_reason: str | None
    recipe_revision: int
    recipe_digest: Digest
    input: InputSpec
    generation: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RecipeRevision:
    """One immutable revision of a model's recipe; ``document`` is the whole resolved recipe."""

    model: str
    revision: int
    digest: Digest
    document: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Prequential:
    """The champion's accuracy on a megabatch before it trained on it: what production saw.

    Examples of classes that the champion does not know count as wrong; ``loss`` is the mean over the others, None when
    there are none. ``drift``: how far the megabatch lies from what the champion's lineage had taken in, as plain JSON
    values (``app.learning.drift``); None where nothing was watched.
    """

    version: int
    accuracy: float
    loss: float | None
    examples: int
    drift: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class MegabatchDraft:
    """A decoded megabatch on its way in: the blobs are already durable.

    Attributes:
        digest: of the decoded arrays, independent of how the upload was packed (the natural key).
        x, y, ids: digests of ``.npy`` blobs: (n, *shape) float32 or uint8; (n,) int64; (n,) uint64 example ids.
        histogram: examples per class, in label order; its length is the number of classes.
        evaluation_overlap: examples that are in the model's evaluation set too; None without one.
    """

    digest: Digest
    x: Digest
    y: Digest
    ids: Digest
    examples: int
    bytes: int
    histogram: tuple[int, ...]
    evaluation_overlap: int | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """Rows that were taken out of a megabatch for good.

    Attributes:
        at: when.
        before: how many rows there were until then.
        removed: which of those went: first and last of each run of rows, in order.
    """

    at: datetime
    before: int
    removed: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Megabatch:
    """One uploaded set of labelled examples, in order of arrival. Nothing changes it but an erasure.

    ``pinned``: replayed in every cycle while it is accepted, whatever else the replay policy keeps.
    ``evaluation_overlap``: how many of its examples are in the model's evaluation set too, and so are not trained on;
    None without an evaluation set.
    ``digest``: of the arrays as they were accepted, also when values were erased since.
    ``erasures``: of single examples, oldest first; ``erased_at``: when the last of its values went, all of them where
    its status is ``erased``.
    """

    model: str
    number: int
    status: MegabatchStatus
    pinned: bool
    digest: Digest
    x: Digest
    y: Digest
    ids: Digest
    examples: int
    bytes: int
    histogram: tuple[int, ...]
    prequential: Prequential | None
    evaluation_overlap: int | None
    received_at: datetime
    erased_at: datetime | None = None
    erasures: tuple[Erasure, ...] = ()


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes on their way to a megabatch, over as many requests as it takes.

    Attributes:
        length: bytes of the whole, once that is known.
        offset: bytes that are durable; the upload goes on from here.
        digest: of the whole, where it was declared.
        media: type of the whole, where it was declared.
        metadata: what a tus client said about it, as it said it.
        megabatch: what it became.
        problem: why it was refused: the error's class, its message, and a reason where it has one.
        expires_at: when it is given up, or no longer remembered.
    """

    id: str
    model: str
    state: UploadState
    actor: str
    length: int | None
    offset: int
    digest: Digest | None
    media: str | None
    metadata: str | None
    megabatch: int | None
    problem: Mapping[str, Any] | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """A fixed labelled set of a model that is never trained on; each revision is immutable.

    ``x, y, ids`` are digests of ``.npy`` blobs, as in ``MegabatchDraft``.
    """

    model: str
    revision: int
    digest: Digest
    x: Digest
    y: Digest
    ids: Digest
    examples: int
    bytes: int
    histogram: tuple[int, ...]
    set_at: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running cycle is. ``step`` and ``steps`` count optimizer steps of the whole cycle.

    ``losses``: mean training loss of equal runs of steps so far, as many as a curve needs.
    """

    phase: Phase
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    density: float | None = None
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a cycle, as plain JSON values; it becomes an audit entry."""

    kind: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cycle:
    """One attempt: prune, retrain, judge.

    Attributes:
        through: the last megabatch it may train on, 0 for none.
        evaluation_revision: of the evaluation set that it pinned when it was claimed, if the model had one.
        attempt: retries with changed options; resumes do not count.
        failures: how often it has failed so far; ``not_before`` is when it may be tried again.
        version: the version that it made, if any; ``parent`` the version that it started from.
    """

    model: str
    number: int
    state: CycleState
    trigger: CycleTrigger
    through: int
    recipe_revision: int
    evaluation_revision: int | None
    parent: int | None
    version: int | None
    attempt: int
    failures: int
    not_before: datetime | None
    reason: str | None
    progress: Progress | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's time-limited claim on a cycle, with everything that the cycle pinned when it was claimed.

    Attributes:
        token: fencing token; grows with every claim. Publication compares it.
        generation: the model's generation at the claim. Publication compares it too.
        next_version: the number that a version made by this cycle will bear.
        model: as it was at the claim; its input spec is the one that the cycle works by, also when it is resumed later.
        pinned: numbers of the megabatches that were accepted and pinned.
        evaluation: the evaluation set, if the model had one.
        snapshot: digest of the step snapshot to resume from, if one was left.
    """

    cycle: Cycle
    model: Model
    recipe: RecipeRevision
    worker: str
    token: int
    generation: int
    next_version: int
    parent: Version | None
    pinned: frozenset[int]
    evaluation: EvaluationSet | None
    snapshot: Digest | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that a worker holds, as somebody saw it: every renewal and every claim makes another one of it.

    Attributes:
        cycle: the cycle's row.
        token: fencing token.
        heartbeat_at: when it was last renewed, by its worker's clock; only ever compared with itself.
    """

    cycle: int
    token: int
    heartbeat_at: datetime | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One prunable tensor of a version: how many of its weights are kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Kept weights / all weights of the layer."""
        return self.kept / self.total


Action = Literal["withhold", "retry", "hold", "restore"]
"""What a guardrail that trips asks for."""

ACTIONS: tuple[Action, ...] = get_args(Action)
"""The mildest first: where several guardrails trip, the strictest decides."""

HOLDING: tuple[Action, ...] = ("hold", "restore")
"""Actions that hold pruning until the guardrail has recovered."""


@dataclass(frozen=True, slots=True)
class Trip:
    """A guardrail that tripped on a version.

    Attributes:
        rule: its name; the second one of a name in a recipe is ``accuracy-floor#2``, and so on.
        action: what it asks for.
        breaches: versions in a row that breached it, this one included.
        recover_after: versions in a row that must pass it before density falls again, where the action holds it.
        reason: why it tripped, in words.
        figures: what that rests on, as plain JSON values.
    """

    rule: str
    action: Action
    breaches: int
    recover_after: int
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guardrails' answer before promotion, with reasons in words.

    Attributes:
        passed: no guardrail tripped.
        reasons: trips first, then breaches that have not tripped yet, then notes.
        action: the strictest that a guardrail asked for; empty when it passed.
        restored: the version that the champion went back to, where the action moved it.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    action: Action | Literal[""] = ""
    restored: int | None = None


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version on its way in: its blobs are already durable.

    Attributes:
        target_density: what the schedule asked for; ``kept / total`` is what was counted.
        checkpoint, checkpoint_bytes: the sparse checkpoint.
        dense, dense_bytes: the same tensors as dense safetensors, which are made from it when asked for.
        mask_digest: of all masks together (``espalier.formats.checkpoint.mask_digest``).
        state: digest of the blob with replay assignments and normalisation state, from which a child cycle starts.
        megabatches: how many megabatches it was trained on.
        metrics: accuracies, losses and gap, by name; a metric without data is absent.
        manifest: the checkpoint's manifest.
        report: figures that are no single number: by class, by megabatch; plain JSON values.
        inputs, samples, answers, falls: blobs that say what the version was made from; None where nobody wrote them.
        uses: by megabatch, what the cycle did with any of its samples (``espalier.formats.custody.Use``).
    """

    status: VersionStatus
    stage: int
    depth: int
    target_density: float
    kept: int
    total: int
    layers: tuple[Layer, ...]
    metrics: Mapping[str, float]
    verdict: Verdict
    checkpoint: Digest
    checkpoint_bytes: int
    dense: Digest
    dense_bytes: int
    mask_digest: Digest
    state: Digest
    megabatches: int
    manifest: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    inputs: Digest | None = None
    samples: Digest | None = None
    answers: Digest | None = None
    falls: Digest | None = None
    uses: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version in short: what a time line draws and an ancestry is walked by.

    Attributes:
        swept_at, swept_reason: when and why the retention policy removed its bytes; None while they are there.
    """

    model: str
    number: int
    parent: int | None
    status: VersionStatus
    stage: int
    target_density: float
    kept: int
    total: int
    metrics: Mapping[str, float]
    checkpoint: Digest
    checkpoint_bytes: int
    dense_bytes: int
    state: Digest
    megabatches: int
    created_at: datetime
    swept_at: datetime | None
    swept_reason: str | None

    @property
    def density(self) -> float:
        """Counted density: kept prunable weights / all prunable weights."""
        return self.kept / self.total


@dataclass(frozen=True, slots=True)
class Version(VersionSummary):
    """A numbered, immutable result with parent, stage, metrics and verdict. Its manifest is asked for by itself.

    ``inputs, samples, answers, falls`` are blobs that say what it was made from; older versions have none.
    """

    cycle: int
    depth: int
    recipe_revision: int
    recipe_digest: Digest
    layers: tuple[Layer, ...]
    verdict: Verdict
    dense: Digest
    mask_digest: Digest
    report: Mapping[str, Any] = field(default_factory=dict)
    inputs: Digest | None = None
    samples: Digest | None = None
    answers: Digest | None = None
    falls: Digest | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What a version's cycle did with samples of a megabatch.

    Attributes:
        use: every ``espalier.formats.custody.Use`` of any of them; 0 where only an ancestor's cycle used it.
    """

    version: int
    megabatch: int
    use: int


@dataclass(frozen=True, slots=True)
class DecisionDraft:
    """What a client decided with a version, as it reports it.

    Attributes:
        checkpoint: digest of the version's sparse checkpoint.
        example: the client's name for what was decided about.
        answer: what was decided: the name of a class.
        confidence: in [0, 1].
    """

    version: int
    checkpoint: Digest
    example: str | None
    answer: str
    confidence: float | None
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Decision(DecisionDraft):
    """A decision, as it is kept. ``actor`` reported it."""

    id: int
    actor: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name of a version. ``revision`` grows with every move; moves compare it (``If-Match``)."""

    model: str
    name: str
    version: int
    revision: int
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One line of an alias's history: who moved it, when, from where, and why."""

    model: str
    alias: str
    revision: int
    previous: int | None
    version: int
    actor: str
    reason: str
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class Protection:
    """What stands between an alias and its next move by hand, or by the service itself.

    Attributes:
        approvals: how many other people must approve a promotion; 0: none.
        automatic: whether the service moves it by itself when a version passes its guardrails.
        set_at: when that was decided; None where nobody did, and the defaults hold.
    """

    model: str
    alias: str
    approvals: int = 0
    automatic: bool = True
    set_at: datetime | None = None

    @property
    def needed(self) -> int:
        """Approvals that a proposal needs: one at least, or it would not be a proposal."""
        return max(1, self.approvals)


class ProposalState(StrEnum):
    """Where a proposed move stands. Expired and overtaken ones were never decided."""

    OPEN = "open"
    CARRIED_OUT = "carried-out"
    REJECTED = "rejected"
    EXPIRED = "expired"
    OVERTAKEN = "overtaken"


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's consent to a proposal."""

    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Proposal:
    """A move of a protected alias that waits for other people.

    Attributes:
        revision: the alias's, when the move was proposed; another one since then has overtaken it.
        override: whether it makes a champion of a version that was withheld.
        approvals: given so far, by as many actors.
        decided_by, decided_at: who carried it out, by approving last, or rejected it.
    """

    model: str
    number: int
    alias: str
    version: int
    revision: int
    override: bool
    state: ProposalState
    reason: str
    proposed_by: str
    proposed_at: datetime
    expires_at: datetime
    approvals: tuple[Approval, ...]
    decided_by: str | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One immutable fact.

    ``document`` is the canonical entry as it was hashed (RFC 8785; floats and wide integers as strings), with the keys
    ``seq, time, kind, actor, request_id, model, inputs, parameters, outputs, reason, code``; ``leaf`` is its RFC
    6962 leaf hash in hex.
    """

    seq: int
    time: datetime
    kind: str
    actor: str
    model: str | None
    document: Mapping[str, Any]
    leaf: str


@dataclass(frozen=True, slots=True)
class LogHead:
    """The log's last state: how many entries, and the RFC 6962 Merkle root over their leaf hashes, in hex.

    ``epoch`` grows when an older database goes on where a younger one had signed more.
    """

    size: int
    root: str
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A state of the log that was signed: ``note`` is what was served (C2SP signed note)."""

    head: LogHead
    note: str
    signed_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its secret: who it stands for, and what it allows.

    Attributes:
        id: part of the key's text, by which it is found.
        name: the actor's name in the log; never given to another key.
        models: the models that it is for; None: all.
        requests_per_minute: None: as many as the settings say.
        used_at: to the minute; None: never.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None
    requests_per_minute: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_reason: str | None = None
    used_at: datetime | None = None


class DeliveryState(StrEnum):
    """What became of an event that a webhook is told."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, repr=False)
class WebhookSecret:
    """What deliveries are signed with, ``whsec_...``; ``expires_at`` None: until it is rotated."""

    text: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that is told of audit entries.

    Attributes:
        kinds: kinds of entries that it is told of; None: all.
        models: models whose entries it is told of; None: all, and what is about no model.
        secrets: the newest first; those before it are over, or will be.
        sent_through: number of the last entry that it was told, or has no use for.
        disabled_reason: why it is not enabled.
    """

    id: int
    url: str
    description: str
    kinds: frozenset[str] | None
    models: frozenset[str] | None
    enabled: bool
    disabled_reason: str | None
    secrets: tuple[WebhookSecret, ...] = field(repr=False)
    sent_through: int
    created_by: str
    created_at: datetime
    changed_at: datetime

    def wants(self, kind: str, model: str | None) -> bool:
        """Whether it is told of such an entry."""
        return (self.kinds is None or kind in self.kinds) and (self.models is None or model in self.models)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to a webhook.

    Attributes:
        seconds: how long it took.
        status: what the receiver answered; None: nothing.
        error: why it counts as a failure, in words; None: it does not.
        answer: the beginning of what the receiver said.
    """

    at: datetime
    seconds: float
    status: int | None
    error: str | None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a webhook, or at its end.

    Attributes:
        event: what the receiver knows it by, the same at every attempt.
        seq: number of the audit entry; None for a test.
        holds: events after it wait for it.
        once: asked for by hand: it is tried once.
        began_at: when the day began within which it is tried.
        next_at: when it is tried next; None once it has ended.
    """

    id: int
    webhook: int
    event: str
    seq: int | None
    kind: str
    model: str | None
    state: DeliveryState
    holds: bool
    once: bool
    attempts: tuple[Attempt, ...]
    created_at: datetime
    began_at: datetime
    next_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do.

    Attributes:
        name: the actor's name in the log.
        scopes: what their key allows.
        models: the models that it is for; None: all.
        key: id of their key; empty on a service that is open.
        expires_at: when their key, or their session with it, ends.
    """

    name: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    key: str = ""
    expires_at: datetime | None = None

    def may(self, scope: Scope) -> bool:
        """Whether they have a scope; ``admin`` is all of them."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, model: str) -> bool:
        """Whether their key is for this model."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for a change, and under which request."""

    name: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a keyset listing; ``next`` is the key to go on from, None on the last page."""

    items: tuple[T, ...]
    next: str | None = field(default=None)
