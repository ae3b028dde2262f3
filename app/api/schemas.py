"""Schemas: the JSON of requests and answers.

Knows: how every noun looks on the wire, with a description and a working example of each. Must never know: how a noun
is found or changed. Times are RFC 3339 in UTC, digests ``sha256:<hex>``, shares and densities lie in [0, 1].

Law: an unknown key in a request is an error that lists the known ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app import domain
from app.api.dependencies import MAX_NUMBER, NAME_PATTERN, encode_cursor
from app.service import evaluation, history, models, release

Time = Annotated[datetime, AfterValidator(lambda time: time.astimezone(UTC))]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
RecipeDocument = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "allOf": [{"$ref": "#/components/schemas/Recipe"}]})
]
"""A whole resolved recipe, shown as it was stored, even by a service that has learnt other options since."""

T = TypeVar("T")
D = TypeVar("D")

_TIME = "2026-03-02T09:30:00Z"
_DIGEST = "sha256:" + "0f" * 32
_OTHER = "sha256:" + "a7" * 32
_CHECKPOINT = {"digest": _DIGEST, "bytes": 29_184, "dense_bytes": 101_376}
_METRICS = {"validation_accuracy": 0.981, "prequential_accuracy": 0.672, "generalization_gap": 0.012}
_LAYER = {"name": "0.weight", "shape": [128, 128], "kept": 4096, "total": 16384, "density": 0.25}
_SUMMARY = {
    "number": 5,
    "status": "published",
    "stage": 5,
    "density": 0.25,
    "target_density": 0.25,
    "metrics": _METRICS,
    "checkpoint": _CHECKPOINT,
    "created_at": _TIME,
}
_REPORT = {
    "prequential": {"5": {"accuracy": 0.672, "loss": 1.02, "examples": 600, "unknown": 0}},
    "validation_by_class": {"examples": [40, 38], "accuracy": [0.975, 0.947]},
    "evaluation_by_class": None,
    "megabatches": {"4": {"accuracy": 0.95, "examples": 60, "forgotten": 0.0167}},
}
_INPUT = {
    "shape": [128],
    "dtype": "float32",
    "classes": ["ethanol", "ethylene"],
    "normalisation": {"name": "first-megabatch", "signed_log": True, "clip": 8.0, "mean": [], "std": []},
    "unseen_classes": "reject",
}
_VERSION = {
    **_SUMMARY,
    "model": "gas-sensors",
    "parent": 4,
    "cycle": 5,
    "depth": 5,
    "recipe_revision": 1,
    "recipe_digest": _OTHER,
    "kept": 4096,
    "total": 16384,
    "layers": [_LAYER],
    "verdict": {"passed": True, "reasons": [], "action": ""},
    "mask_digest": _OTHER,
    "report": _REPORT,
    "megabatches": 5,
}
_ALIAS = {"model": "gas-sensors", "name": "champion", "version": 5, "revision": 5, "moved_at": _TIME}
_CYCLE = {
    "model": "gas-sensors",
    "number": 6,
    "state": "running",
    "trigger": "megabatches",
    "through": 6,
    "recipe_revision": 1,
    "evaluation_revision": 1,
    "parent": 5,
    "version": None,
    "attempt": 0,
    "failures": 0,
    "not_before": None,
    "reason": None,
    "progress": {"phase": "train", "epoch": 3, "epochs": 50, "step": 120, "steps": 1800, "loss": 0.31, "density": 0.2},
    "created_at": _TIME,
    "started_at": _TIME,
    "finished_at": None,
}
_MEGABATCH = {
    "model": "gas-sensors",
    "number": 5,
    "status": "accepted",
    "pinned": False,
    "digest": _DIGEST,
    "examples": 2300,
    "bytes": 1_196_000,
    "histogram": {"ethanol": 1300, "ethylene": 1000},
    "shape": [128],
    "dtype": "float32",
    "prequential": {"version": 4, "accuracy": 0.672, "loss": 1.1, "examples": 2300},
    "evaluation_overlap": 0,
    "cycle": 5,
    "received_at": _TIME,
}
_EVALUATION = {
    "model": "gas-sensors",
    "revision": 1,
    "digest": _OTHER,
    "examples": 500,
    "bytes": 260_000,
    "histogram": {"ethanol": 260, "ethylene": 240},
    "shape": [128],
    "dtype": "float32",
    "overlap": 0,
    "set_at": _TIME,
}
_ENTRY = {
    "seq": 12,
    "time": _TIME,
    "kind": "alias.moved",
    "actor": "local",
    "request_id": "4f1c",
    "model": "gas-sensors",
    "document": {"seq": 12, "kind": "alias.moved", "parameters": {"alias": "champion", "from": 4, "to": 5}},
    "leaf": "0f" * 32,
}


def _example(example: Mapping[str, Any], *more: Mapping[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [dict(example), *map(dict, more)]})


# -- requests ----------------------------------------------------------------------------------------------------------


class _Asked(BaseModel):
    """A request body, or a part of one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, value: Any) -> Any:
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            known = list(cls.model_fields)
            raise PydanticCustomError("unknown_keys", "unknown keys", {"unknown": unknown, "known": known})
        return value


class NewNormalisation(_Asked):
    """How inputs are scaled before the network sees them."""

    name: Literal["none", "fixed", "first-megabatch"] = Field(
        "first-megabatch",
        description="`first-megabatch`: its statistics, then frozen; `fixed`: `mean` and `std` given here; `none`.",
    )
    signed_log: bool = Field(
        False, description="Apply `sign(x) * log1p(|x|)` first: sensor values of very different scales."
    )
    clip: float | None = Field(8.0, description="Clamp scaled values to `[-clip, clip]`; null leaves them.")
    mean: list[float] = Field(
        [], max_length=2**20, description="One value per feature, or per channel of images; for `fixed` only."
    )
    std: list[float] = Field([], max_length=2**20, description="As `mean`; every value above 0.")

    def to_domain(self) -> domain.Normalisation:
        """As the rooms below say it."""
        return domain.Normalisation(self.name, self.signed_log, self.clip, tuple(self.mean), tuple(self.std))


class NewInput(_Asked):
    """What is known of the input. What is left out is inferred from the first megabatch."""

    model_config = _example(
        {"classes": ["ethanol", "ethylene"], "shape": [128], "dtype": "float32"},
        {"classes": 10},
        {"unseen_classes": "extend"},
    )

    shape: list[Annotated[int, Field(ge=1, le=2**31)]] | None = Field(
        None,
        max_length=8,
        description="Shape of one example: `[features]`, `[height, width]` or `[height, width, channels]`.",
    )
    dtype: Literal["float32", "uint8"] | None = Field(None, description="How values are stored.")
    classes: (
        list[Annotated[str, Field(min_length=1, max_length=200)]] | Annotated[int, Field(ge=2, le=100_000)] | None
    ) = Field(None, description="Class names in label order, or how many classes there are.")
    normalisation: NewNormalisation | None = Field(None, description="How inputs are scaled.")
    unseen_classes: Literal["reject", "extend"] = Field(
        "reject",
        description="What becomes of a megabatch with a label beyond the classes: `reject` refuses it, `extend` adds "
        "the class, and an output of the network with it.",
    )

    def to_domain(self) -> domain.InputSpec:
        """As the rooms below say it."""
        names = map(str, range(self.classes)) if isinstance(self.classes, int) else self.classes
        return domain.InputSpec(
            shape=None if self.shape is None else tuple(self.shape),
            dtype=self.dtype,
            classes=None if names is None else tuple(names),
            normalisation=None if self.normalisation is None else self.normalisation.to_domain(),
            unseen_classes=self.unseen_classes,
        )


class NewModel(_Asked):
    """A model to register."""

    model_config = _example(
        {"name": "gas-sensors"},
        {
            "name": "gas-sensors",
            "recipe": {
                "preset": "app-paper",
                "network": {"name": "mlp", "hidden": [128, 64]},
                "schedule": {"name": "app", "stages": 8},
            },
            "input": {"classes": ["ethanol", "ethylene"]},
        },
    )

    name: str = Field(
        description="1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit.",
        max_length=200,
        json_schema_extra={"pattern": NAME_PATTERN},
    )
    recipe: dict[str, Any] | None = Field(
        None,
        description="A preset plus what differs from it: keys of the schema `Recipe`, and `preset`. "
        "Null takes the default preset.",
    )
    input: NewInput | None = Field(None, description="What is known of the input.")


class Reason(_Asked):
    """Why something is done; it stands in the audit log."""

    model_config = _example({"reason": "line 3 is being recalibrated"})

    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)


class NewCycle(_Asked):
    """A cycle that is asked for."""

    model_config = _example({"reason": "new labels for Monday"}, {})

    reason: str | None = Field(None, description="In words, for the audit log.", max_length=2000)


class NewRollback(_Asked):
    """Where the champion goes back to, and why."""

    model_config = _example(
        {"reason": "line 3 was miscalibrated", "quarantine": [5]}, {"reason": "worse in production", "to": 3}
    )

    to: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        None,
        description="Number of an ancestor of the champion. Null: the nearest one without quarantined megabatches.",
    )
    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)
    quarantine: list[Annotated[int, Field(ge=1, le=MAX_NUMBER)]] = Field(
        [], max_length=10_000, description="Megabatches that must not be trained on from now on."
    )


# -- answers -----------------------------------------------------------------------------------------------------------


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    model_config = _example(
        {"in": "body", "pointer": "/recipe/schedule/tau", "detail": "Input should be less than or equal to 60"}
    )

    where: str = Field(alias="in", description="`body`, `query`, `path` or `header`.")
    pointer: str = Field(
        description="JSON pointer into the body, or `/` and the parameter's name; empty: the whole of it."
    )
    detail: str = Field(description="What is wrong, and what is possible instead.")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = _example(
        {
            "type": "urn:espalier:problem:unknown-model",
            "title": "No such model",
            "status": 404,
            "detail": "no model is named 'gas-sensor': list the models to see their names",
            "errors": [],
            "request_id": "b7d8a0f2",
        }
    )

    type: str = Field(description="Stable URI of the kind of problem; programs compare this.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="HTTP status code.")
    detail: str = Field(description="What is wrong this time, and what to do.")
    errors: list[Fault] = Field(description="One item for each thing that is wrong, where they can be told apart.")
    request_id: str | None = Field(description="What the service's log calls this request.")
    reason: str | None = Field(
        None, description="A stable word for why an upload was refused, such as `not-npz`; else absent."
    )


class Page(BaseModel, Generic[T]):
    """One page of a listing."""

    items: list[T] = Field(description="What is on this page.")
    next_cursor: str | None = Field(description="Send it as `?cursor=` for the next page; null on the last one.")

    @classmethod
    def from_domain(cls, listing: str, page: domain.Page[D], item: Callable[[D], T]) -> Self:
        """A page of domain objects; ``listing`` is what its cursor is good for."""
        following = None if page.next is None else encode_cursor(listing, page.next)
        return cls(items=[item(found) for found in page.items], next_cursor=following)


class Normalisation(BaseModel):
    """How inputs are scaled before the network sees them."""

    name: str = Field(description="`first-megabatch`, `fixed` or `none`.")
    signed_log: bool = Field(description="Whether `sign(x) * log1p(|x|)` comes first.")
    clip: float | None = Field(description="Scaled values are clamped to `[-clip, clip]`; null: they are not.")
    mean: list[float] = Field(description="One value per feature or channel; empty unless `fixed`.")
    std: list[float] = Field(description="As `mean`.")

    @classmethod
    def from_domain(cls, given: domain.Normalisation) -> Self:
        """From the domain's value."""
        return cls(
            name=given.name, signed_log=given.signed_log, clip=given.clip, mean=list(given.mean), std=list(given.std)
        )


class Input(BaseModel):
    """What a model is fed; null is not known before the first megabatch."""

    model_config = _example(_INPUT)

    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    classes: list[str] | None = Field(description="Class names in label order.")
    normalisation: Normalisation | None = Field(description="How inputs are scaled.")
    unseen_classes: str = Field(
        description="What becomes of a label beyond the classes: `reject` refuses it, `extend` adds the class."
    )

    @classmethod
    def from_domain(cls, spec: domain.InputSpec) -> Self:
        """From the domain's value."""
        return cls(
            shape=None if spec.shape is None else list(spec.shape),
            dtype=spec.dtype,
            classes=None if spec.classes is None else list(spec.classes),
            normalisation=None if spec.normalisation is None else Normalisation.from_domain(spec.normalisation),
            unseen_classes=spec.unseen_classes,
        )


class Checkpoint(BaseModel):
    """A version's bytes, without the bytes."""

    model_config = _example(_CHECKPOINT)

    digest: Digest = Field(description="Of the sparse checkpoint.")
    bytes: int = Field(description="Size of the sparse checkpoint.")
    dense_bytes: int = Field(description="What the same tensors take without sparsity.")


class VersionSummary(BaseModel):
    """A version in short."""

    model_config = _example(_SUMMARY)

    number: int = Field(description="Number, counted per model, never issued again.")
    status: domain.VersionStatus = Field(description="`published`, or `withheld` by a guardrail.")
    stage: int = Field(description="Pruning cycles in its ancestry, its own included.")
    density: float = Field(description="Share of prunable weights that are kept, as counted.")
    target_density: float = Field(description="The share that the schedule asked for.")
    metrics: dict[str, float] = Field(description="Accuracies, losses and gap by name; one without data is absent.")
    checkpoint: Checkpoint = Field(description="Its bytes.")
    created_at: Time = Field(description="When it was published or withheld.")

    @classmethod
    def from_domain(cls, version: domain.Version) -> Self:
        """From the domain's value."""
        return cls(**_version_head(version))


class Layer(BaseModel):
    """One prunable tensor."""

    model_config = _example(_LAYER)

    name: str = Field(description="Name of the parameter in the network.")
    shape: list[int] = Field(description="Its shape.")
    kept: int = Field(description="Weights that are kept.")
    total: int = Field(description="All its weights.")
    density: float = Field(description="`kept / total`.")

    @classmethod
    def from_domain(cls, layer: domain.Layer) -> Self:
        """From the domain's value."""
        return cls(name=layer.name, shape=list(layer.shape), kept=layer.kept, total=layer.total, density=layer.density)


class Verdict(BaseModel):
    """The guardrails' answer."""

    passed: bool = Field(description="Whether the version could become champion by itself.")
    reasons: list[str] = Field(description="Guardrails that tripped; breaches that have not tripped yet; notes.")
    action: domain.Action | Literal[""] = Field(description="What guardrails that tripped ask for; empty on a pass.")


class ByClass(BaseModel):
    """One figure a class, in label order."""

    model_config = _example({"examples": [40, 38, 0], "accuracy": [0.975, 0.947, None]})

    examples: list[int] = Field(description="Examples of each class.")
    accuracy: list[float | None] = Field(description="Share of right answers; null where a class has no examples.")


class Retained(BaseModel):
    """What a version knows of one megabatch."""

    model_config = _example({"accuracy": 0.95, "examples": 60, "forgotten": 0.0167})

    accuracy: float = Field(description="Share of right answers among its validation examples.")
    examples: int = Field(description="Its validation examples.")
    forgotten: float = Field(description="Best accuracy of the lineage on them, ever, minus the present one.")


class OnArrival(BaseModel):
    """The champion on one megabatch before it was trained on it."""

    model_config = _example({"accuracy": 0.672, "loss": 1.02, "examples": 600, "unknown": 0})

    accuracy: float = Field(description="Share of right answers.")
    loss: float | None = Field(description="Mean cross entropy in nats, over examples of classes that it knew.")
    examples: int = Field(description="Examples of the megabatch.")
    unknown: int = Field(0, description="Those of classes that the champion did not know: counted as wrong.")


class Report(BaseModel):
    """Figures of a version that are no single number; what has no data is absent."""

    model_config = _example(_REPORT)

    prequential: dict[str, OnArrival] = Field(default_factory=dict, description="By number of a new megabatch.")
    validation_by_class: ByClass | None = Field(None, description="On the validation examples of the verdict.")
    evaluation_by_class: ByClass | None = Field(None, description="On the evaluation set.")
    megabatches: dict[str, Retained] = Field(default_factory=dict, description="By number of a megabatch.")


class Version(VersionSummary):
    """A numbered, immutable result."""

    model_config = _example(_VERSION)

    model: str = Field(description="Name of the model.")
    parent: int | None = Field(description="The version that its cycle started from; null for a fresh network.")
    cycle: int = Field(description="The cycle that made it.")
    depth: int = Field(description="Cycles in its ancestry, pruning or not.")
    recipe_revision: int = Field(description="Which revision of the recipe it was made by.")
    recipe_digest: Digest = Field(description="Digest of that recipe.")
    kept: int = Field(description="Prunable weights that are kept.")
    total: int = Field(description="All prunable weights.")
    layers: list[Layer] = Field(description="The prunable tensors, one by one.")
    verdict: Verdict = Field(description="What the guardrails said.")
    mask_digest: Digest = Field(description="Digest of all masks together.")
    report: Report = Field(description="Figures by class and by megabatch.")
    megabatches: int = Field(description="Megabatches that it was trained on.")

    @classmethod
    def from_domain(cls, version: domain.Version) -> Self:
        """From the domain's value."""
        return cls(
            **_version_head(version),
            model=version.model,
            parent=version.parent,
            cycle=version.cycle,
            depth=version.depth,
            recipe_revision=version.recipe_revision,
            recipe_digest=version.recipe_digest,
            kept=version.kept,
            total=version.total,
            layers=[Layer.from_domain(layer) for layer in version.layers],
            verdict=Verdict(
                passed=version.verdict.passed, reasons=list(version.verdict.reasons), action=version.verdict.action
            ),
            mask_digest=version.mask_digest,
            report=Report.model_validate(version.report),
            megabatches=version.megabatches,
        )


def _version_head(version: domain.Version) -> dict[str, Any]:
    return {
        "number": version.number,
        "status": version.status,
        "stage": version.stage,
        "density": version.density,
        "target_density": version.target_density,
        "metrics": dict(version.metrics),
        "checkpoint": Checkpoint(
            digest=version.checkpoint, bytes=version.checkpoint_bytes, dense_bytes=version.dense_bytes
        ),
        "created_at": version.created_at,
    }


class Model(BaseModel):
    """A registered, long-running learning problem."""

    model_config = _example(
        {
            "name": "gas-sensors",
            "state": "active",
            "paused_reason": None,
            "recipe_revision": 1,
            "recipe_digest": _OTHER,
            "recipe": {"seed": 0, "network": {"name": "mlp", "hidden": [128, 128]}},
            "input": _INPUT,
            "generation": 5,
            "champion": _SUMMARY,
            "champion_revision": 5,
            "megabatches": 5,
            "queued_cycles": 0,
            "running_cycle": None,
            "last_failure": None,
            "created_at": _TIME,
        }
    )

    name: str = Field(description="Its name.")
    state: domain.ModelState = Field(description="`active`; `paused`: no cycle starts until it is resumed.")
    paused_reason: str | None = Field(description="Why it is paused.")
    recipe_revision: int = Field(description="Revision of the recipe in force.")
    recipe_digest: Digest = Field(description="Digest of the recipe in force.")
    recipe: RecipeDocument = Field(description="The whole resolved recipe in force.")
    input: Input = Field(description="What it is fed.")
    generation: int = Field(
        description="Counts what invalidates running cycles: alias moves, quarantines, recipe revisions."
    )
    champion: VersionSummary | None = Field(description="The version that clients get; null before the first one.")
    champion_revision: int | None = Field(description="Revision of the alias `champion`, for If-Match.")
    megabatches: int = Field(description="Megabatches that it has taken in.")
    queued_cycles: int = Field(description="Cycles that wait.")
    running_cycle: int | None = Field(description="The cycle that runs.")
    last_failure: str | None = Field(description="Why its newest cycle failed, if it did.")
    created_at: Time = Field(description="When it was registered.")

    @classmethod
    def from_domain(cls, summary: models.ModelSummary) -> Self:
        """From the service's summary."""
        model = summary.model
        return cls(
            name=model.name,
            state=model.state,
            paused_reason=model.paused_reason,
            recipe_revision=model.recipe_revision,
            recipe_digest=model.recipe_digest,
            recipe=dict(summary.recipe.document),
            input=Input.from_domain(model.input),
            generation=model.generation,
            champion=None if summary.champion is None else VersionSummary.from_domain(summary.champion),
            champion_revision=None if summary.champion_alias is None else summary.champion_alias.revision,
            megabatches=summary.megabatches,
            queued_cycles=summary.queued,
            running_cycle=None if summary.running is None else summary.running.number,
            last_failure=summary.last_failure,
            created_at=model.created_at,
        )


class Tensor(BaseModel):
    """One tensor of uploaded weights."""

    name: str = Field(description="Name of the parameter or buffer.")
    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="Type of its values, as safetensors calls it.")


class InitialWeights(BaseModel):
    """Uploaded weights, ready to be named by a recipe."""

    model_config = _example(
        {"digest": _DIGEST, "bytes": 101_376, "tensors": [{"name": "0.weight", "shape": [128, 128], "dtype": "F32"}]}
    )

    digest: Digest = Field(description="Name it as `recipe.initial_weights`.")
    bytes: int = Field(description="Size of the file.")
    tensors: list[Tensor] = Field(description="What is in it.")

    @classmethod
    def from_domain(cls, kept: models.InitialWeights) -> Self:
        """From the service's answer."""
        return cls(
            digest=kept.digest, bytes=kept.bytes, tensors=[Tensor.model_validate(tensor) for tensor in kept.tensors]
        )


class Prequential(BaseModel):
    """How the champion did on a megabatch before it trained on it."""

    version: int = Field(description="The champion of that time.")
    accuracy: float = Field(description="Share of right answers; examples of classes that it does not know are wrong.")
    loss: float | None = Field(
        description="Mean cross-entropy over examples of classes that it knows; null when there are none."
    )
    examples: int = Field(description="How many examples it was tested on.")

    @classmethod
    def from_domain(cls, tested: domain.Prequential) -> Self:
        """From the domain's value."""
        return cls(version=tested.version, accuracy=tested.accuracy, loss=tested.loss, examples=tested.examples)


class Megabatch(BaseModel):
    """One uploaded, immutable set of labelled examples."""

    model_config = _example(_MEGABATCH)

    model: str = Field(description="Name of the model.")
    number: int = Field(description="Number, in order of arrival, from 1.")
    status: domain.MegabatchStatus = Field(description="`accepted`, or `quarantined`: never trained on again.")
    pinned: bool = Field(description="Whether every cycle replays it, whatever the replay policy keeps.")
    digest: Digest = Field(description="Of the decoded arrays, however they were packed.")
    examples: int = Field(description="How many examples.")
    bytes: int = Field(description="Size of the decoded arrays.")
    histogram: dict[str, int] = Field(description="Examples per class name.")
    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    prequential: Prequential | None = Field(
        description="How the champion did on it on arrival; null until a cycle has tested it."
    )
    evaluation_overlap: int | None = Field(
        description="How many of its examples are in the evaluation set too, and are left out of training; null "
        "without an evaluation set."
    )
    cycle: int | None = Field(None, description="The cycle that this upload set off; null elsewhere.")
    received_at: Time = Field(description="When it was accepted.")

    @classmethod
    def from_domain(
        cls, megabatch: domain.Megabatch, spec: domain.InputSpec, cycle: domain.Cycle | None = None
    ) -> Self:
        """From the domain's values; ``cycle`` is the one that its upload set off."""
        return cls(
            model=megabatch.model,
            number=megabatch.number,
            status=megabatch.status,
            pinned=megabatch.pinned,
            digest=megabatch.digest,
            examples=megabatch.examples,
            bytes=megabatch.bytes,
            histogram=_by_class(megabatch.histogram, spec),
            shape=None if spec.shape is None else list(spec.shape),
            dtype=spec.dtype,
            prequential=None if megabatch.prequential is None else Prequential.from_domain(megabatch.prequential),
            evaluation_overlap=megabatch.evaluation_overlap,
            cycle=None if cycle is None else cycle.number,
            received_at=megabatch.received_at,
        )


def _by_class(histogram: tuple[int, ...], spec: domain.InputSpec) -> dict[str, int]:
    """Examples by class name; of classes that came later there were none."""
    names = spec.classes or ()
    return dict(zip(names, (*histogram, *(0 for _ in names[len(histogram) :])), strict=False))


class EvaluationSet(BaseModel):
    """A fixed labelled set that is never trained on."""

    model_config = _example(_EVALUATION)

    model: str = Field(description="Name of the model.")
    revision: int = Field(description="Counts the sets that the model has had, from 1; a cycle pins one.")
    digest: Digest = Field(description="Of the decoded arrays, however they were packed; it stands in manifests.")
    examples: int = Field(description="How many examples.")
    bytes: int = Field(description="Size of the decoded arrays.")
    histogram: dict[str, int] = Field(description="Examples per class name.")
    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    overlap: int = Field(
        description="How many examples of all megabatches together are in it too, and are left out of training."
    )
    set_at: Time = Field(description="Since when it is in force.")

    @classmethod
    def from_domain(cls, view: evaluation.EvaluationView) -> Self:
        """From the service's view."""
        found = view.found
        return cls(
            model=found.model,
            revision=found.revision,
            digest=found.digest,
            examples=found.examples,
            bytes=found.bytes,
            histogram=_by_class(found.histogram, view.input),
            shape=None if view.input.shape is None else list(view.input.shape),
            dtype=view.input.dtype,
            overlap=view.overlap,
            set_at=found.set_at,
        )


class Progress(BaseModel):
    """Where a running cycle is."""

    phase: domain.Phase = Field(description="`arrival`, `prune`, `train` or `judge`.")
    epoch: int = Field(description="Epoch of the retraining, from 1.")
    epochs: int = Field(description="Epochs of the retraining.")
    step: int = Field(description="Optimizer steps done.")
    steps: int = Field(description="Optimizer steps of the whole cycle.")
    loss: float | None = Field(description="Latest training loss.")
    density: float | None = Field(description="Density of the mask in force.")

    @classmethod
    def from_domain(cls, progress: domain.Progress) -> Self:
        """From the domain's value."""
        return cls(
            phase=progress.phase,
            epoch=progress.epoch,
            epochs=progress.epochs,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            density=progress.density,
        )


class Cycle(BaseModel):
    """One attempt: prune, retrain, judge."""

    model_config = _example(_CYCLE)

    model: str = Field(description="Name of the model.")
    number: int = Field(description="Number, counted per model, from 1.")
    state: domain.CycleState = Field(
        description="`queued`, `running`, `published`, `withheld`, `failed` or `superseded`."
    )
    trigger: domain.CycleTrigger = Field(description="Why it was enqueued.")
    through: int = Field(description="The last megabatch that it may train on; 0 for none.")
    recipe_revision: int = Field(description="Revision of the recipe that it follows.")
    evaluation_revision: int | None = Field(
        description="Revision of the evaluation set that it works with, once it has started; null without one."
    )
    parent: int | None = Field(description="The version that it starts from, once it has started.")
    version: int | None = Field(description="The version that it made.")
    attempt: int = Field(description="Retries with changed options.")
    failures: int = Field(description="How often it has failed so far.")
    not_before: Time | None = Field(description="When it may be tried again.")
    reason: str | None = Field(description="Why it failed or was superseded.")
    progress: Progress | None = Field(description="Where it is; null unless it runs.")
    created_at: Time = Field(description="When it was enqueued.")
    started_at: Time | None = Field(description="When a worker claimed it.")
    finished_at: Time | None = Field(description="When it ended.")

    @classmethod
    def from_domain(cls, cycle: domain.Cycle) -> Self:
        """From the domain's value."""
        return cls(
            model=cycle.model,
            number=cycle.number,
            state=cycle.state,
            trigger=cycle.trigger,
            through=cycle.through,
            recipe_revision=cycle.recipe_revision,
            evaluation_revision=cycle.evaluation_revision,
            parent=cycle.parent,
            version=cycle.version,
            attempt=cycle.attempt,
            failures=cycle.failures,
            not_before=cycle.not_before,
            reason=cycle.reason,
            progress=None if cycle.progress is None else Progress.from_domain(cycle.progress),
            created_at=cycle.created_at,
            started_at=cycle.started_at,
            finished_at=cycle.finished_at,
        )


class Lineage(BaseModel):
    """A version and its ancestors."""

    items: list[Version] = Field(description="The version itself first, then its parent, up to the first of all.")

    @classmethod
    def from_domain(cls, versions: Iterable[domain.Version]) -> Self:
        """From the domain's values."""
        return cls(items=[Version.from_domain(version) for version in versions])


class Alias(BaseModel):
    """A movable name of a version."""

    model_config = _example(_ALIAS)

    model: str = Field(description="Name of the model.")
    name: str = Field(description="Name of the alias.")
    version: int = Field(description="The version that it points to.")
    revision: int = Field(description="Grows with every move; send it as `If-Match` to move it.")
    moved_at: Time = Field(description="When it was moved there.")

    @classmethod
    def from_domain(cls, alias: domain.Alias) -> Self:
        """From the domain's value."""
        return cls(
            model=alias.model, name=alias.name, version=alias.version, revision=alias.revision, moved_at=alias.moved_at
        )

    @classmethod
    def from_move(cls, move: domain.AliasMove) -> Self:
        """The alias as this move left it."""
        return cls(
            model=move.model, name=move.alias, version=move.version, revision=move.revision, moved_at=move.moved_at
        )


class AliasMove(BaseModel):
    """One line of an alias's history."""

    model_config = _example(
        {
            "model": "gas-sensors",
            "alias": "champion",
            "revision": 6,
            "previous": 5,
            "version": 4,
            "actor": "local",
            "reason": "line 3 was miscalibrated",
            "moved_at": _TIME,
        }
    )

    model: str = Field(description="Name of the model.")
    alias: str = Field(description="Name of the alias.")
    revision: int = Field(description="Revision of the alias from this move on.")
    previous: int | None = Field(description="The version that it pointed to before.")
    version: int = Field(description="The version that it points to from this move on.")
    actor: str = Field(description="Who moved it.")
    reason: str = Field(description="Why.")
    moved_at: Time = Field(description="When.")

    @classmethod
    def from_domain(cls, move: domain.AliasMove) -> Self:
        """From the domain's value."""
        return cls(
            model=move.model,
            alias=move.alias,
            revision=move.revision,
            previous=move.previous,
            version=move.version,
            actor=move.actor,
            reason=move.reason,
            moved_at=move.moved_at,
        )


class Promoted(BaseModel):
    """What a promotion did."""

    model_config = _example({"alias": _ALIAS, "previous": 4})

    alias: Alias = Field(description="The champion now.")
    previous: int | None = Field(description="The champion before; null if there was none.")

    @classmethod
    def from_domain(cls, promoted: release.Promoted) -> Self:
        """From the service's answer."""
        return cls(alias=Alias.from_domain(promoted.alias), previous=promoted.previous)


class RolledBack(BaseModel):
    """What a rollback did."""

    model_config = _example(
        {
            "alias": _ALIAS,
            "previous": 6,
            "version": _VERSION,
            "density_before": 0.2,
            "density_after": 0.25,
            "superseded_cycles": [7],
            "quarantined": [6],
            "queued_cycle": None,
        }
    )

    alias: Alias = Field(description="The champion now.")
    previous: int = Field(description="The champion before.")
    version: Version = Field(description="The version that was restored.")
    density_before: float = Field(description="Density of the champion before.")
    density_after: float = Field(description="Density of the champion now.")
    superseded_cycles: list[int] = Field(description="Cycles that were open and will not publish.")
    quarantined: list[int] = Field(description="Megabatches that were quarantined.")
    queued_cycle: int | None = Field(
        description="The cycle that was enqueued for what the restored version has not seen."
    )

    @classmethod
    def from_domain(cls, done: release.RolledBack) -> Self:
        """From the service's answer."""
        return cls(
            alias=Alias.from_domain(done.alias),
            previous=done.previous.number,
            version=Version.from_domain(done.version),
            density_before=done.previous.density,
            density_after=done.version.density,
            superseded_cycles=[cycle.number for cycle in done.superseded],
            quarantined=list(done.quarantined),
            queued_cycle=None if done.queued is None else done.queued.number,
        )


class AuditEntry(BaseModel):
    """One immutable fact."""

    model_config = _example(_ENTRY)

    seq: int = Field(description="Place in the log, from 0 or 1, without gaps.")
    time: Time = Field(description="When it was written.")
    kind: str = Field(description="What happened, such as `version.published`.")
    actor: str = Field(description="Who asked for it.")
    request_id: str | None = Field(description="Under which request.")
    model: str | None = Field(description="Name of the model; null where none is concerned.")
    document: dict[str, Any] = Field(
        description="The canonical entry as it was hashed: floats and wide integers as strings."
    )
    leaf: str = Field(description="RFC 6962 leaf hash of the canonical document, in hex.")

    @classmethod
    def from_domain(cls, entry: domain.AuditEntry) -> Self:
        """From the domain's value."""
        return cls(
            seq=entry.seq,
            time=entry.time,
            kind=entry.kind,
            actor=entry.actor,
            request_id=entry.document.get("request_id"),
            model=entry.model,
            document=dict(entry.document),
            leaf=entry.leaf,
        )


class AuditTrail(BaseModel):
    """What the log says about one version."""

    items: list[AuditEntry] = Field(
        description="Entries of the cycle that made it and of what happened to it since, oldest first."
    )

    @classmethod
    def from_domain(cls, entries: Iterable[domain.AuditEntry]) -> Self:
        """From the domain's values."""
        return cls(items=[AuditEntry.from_domain(entry) for entry in entries])


class LogHead(BaseModel):
    """The log's last state."""

    model_config = _example({"size": 13, "root": "a7" * 32})

    size: int = Field(description="Number of entries.")
    root: str = Field(description="RFC 6962 Merkle root over their leaf hashes, in hex.")

    @classmethod
    def from_domain(cls, head: domain.LogHead) -> Self:
        """From the domain's value."""
        return cls(size=head.size, root=head.root)


class VerifiedLog(LogHead):
    """The log's last state, recomputed from every entry."""

    model_config = _example({"size": 13, "root": "a7" * 32, "verified": True})

    verified: Literal[True] = Field(True, description="A log that does not hold is a problem document instead.")


class Moment(BaseModel):
    """One version on a model's time line."""

    model_config = _example(
        {
            "version": 5,
            "parent": 4,
            "status": "published",
            "champion_now": True,
            "created_at": _TIME,
            "stage": 5,
            "density": 0.25,
            "target_density": 0.25,
            "metrics": _METRICS,
            "checkpoint_bytes": 29_184,
            "dense_bytes": 101_376,
            "megabatches": 5,
        }
    )

    version: int = Field(description="Number of the version.")
    parent: int | None = Field(description="The version that it came from.")
    status: domain.VersionStatus = Field(description="`published` or `withheld`.")
    champion_now: bool = Field(description="Whether it is the champion at this moment.")
    created_at: Time = Field(description="When it was made.")
    stage: int = Field(description="Pruning cycles in its ancestry.")
    density: float = Field(description="Density as counted.")
    target_density: float = Field(description="Density that the schedule asked for.")
    metrics: dict[str, float] = Field(description="Accuracies, losses and gap by name; one without data is absent.")
    checkpoint_bytes: int = Field(description="Size of the sparse checkpoint.")
    dense_bytes: int = Field(description="Size without sparsity.")
    megabatches: int = Field(description="Megabatches that it was trained on.")

    @classmethod
    def from_domain(cls, version: domain.Version, champion: int | None) -> Self:
        """From a version and the number of the present champion."""
        return cls(
            version=version.number,
            parent=version.parent,
            status=version.status,
            champion_now=version.number == champion,
            created_at=version.created_at,
            stage=version.stage,
            density=version.density,
            target_density=version.target_density,
            metrics=dict(version.metrics),
            checkpoint_bytes=version.checkpoint_bytes,
            dense_bytes=version.dense_bytes,
            megabatches=version.megabatches,
        )


class Alive(BaseModel):
    """The process answers."""

    model_config = _example({"status": "alive"})

    status: Literal["alive"] = Field("alive", description="Always `alive`.")


class WorkerHealth(BaseModel):
    """What is known of workers."""

    last_heartbeat: Time | None = Field(
        description="When any worker was last seen alive; null if none was within a day."
    )
    queued_cycles: int = Field(description="Cycles that wait for a worker, over all models.")
    running_cycles: int = Field(description="Cycles that run, over all models.")


class Ready(BaseModel):
    """The service can take requests."""

    model_config = _example(
        {
            "status": "ready",
            "database": "sqlite",
            "worker": {"last_heartbeat": _TIME, "queued_cycles": 0, "running_cycles": 1},
        }
    )

    status: Literal["ready"] = Field(
        "ready", description="A service that is not ready answers with a problem document instead."
    )
    database: str = Field(description="`sqlite` or `postgresql`.")
    worker: WorkerHealth = Field(description="Whether cycles are being worked on.")

    @classmethod
    def from_domain(cls, health: history.Health) -> Self:
        """From the service's answer."""
        worker = WorkerHealth(
            last_heartbeat=health.last_heartbeat, queued_cycles=health.queued, running_cycles=health.running
        )
        return cls(database=health.database, worker=worker)


class Models(Page[Model]):
    """Models by name."""


class Megabatches(Page[Megabatch]):
    """Megabatches in order of arrival."""


class Cycles(Page[Cycle]):
    """Cycles, newest first."""


class Versions(Page[Version]):
    """Versions, newest first."""


class AliasMoves(Page[AliasMove]):
    """Moves of an alias, newest first."""


class AuditEntries(Page[AuditEntry]):
    """Entries, oldest first."""


class TimeLine(Page[Moment]):
    """Versions, oldest first, as one draws them."""
