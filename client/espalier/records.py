"""What the service answers, as frozen values.

Knows: the members of the HTTP API's JSON objects and their types. Must never know: how they travel (``transport``), or
how they are printed (``console``).

Laws:
    * A member that this version does not know is kept in ``document`` and otherwise ignored: a newer service stays
      readable.
    * A member that may be null, or that has a default here, may be missing: an older service stays readable.
    * Anything else that is missing or of another type raises ``EspalierClientError`` naming the member.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import Any, Generic, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from espalier.errors import EspalierClientError

T = TypeVar("T")

CHAMPION = "champion"


@dataclass(frozen=True)
class Record:
    """One JSON object of the API.

    Attributes:
        document: the object as it was received, with members that this version does not know.
    """

    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a JSON object.

        Raises:
            EspalierClientError: a member is missing or of another type.
        """
        if not isinstance(document, Mapping):
            raise _unreadable(cls.__name__, f"an object was expected, not {type(document).__name__}")
        given: dict[str, Any] = {}
        for name, (hint, required) in _members(cls).items():
            if name in document:
                given[name] = _read(hint, document[name], f"{cls.__name__}.{name}")
            elif required:
                raise _unreadable(cls.__name__, f"{name!r} is missing")
        return cls(document=dict(document), **given)


@dataclass(frozen=True)
class Normalisation(Record):
    """How inputs are scaled before the network sees them."""

    name: str
    signed_log: bool = False
    clip: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class InputSpec(Record):
    """What a model is fed; members that are None are inferred from the first megabatch.

    ``unseen_classes``: a megabatch with a label beyond ``classes`` is refused (``reject``), or adds it (``extend``).
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    classes: tuple[str, ...] | None = None
    normalisation: Normalisation | None = None
    unseen_classes: str = "reject"


@dataclass(frozen=True)
class Layer(Record):
    """One prunable tensor of a version: how many of its weights are kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Kept weights / all weights of the layer."""
        return self.kept / self.total


@dataclass(frozen=True)
class Verdict(Record):
    """The guardrails' answer before promotion, with reasons in words, and the action that they ask for."""

    passed: bool
    reasons: tuple[str, ...] = ()
    action: str = ""


@dataclass(frozen=True)
class CheckpointFile(Record):
    """A version's bytes: the digest and size of the sparse form, and what the same tensors take dense."""

    digest: str
    bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class Version(Record):
    """A numbered, immutable result with parent, stage, metrics and verdict. ``density`` is kept / total, counted."""

    model: str
    number: int
    parent: int | None
    status: str
    stage: int
    density: float
    checkpoint: CheckpointFile
    cycle: int | None = None
    depth: int = 0
    recipe_revision: int = 1
    recipe_digest: str | None = None
    target_density: float | None = None
    kept: int | None = None
    total: int | None = None
    layers: tuple[Layer, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    mask_digest: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    megabatches: int = 0
    created_at: datetime | None = None
    swept_at: datetime | None = None
    swept_reason: str | None = None


@dataclass(frozen=True)
class VersionSummary(Record):
    """The champion as a model's summary shows it."""

    number: int
    status: str | None = None
    stage: int | None = None
    density: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class Model(Record):
    """One registered, long-running learning problem, with what a person asks about it first.

    ``replayed`` is True on the answer to a creation when the very same model was there already.
    """

    name: str
    state: str
    paused_reason: str | None
    recipe_revision: int
    recipe_digest: str
    recipe: Mapping[str, Any]
    input: InputSpec
    generation: int
    champion: VersionSummary | None
    champion_revision: int | None
    megabatches: int
    queued_cycles: int
    running_cycle: int | None
    last_failure: str | None
    created_at: datetime
    replayed: bool = False


@dataclass(frozen=True)
class Shift(Record):
    """How far one sample lies from another.

    Attributes:
        statistic: of the test; of ``accuracy``, the accuracy on arrival.
        effect: how large the difference is, 0 to 1.
        alarm: whether it is more than chance and more than the recipe accepts.
        examples, reference: how many were compared with how many.
    """

    statistic: float
    p_value: float
    effect: float
    alarm: bool
    examples: int
    reference: int


@dataclass(frozen=True)
class Feature(Record):
    """A feature whose distribution differs: its place in the flattened example, or in the embedding, from 0."""

    index: int
    effect: float
    p_value: float


@dataclass(frozen=True)
class InputShift(Shift):
    """How far inputs lie from those of the past.

    Attributes:
        of: ``features``, as they are stored, or ``embedding``: as the champion sees them.
        features: the most drifted ones, first of all the one that the figures are of.
        width: how many features there are.
    """

    of: str
    features: tuple[Feature, ...]
    width: int


@dataclass(frozen=True)
class Drift(Record):
    """How far a new megabatch lies from the past; None what is not watched, or could not be compared."""

    inputs: InputShift | None = None
    labels: Shift | None = None
    accuracy: Shift | None = None


@dataclass(frozen=True)
class Prequential(Record):
    """The champion's accuracy on a megabatch before it trained on it: what production saw.

    Examples of classes that it does not know are wrong; ``loss`` is the mean over the others, None without any.
    """

    version: int
    accuracy: float
    loss: float | None
    examples: int
    drift: Drift | None = None


@dataclass(frozen=True)
class Megabatch(Record):
    """One uploaded, immutable set of labelled examples.

    Attributes:
        cycle: the cycle that the upload enqueued, if it did; only on the answer to an upload.
        replayed: True when the same arrays were there already and the first megabatch was returned.
        pinned: whether every cycle replays it, whatever the replay policy keeps.
        evaluation_overlap: how many of its examples are in the evaluation set too, and are left out of training; None
            without an evaluation set.
        status: ``accepted``; ``quarantined``: not trained on until it is released; ``erased``: its values are gone.
        erased_at: when values of it were last erased; None: all are there.
    """

    model: str
    number: int
    status: str
    digest: str
    examples: int
    bytes: int
    histogram: Mapping[str, int]
    received_at: datetime
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    prequential: Prequential | None = None
    cycle: int | None = None
    replayed: bool = False
    pinned: bool = False
    evaluation_overlap: int | None = None
    erased_at: datetime | None = None


@dataclass(frozen=True)
class SortedMegabatch(Record):
    """A megabatch that was put into quarantine or let out of it, the open cycles that ended with that, and the one in
    their place.
    """

    megabatch: Megabatch
    superseded_cycles: tuple[int, ...] = ()
    queued_cycle: int | None = None


@dataclass(frozen=True)
class EvaluationSet(Record):
    """A fixed labelled set that is never trained on.

    Attributes:
        revision: counts the sets that the model has had, from 1.
        overlap: examples of all megabatches together that are in it too, and are left out of training.
        replayed: True on the answer to a set that was in force already.
    """

    model: str
    revision: int
    digest: str
    examples: int
    bytes: int
    histogram: Mapping[str, int]
    set_at: datetime
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    overlap: int = 0
    replayed: bool = False


@dataclass(frozen=True)
class Progress(Record):
    """Where a running cycle is. ``step`` and ``steps`` count optimizer steps of the whole cycle."""

    phase: str
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    density: float | None = None


@dataclass(frozen=True)
class Cycle(Record):
    """One attempt to prune, retrain and judge."""

    model: str
    number: int
    state: str
    trigger: str
    through: int
    parent: int | None
    version: int | None
    reason: str | None
    created_at: datetime
    recipe_revision: int = 1
    evaluation_revision: int | None = None
    attempt: int = 0
    failures: int = 0
    not_before: datetime | None = None
    progress: Progress | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def open(self) -> bool:
        """True while it is queued or running."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Alias(Record):
    """A movable name of a version. ``revision`` grows with every move.

    ``actor`` and ``reason``: who moved it there and why, where it was asked for at a time.
    """

    model: str
    name: str
    version: int
    revision: int
    moved_at: datetime
    actor: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AliasMove(Record):
    """One line of an alias's history: who moved it, when, from where, and why."""

    alias: str
    revision: int
    previous: int | None
    version: int
    actor: str
    reason: str
    moved_at: datetime
    model: str | None = None


@dataclass(frozen=True)
class RolledBack(Record):
    """What a rollback did."""

    alias: Alias
    previous: int | None
    version: Version
    density_before: float
    density_after: float
    superseded_cycles: tuple[int, ...] = ()
    quarantined: tuple[int, ...] = ()
    queued_cycle: int | None = None


@dataclass(frozen=True)
class Gone(Record):
    """What went from one megabatch: so many examples, and so many are left."""

    megabatch: int
    digest: str
    erased: int
    left: int


@dataclass(frozen=True)
class Erased(Record):
    """What an erasure did, or would do.

    Attributes:
        preview: whether it only says what would happen.
        megabatches: from which something went; empty: nothing was changed.
        evaluation_examples: how many examples went from the evaluation set in force.
        absent: ids that nothing holds: nothing ever did, or they are erased.
        already: megabatches that were named and had been erased before.
        versions: those that took in a megabatch of these, by their own cycle or an ancestor's.
        aliases: those that named such a version before this, and which.
        clean: the champion's nearest ancestor, or itself, that took in nothing of it; None: there is none.
        champion: where the champion was moved; None: it stayed.
        anew: whether the next cycle begins afresh, since no ancestor is clean.
        shared: digests of files that stay, since another row names the same bytes.
        pending: whether some bytes could not be removed yet; a worker goes on with it.
    """

    model: str
    preview: bool
    megabatches: tuple[Gone, ...]
    evaluation_examples: int = 0
    absent: tuple[str, ...] = ()
    already: tuple[int, ...] = ()
    versions: tuple[int, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    clean: int | None = None
    champion: Alias | None = None
    anew: bool = False
    superseded_cycles: tuple[int, ...] = ()
    queued_cycle: int | None = None
    shared: tuple[str, ...] = ()
    pending: bool = False

    @property
    def changes(self) -> bool:
        """Whether anything goes, or went."""
        return bool(self.megabatches or self.evaluation_examples)


@dataclass(frozen=True)
class Moved(Record):
    """What a move of an alias did: where it points now, and where it did before."""

    alias: Alias
    previous: int | None


@dataclass(frozen=True)
class Approval(Record):
    """One person's consent to a proposal."""

    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Proposal(Record):
    """A move of a protected alias that waits for other people, or did.

    ``state``: ``open``, ``carried-out``, ``rejected``, ``expired``, or ``overtaken`` by another move.
    """

    number: int
    alias: str
    version: int
    override: bool
    state: str
    reason: str
    proposed_by: str
    proposed_at: datetime
    expires_at: datetime
    approvals: tuple[Approval, ...] = ()
    decided_by: str | None = None
    decided_at: datetime | None = None


@dataclass(frozen=True)
class Protection(Record):
    """What stands between an alias and a promotion: other people's approvals, and whether the service promotes."""

    alias: str
    approvals: int
    automatic: bool
    set_at: datetime | None = None


@dataclass(frozen=True)
class AuditEntry(Record):
    """One immutable fact. ``leaf`` is the RFC 6962 leaf hash of its canonical form, in hex."""

    seq: int
    time: datetime
    kind: str
    actor: str
    model: str | None
    leaf: str
    request_id: str | None = None

    @property
    def fact(self) -> Mapping[str, Any]:
        """The canonical entry as it was hashed, with inputs, parameters, outputs and reason."""
        inner: Mapping[str, Any] = self.document.get("document", {})
        return inner


@dataclass(frozen=True)
class LogHead(Record):
    """The log's last state: how many entries, and the RFC 6962 Merkle root over their leaf hashes, in hex."""

    size: int
    root: str


@dataclass(frozen=True)
class TimePoint(Record):
    """One version on a model's time line."""

    version: int
    parent: int | None
    status: str
    stage: int
    density: float
    checkpoint_bytes: int
    dense_bytes: int
    created_at: datetime
    champion_now: bool = False
    target_density: float | None = None
    megabatches: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class InitialWeights(Record):
    """Uploaded weights, ready to be named by a recipe."""

    digest: str
    bytes: int
    tensors: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a listing; ``next_cursor`` asks for the next one, None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class Reference:
    """A version of a model, by number or alias: ``gas:7``, ``gas@champion``; ``gas`` alone means its champion."""

    model: str
    ref: str = CHAMPION

    @classmethod
    def parse(cls, text: str, ref: int | str | None = None) -> Reference:
        """Read ``model:number``, ``model@alias`` or ``model``; or a model's name and a number or alias beside it.

        Raises:
            EspalierClientError: it names no version.
        """
        if ref is not None:
            return cls(_named(text), str(ref))
        for sign, form in ((":", r"[0-9]+"), ("@", r"[a-z0-9][a-z0-9-]*")):
            model, found, rest = text.partition(sign)
            if found and re.fullmatch(form, rest):
                return cls(_named(model), rest)
        return cls(_named(text))

    def __str__(self) -> str:
        return f"{self.model}{':' if self.ref.isdigit() else '@'}{self.ref}"


def _named(model: str) -> str:
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", model):
        return model
    raise EspalierClientError(
        f"{model!r} names no model; write gas-sensors:7 for version 7, gas-sensors@champion for an alias, "
        "or gas-sensors alone for its champion"
    )


_MEMBERS: dict[type[Any], dict[str, tuple[Any, bool]]] = {}


def _members(cls: type[Record]) -> dict[str, tuple[Any, bool]]:
    """Each member's type, and whether it must be there; worked out once."""
    if cls not in _MEMBERS:
        hints = get_type_hints(cls)
        _MEMBERS[cls] = {
            member.name: (hints[member.name], member.default is MISSING and member.default_factory is MISSING)
            for member in fields(cls)
            if member.name != "document"
        }
    return _MEMBERS[cls]


def _read(hint: Any, value: Any, where: str) -> Any:
    """One JSON value as the type that a member has."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _read(inner, value, where)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _unreadable(where, "a list was expected")
        return tuple(_read(arguments[0], item, where) for item in value)
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if hint is datetime:
        return _time(value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise _unreadable(where, f"{value!r} is not of type {getattr(hint, '__name__', hint)}")
    return value


def _time(value: Any, where: str) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _unreadable(where, f"{value!r} is not a time (RFC 3339)") from None


def _unreadable(where: str, why: str) -> EspalierClientError:
    return EspalierClientError(
        f"the service's answer cannot be read: {where}: {why}; are client and service of versions that belong together?"
    )
