"""Recipe: every choice that changes the numbers, whole; presets; canonical JSON and its digest.

Knows: which choices go together and which cannot work. Must never know: torch, or how an option is carried out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from app.errors import InvalidRecipe
from app.learning.recipe.faults import Fault, faults_of
from app.learning.recipe.guardrails import (
    AccuracyDrop,
    DensityFloor,
    Divergence,
    GapChange,
    Guardrail,
    InputDrift,
    LabelShift,
    LayerCollapse,
    MaskAgreement,
    PrequentialDrop,
)
from app.learning.recipe.monitoring import Monitoring
from app.learning.recipe.networks import Custom, Mlp, Network
from app.learning.recipe.options import Options
from app.learning.recipe.pruning import (
    AtStart,
    Constant,
    Criterion,
    Distribution,
    Factor,
    Global,
    Magnitude,
    Pace,
    Ramp,
    Random,
    Schedule,
    SynFlow,
    Taylor,
    final_density,
)
from app.learning.recipe.replay import ClassBalanced, HardestFirst, Herding, KCentre, Replay
from app.learning.recipe.training import TailAveraging, Training
from app.learning.recipe.triggers import EveryMegabatches, Trigger

_ESPALIER_CAP = 100_000
"""Past examples that the default recipe replays at most; below it, it replays all."""


class CheckpointOptions(Options):
    """What is published of the trained weights; the next cycle starts from what was published."""

    values: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="What kept weights are rounded to once they are trained, before they are evaluated and published: "
        "float32 leaves them as they are; bfloat16 and float16 halve the file. Rounding never prunes.",
    )


class Recipe(Options):
    """Every choice that changes the numbers. Immutable per revision; its digest stands in every version."""

    seed: Annotated[int, Field(ge=0, lt=2**53)] = Field(0, description="Every random choice derives from it.")
    network: Network = Field(Mlp(), description="The network to train and prune.")
    initial_weights: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        None, description="Digest of uploaded safetensors to start from (version 0), or null for a fresh network."
    )
    schedule: Schedule = Field(Factor(), description="How much is kept: density as a function of stage.")
    criterion: Criterion = Field(Taylor(), description="Which weights are kept: how they are ranked.")
    distribution: Distribution = Field(Global(floor=0.01), description="Where they are kept: ranking across layers.")
    pace: Pace = Field(Ramp(), description="When within a cycle weights are pruned.")
    replay: Replay = Field(ClassBalanced(examples=_ESPALIER_CAP), description="What is kept of past megabatches.")
    training: Training = Field(Training(), description="How the network is retrained.")
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of examples, by digest, that are never trained on."
    )
    guardrails: tuple[Guardrail, ...] = Field(
        (AccuracyDrop(then="hold"), LayerCollapse(), Divergence(then="retry")),
        max_length=16,
        description="Rules before promotion.",
    )
    monitoring: Monitoring = Field(Monitoring(), description="What is watched of megabatches and versions.")
    trigger: Trigger = Field(EveryMegabatches(), description="When a cycle starts.")
    checkpoint: CheckpointOptions = Field(CheckpointOptions(), description="What is published of the trained weights.")

    @model_validator(mode="after")
    def _workable(self) -> Self:
        faults = [*_floors(self), *_pruning(self), *_replaying(self), *_training(self), *_watching(self)]
        if faults:
            raise _refusal(faults)
        return self

    @classmethod
    def resolve(cls, document: Mapping[str, Any] | None) -> Recipe:
        """Turn a preset plus what differs into a whole recipe.

        Args:
            document: JSON object; the key ``preset`` names one of ``PRESETS`` (default ``espalier``). Objects are
                merged key by key onto the preset's whole document, except that a changed ``name`` replaces the whole
                option: ``{"schedule": {"stages": 3}}`` changes the stages alone.

        Raises:
            InvalidRecipe: with one (pointer, message) per fault; unknown keys list the known ones.
        """
        given = dict(document or {})
        preset = given.pop("preset", DEFAULT_PRESET)
        if not isinstance(preset, str):
            raise _refusal([("/preset", "must be a string")])
        if preset not in PRESETS:
            message = f"unknown preset {preset!r} (choose one of: {', '.join(PRESETS)})"
            raise _refusal([("/preset", message)])
        try:
            base = cls.model_validate(_merge(cls().document(), PRESETS[preset])).document()
            return cls.model_validate(_merge(base, given))
        except ValidationError as error:
            raise _refusal(faults_of(cls, error)) from None

    def revised(self, document: Mapping[str, Any]) -> Recipe:
        """The next revision: this recipe, with what differs; or a preset with what differs, in this recipe's place.

        What ``LASTING`` names stays, whichever preset is taken.

        Args:
            document: as for ``resolve``; without a ``preset``, objects are merged onto this recipe.

        Raises:
            InvalidRecipe: as for ``resolve``, or one of ``LASTING`` would be another one.
        """
        present = self.document()
        if "preset" in document:
            revised = Recipe.resolve({**{key: present[key] for key in LASTING}, **document})
        else:
            try:
                revised = Recipe.model_validate(_merge(present, document))
            except ValidationError as error:
                raise _refusal(faults_of(Recipe, error)) from None
        if faults := [(f"/{key}", why) for key, why in LASTING.items() if revised.document()[key] != present[key]]:
            raise _refusal(faults)
        return revised

    def document(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """``sha256:`` of the canonical JSON."""
        return recipe_digest(self.document())


LASTING: Mapping[str, str] = {
    "network": "the network stays for the life of a model: its weights are what the next cycle starts from. Register "
    "another model for another network",
    "initial_weights": "version 0 is there already: register another model to start from other weights",
    "validation_share": "another share would move examples that were trained on into the validation examples, and "
    "accuracies would no longer compare: register another model for another share",
}
"""What no revision of a recipe changes, and why."""


_TOLD = 5
"""Faults that a refusal's sentence tells; its list holds them all."""


def _refusal(faults: Sequence[Fault]) -> InvalidRecipe:
    told = [f"{pointer or '/'}: {message}" for pointer, message in faults[:_TOLD]]
    if len(faults) > _TOLD:
        told.append(f"and {len(faults) - _TOLD} more")
    return InvalidRecipe(f"the recipe cannot work: {'; '.join(told)}", list(faults))


def _floors(recipe: Recipe) -> Iterator[Fault]:
    """Floors that the schedule is bound to fall below."""
    final = final_density(recipe.schedule)
    for index, rule in enumerate(recipe.guardrails):
        if isinstance(rule, DensityFloor | LayerCollapse) and rule.at_least > final:
            yield (
                f"/guardrails/{index}/at_least",
                f"{rule.at_least:g} lies above the schedule's final density {final:.4g}, so no version would pass: "
                "lower the floor or raise the target",
            )
    if recipe.distribution.floor > final:
        yield (
            "/distribution/floor",
            f"{recipe.distribution.floor:g} lies above the schedule's final density {final:.4g}, which leaves too few "
            "weights to keep: lower the floor or raise the target",
        )


def _pruning(recipe: Recipe) -> Iterator[Fault]:
    """Criteria, pace and guardrails that need each other."""
    if isinstance(recipe.criterion, Taylor) and isinstance(recipe.pace, AtStart):
        yield (
            "/criterion",
            "taylor takes its scores from the training steps before a pruning step, and pace at-start has none: set "
            "pace to ramp, or criterion to snip",
        )
    for index, rule in enumerate(recipe.guardrails):
        if isinstance(rule, MaskAgreement) and isinstance(recipe.criterion, Magnitude | SynFlow | Random):
            yield (
                f"/guardrails/{index}",
                f"mask-agreement compares the masks of two samples, and {recipe.criterion.name} looks at none: leave "
                "the guardrail out, or set criterion to taylor or snip",
            )


def _replaying(recipe: Recipe) -> Iterator[Fault]:
    """Policies that choose within a cap, or by features."""
    policy = recipe.replay
    if isinstance(policy, Herding | KCentre | HardestFirst) and policy.examples is None and policy.bytes is None:
        yield "/replay", f"{policy.name} chooses within a cap: set replay.examples or replay.bytes"
    custom = isinstance(recipe.network, Custom) and recipe.network.features is None
    if custom and isinstance(policy, Herding | KCentre):
        yield (
            "/replay",
            f"{policy.name} compares features, and network custom does not say where they are: set network.features to "
            "the name of the module whose input they are, or replay to class-balanced",
        )


def _training(recipe: Recipe) -> Iterator[Fault]:
    """Training that is too short for its pruning, or made for another kind of network."""
    training, pace = recipe.training, recipe.pace
    if isinstance(recipe.network, Mlp) and (training.augmentation.crop or training.augmentation.flip):
        yield (
            "/training/augmentation",
            "crop and flip need images, and network mlp flattens them: set crop to 0 and flip to false, or "
            "network to cnn",
        )
    if not isinstance(pace, Ramp) or isinstance(recipe.schedule, Constant):
        return
    if training.select == "best-epoch" and (1 - pace.share) * training.epochs < 1:
        yield (
            "/pace/share",
            f"a ramp over {pace.share:g} of {training.epochs} epochs leaves no whole epoch to select the best from: "
            "lower it, raise training.epochs, or set training.select to last",
        )
    if isinstance(training.averaging, TailAveraging) and training.averaging.share > 1 - pace.share:
        yield (
            "/training/averaging/share",
            f"the last {training.averaging.share:g} of the epochs begin before the ramp ends at {pace.share:g}, so "
            "weights under different masks would be averaged: lower either share",
        )


def _watching(recipe: Recipe) -> Iterator[Fault]:
    """Guardrails that wait for an alarm which nothing raises; an embedding that is nowhere."""
    watch = recipe.monitoring
    alarms: dict[type[Options], tuple[str, bool]] = {
        InputDrift: ("inputs", watch.inputs.on), LabelShift: ("labels", watch.labels.on),
        PrequentialDrop: ("accuracy", watch.accuracy.on), GapChange: ("gap", watch.gap.on),
    }  # fmt: skip
    for index, rule in enumerate(recipe.guardrails):
        monitor, on = alarms.get(type(rule), ("", True))
        if not on:
            yield (
                f"/guardrails/{index}",
                f"{rule.name} waits for an alarm of monitoring.{monitor}, which is off: set monitoring.{monitor}.on to "
                "true, or leave the guardrail out",
            )
    custom = isinstance(recipe.network, Custom) and recipe.network.features is None
    if custom and watch.inputs.on and watch.inputs.of == "embedding":
        yield (
            "/monitoring/inputs/of",
            "network custom does not say where its embedding is: set network.features to the name of the module whose "
            "input it is, or monitoring.inputs.of to features",
        )


def canonical_recipe(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a resolved recipe: sorted keys, no spaces, shortest round-trip floats, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def recipe_digest(document: Mapping[str, Any]) -> str:
    """``sha256:`` of ``canonical_recipe(document)``."""
    return "sha256:" + hashlib.sha256(canonical_recipe(document)).hexdigest()


DEFAULT_PRESET = "espalier"

_ONE_SHOT: dict[str, Any] = {
    "schedule": {"name": "one-shot"},
    "criterion": {"name": "snip"},
    "pace": {"name": "at-start"},
}

PRESETS: dict[str, dict[str, Any]] = {
    "espalier": {},
    "espalier-drift": {"training": {"optimizer": {"weight_decay": 2e-3}}},
    "app-paper": {
        "schedule": {"name": "app"},
        "criterion": {"name": "snip"},
        "distribution": {"name": "global", "floor": 0.0},
        "pace": {"name": "at-start"},
        "replay": {"name": "full"},
        "training": {
            "epochs": 50,
            "least_steps": 0,
            "reading": {"name": "exact"},
            "rate": {"name": "multistep"},
            "optimizer": {"weight_decay": 1e-4},
            "label_smoothing": 0.0,
            "select": "best-epoch",
        },
    },
    "dense": {"schedule": {"name": "constant"}},
    "one-shot": _ONE_SHOT,
}
"""Named starting points. ``espalier`` is the defaults of every field; ``espalier-drift`` has more weight decay, for
streams that drift; ``app-paper`` is Misra et al. to the letter; ``dense`` and ``one-shot`` are the baselines, in the
training of ``espalier``.
"""


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
