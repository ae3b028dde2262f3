"""Recipe: every choice that changes the numbers, as a schema without torch.

Knows: the names and bounds of options, presets, canonical JSON and its digest. Must never know: torch, or how an
option is carried out (``registry`` resolves options to implementations, in the worker).

Laws:
    * A preset plus what differs resolves to one whole document; that document is what is stored and digested.
    * The digest depends on values alone: key order and preset name do not change it.
    * An unknown key is an error that lists the known ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from croniter import croniter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.errors import InvalidRecipe


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# -- networks ---------------------------------------------------------------------------------------------------------


class Mlp(_Options):
    """Fully connected layers with ReLU between them; inputs of any shape are flattened."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (128, 128), max_length=32, description="Widths of the hidden layers."
    )


class Cnn(_Options):
    """Convolutions 3 x 3 with batch normalisation, pooled by two after each, then one linear layer. Needs images."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (32, 64, 128), min_length=1, max_length=5, description="Output channels of the convolutions."
    )


class ResNet18(_Options):
    """ResNet-18 in CIFAR form (3 x 3 stem, no pooling). Needs images."""

    name: Literal["resnet18"] = "resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class ResNet50(_Options):
    """ResNet-50 in CIFAR form (3 x 3 stem, no pooling). Needs images."""

    name: Literal["resnet50"] = "resnet50"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class Vgg16(_Options):
    """VGG-16 in CIFAR form (batch normalisation, one linear layer). Needs images of at least 32 x 32."""

    name: Literal["vgg16"] = "vgg16"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class Custom(_Options):
    """A network of your own: `architecture` is a name from the server's `ESPALIER_ARCHITECTURES`."""

    name: Literal["custom"] = "custom"
    architecture: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="Name in the server setting ESPALIER_ARCHITECTURES."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the factory.")


Network = Annotated[Union[Mlp, Cnn, ResNet18, ResNet50, Vgg16, Custom], Field(discriminator="name")]

# -- what to prune, how much, when -------------------------------------------------------------------------------------


class Snip(_Options):
    """|w * dL/dw| on a random sample of the replayed training examples, on the trained weights (Lee et al. 2019).

    The gradient is summed over the sample before the absolute value is taken.
    """

    name: Literal["snip"] = "snip"
    sample: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="Size of the sample as a share of the newest megabatch, drawn from all replayed examples."
    )


class Magnitude(_Options):
    """|w|."""

    name: Literal["magnitude"] = "magnitude"


class Random(_Options):
    """Uniform random scores: the control."""

    name: Literal["random"] = "random"


Criterion = Annotated[Union[Snip, Magnitude, Random], Field(discriminator="name")]


class App(_Options):
    """Anytime Progressive Pruning: density 0.8 ** delta, delta linear from 1 to tau over T megabatches; then constant.

    Misra et al., arXiv 2204.01640. tau = 4.5 ends at 0.366.
    """

    name: Literal["app"] = "app"
    tau: Annotated[float, Field(ge=1, le=60)] = Field(
        4.5, description="Last exponent; the final density is 0.8 ** tau."
    )
    stages: Annotated[int, Field(ge=1, le=100_000)] = Field(
        8, description="T: pruning cycles until the final density; one stage goes straight to it."
    )


class OneShot(_Options):
    """One pruning to the final density in the first cycle, then constant (Anytime-OSP)."""

    name: Literal["one-shot"] = "one-shot"
    target: Annotated[float, Field(gt=0, le=1)] = Field(0.366, description="Final density.")


class Dense(_Options):
    """No pruning: density 1 throughout. The baseline."""

    name: Literal["dense"] = "dense"


Schedule = Annotated[Union[App, OneShot, Dense], Field(discriminator="name")]


class FullReplay(_Options):
    """Train on every eligible megabatch so far."""

    name: Literal["full"] = "full"


class NoReplay(_Options):
    """Train on the new megabatches alone."""

    name: Literal["none"] = "none"


Replay = Annotated[Union[FullReplay, NoReplay], Field(discriminator="name")]

# -- training ----------------------------------------------------------------------------------------------------------


class Sgd(_Options):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="L2 penalty, added to the gradient.")


class AdamW(_Options):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Decay of the mean of gradients.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="Decay of the mean of squared gradients.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay.")


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="name")]


class Cosine(_Options):
    """From the peak to zero along a half cosine, restarted in every cycle."""

    name: Literal["cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the steps that rises linearly to the peak."
    )


class Step(_Options):
    """Times `factor` at each milestone, a share of the epochs."""

    name: Literal["step"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.4, 0.8), description="When to step, as shares of the epochs, increasing."
    )
    factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="What the rate is multiplied by.")

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        return self


LearningRate = Annotated[Union[Cosine, Step], Field(discriminator="name")]


class Training(_Options):
    """How the network is retrained under its mask."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="Passes over the replayed examples in one cycle."
    )
    minibatch: Annotated[int, Field(ge=1, le=65536)] = Field(64, description="Examples in a minibatch.")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(0.1, description="Peak learning rate.")
    rate: LearningRate = Field(Step(), description="How the learning rate moves within a cycle.")
    optimizer: Optimizer = Field(Sgd(), description="Optimizer; its state starts anew in every cycle.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Label smoothing of the training loss."
    )
    select: Literal["best-epoch", "last"] = Field(
        "best-epoch", description="Which epoch's weights are published; the best one is chosen on validation accuracy."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="`bfloat16` runs forward and backward passes under autocast; weights stay float32. Made for GPUs.",
    )


# -- judging and time --------------------------------------------------------------------------------------------------


class AccuracyDrop(_Options):
    """Withholds a version whose validation accuracy lies below the champion's, on the same examples.

    Both must hold: the drop exceeds `at_most`, and a one-sided exact McNemar test on the paired answers rejects chance.
    """

    name: Literal["accuracy-drop"] = "accuracy-drop"
    at_most: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="Accepted drop, as a share of 1.")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.95, description="Confidence that the drop is not chance; 0.5 ignores all but the drop itself."
    )


class DensityFloor(_Options):
    """Withholds a version whose density, whole or of any one layer, is below the floor."""

    name: Literal["density-floor"] = "density-floor"
    whole: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Least density of the network.")
    layer: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Least density of each prunable layer.")


Guardrail = Annotated[Union[AccuracyDrop, DensityFloor], Field(discriminator="name")]


class EveryMegabatches(_Options):
    """A cycle whenever this many eligible megabatches wait."""

    name: Literal["megabatches"] = "megabatches"
    every: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="Megabatches per cycle.")


class Cron(_Options):
    """A cycle at these times (UTC), when an eligible megabatch waits. Missed times coalesce into one."""

    name: Literal["cron"] = "cron"
    expression: str = Field(
        description="Five cron fields: minute, hour, day of month, month, day of week.", examples=["0 2 * * *"]
    )

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if len(self.expression.split()) != 5 or not croniter.is_valid(self.expression):
            raise ValueError("must be five cron fields, such as '0 2 * * *' for 02:00 UTC every day")
        return self


class Manual(_Options):
    """Cycles only on request (`POST .../cycles`)."""

    name: Literal["manual"] = "manual"


Trigger = Annotated[Union[EveryMegabatches, Cron, Manual], Field(discriminator="name")]

# -- the whole ---------------------------------------------------------------------------------------------------------


class Recipe(_Options):
    """Every choice that changes the numbers. Immutable per revision; its digest stands in every version."""

    seed: Annotated[int, Field(ge=0, lt=2**53)] = Field(0, description="Every random choice derives from it.")
    network: Network = Field(Mlp(), description="The network to train and prune.")
    initial_weights: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        None, description="Digest of uploaded safetensors to start from (version 0), or null for a fresh network."
    )
    schedule: Schedule = Field(App(), description="Density as a function of stage.")
    criterion: Criterion = Field(Snip(), description="How weights are ranked.")
    replay: Replay = Field(FullReplay(), description="What is kept of past megabatches.")
    training: Training = Field(Training(), description="How the network is retrained.")
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of examples, by digest, that are never trained on."
    )
    guardrails: tuple[Guardrail, ...] = Field(
        (AccuracyDrop(), DensityFloor(layer=0.001)), max_length=16, description="Rules before promotion."
    )
    trigger: Trigger = Field(EveryMegabatches(), description="When a cycle starts.")

    @model_validator(mode="after")
    def _workable(self) -> Self:
        final = final_density(self.schedule)
        for index, rule in enumerate(self.guardrails):
            if isinstance(rule, DensityFloor) and rule.whole > final:
                raise ValueError(
                    f"guardrails[{index}].whole is {rule.whole}, above the schedule's final density {final:.4g}: "
                    "no version would pass; lower the floor or raise the target"
                )
        return self

    @classmethod
    def resolve(cls, document: Mapping[str, Any] | None) -> Recipe:
        """Turn a preset plus what differs into a whole recipe.

        Args:
            document: JSON object; the key ``preset`` names one of ``PRESETS`` (default ``app-paper``). Objects are
                merged key by key onto the preset's whole document, except that a changed ``name`` replaces the whole
                option: ``{"schedule": {"tau": 3}}`` changes tau alone.

        Raises:
            InvalidRecipe: with one (pointer, message) per fault; unknown keys list the known ones.
        """
        given = dict(document or {})
        preset = given.pop("preset", DEFAULT_PRESET)
        if not isinstance(preset, str) or preset not in PRESETS:
            message = f"unknown preset {preset!r}; choose one of: {', '.join(PRESETS)}"
            raise InvalidRecipe(message, [("/preset", message)])
        try:
            base = _merge(cls().document(), PRESETS[preset])
            return cls.model_validate(_merge(base, given))
        except ValidationError as error:
            faults = [_fault(item) for item in error.errors()]
            raise InvalidRecipe(
                "the recipe cannot work: " + "; ".join(f"{p or '/'}: {m}" for p, m in faults), faults
            ) from None

    def document(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """``sha256:`` of the canonical JSON."""
        return recipe_digest(self.document())


def canonical_recipe(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a resolved recipe: sorted keys, no spaces, shortest round-trip floats, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def recipe_digest(document: Mapping[str, Any]) -> str:
    """``sha256:`` of ``canonical_recipe(document)``."""
    return "sha256:" + hashlib.sha256(canonical_recipe(document)).hexdigest()


def final_density(schedule: App | OneShot | Dense) -> float:
    """The density that a schedule ends at."""
    match schedule:
        case App():
            return float(0.8**schedule.tau)
        case OneShot():
            return schedule.target
        case Dense():
            return 1.0


DEFAULT_PRESET = "app-paper"

PRESETS: dict[str, dict[str, Any]] = {
    "app-paper": {},
    "dense": {"schedule": {"name": "dense"}},
    "one-shot": {"schedule": {"name": "one-shot"}},
}
"""Named starting points. ``app-paper`` is Misra et al. to the letter: the defaults of every field above."""


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        )
        merged[key] = _merge(old, value) if same_kind else value  # type: ignore[arg-type]  # narrowed by same_kind
    return merged


def _fault(item: ErrorDetails) -> tuple[str, str]:
    """One pydantic error as (JSON pointer, message that says the remedy)."""
    where = list(item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _known_keys(_follow(where[:-1])[1])
        message = f"unknown key {where[-1]!r}; known keys: {', '.join(known)}"
    elif item["type"] == "union_tag_invalid":
        message = f"unknown name {item['ctx']['tag']!r}; choose one of: {', '.join(_choices(_follow(where)[1]))}"
    elif item["type"] == "union_tag_not_found":
        message = f"needs a name, one of: {', '.join(_choices(_follow(where)[1]))}"
    path, _ = _follow(where)
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path), message


def _follow(where: Sequence[str | int]) -> tuple[list[str], Any]:
    """Walk a pydantic location through the types: the JSON path, and the type that it ends at.

    Pydantic puts the name of a chosen option into its locations; a JSON pointer must not hold it.
    """
    path: list[str] = []
    here: Any = Recipe
    for part in where:
        chosen = _choices(here).get(str(part))
        if chosen is None:
            path.append(str(part))
        here = chosen or _inside(here, part)
    return path, here


def _inside(kind: Any, part: str | int) -> Any:
    """The type of a field of options, or of an element of a tuple; None past the leaves."""
    if isinstance(kind, type) and issubclass(kind, _Options):
        field = kind.model_fields.get(str(part))
        return field and field.annotation
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _choices(kind: Any) -> dict[str, type[_Options]]:
    """Name to options type, of a union of options; empty for any other type."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = get_args(kind) if get_origin(kind) is Union else ()
    return {
        member.model_fields["name"].default: member
        for member in members
        if isinstance(member, type) and issubclass(member, _Options)
    }


def _known_keys(kind: Any) -> list[str]:
    fields = list(kind.model_fields)
    return ["preset", *fields] if kind is Recipe else fields
