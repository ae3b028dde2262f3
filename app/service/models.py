"""Models: register, describe, pause, resume; initial weights.

Knows: what makes a model valid before any data has come. Must never know: HTTP, torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from app.domain import (
    CHAMPION,
    Actor,
    Alias,
    Cycle,
    CycleState,
    CycleTrigger,
    Digest,
    InputSpec,
    Model,
    ModelState,
    Normalisation,
    Page,
    RecipeRevision,
    Resize,
    UnseenClasses,
    VersionSummary,
)
from app.errors import InvalidInputSpec, InvalidName, InvalidRecipe, ModelExists, UnknownAlias, UnknownModel
from app.intake.sandbox import check_weights
from app.learning.recipe import Cnn, Custom, Mlp, Recipe, ResNet18, ResNet50, Vgg16
from app.service.state import champion_of, enqueue_rest
from app.store.blobs import Staged
from app.store.database import Store, Transaction

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model with what a person asks about it first."""

    model: Model
    recipe: RecipeRevision
    champion: VersionSummary | None
    champion_alias: Alias | None
    queued: int
    running: Cycle | None
    megabatches: int
    last_failure: str | None


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Uploaded weights, ready to be named by a recipe."""

    digest: Digest
    bytes: int
    tensors: tuple[dict[str, Any], ...]


def create_model(
    store: Store,
    *,
    name: str,
    recipe: Mapping[str, Any] | None,
    input: InputSpec,
    architectures: Collection[str],
    actor: Actor,
) -> tuple[Model, bool]:
    """Register a model. The same name with the same recipe and input again returns the first one.

    Args:
        recipe: a preset plus what differs; None takes the default preset whole.
        input: what is known of the input; None fields are inferred from the first megabatch.
        architectures: names that ``network.architecture`` may bear.

    Returns:
        The model, and whether it is new.

    Raises:
        InvalidName, InvalidRecipe, InvalidInputSpec: with the remedy; nothing is changed.
        ModelExists: the name is taken by a model with another recipe or input.
    """
    if not NAME.fullmatch(name):
        raise InvalidName(
            f"{name!r} cannot name a model: use 1 to 63 lower-case letters, digits and hyphens, starting with a "
            f"letter or digit"
        )
    resolved = Recipe.resolve(recipe)
    check_network(resolved, architectures)
    spec = check_input(_with_defaults(input, resolved), resolved)
    document = resolved.document()
    with store.transaction(actor) as tx:
        if (existing := _existing(tx, name)) is not None:
            return _same_or_refuse(tx, existing, resolved, spec), False
        if resolved.initial_weights is not None and not store.blobs.touch(resolved.initial_weights):
            message = "no such initial weights here: send the safetensors to POST /v1/initial-weights first"
            raise InvalidRecipe(message, [("/initial_weights", message)])
        model = tx.ledger.create_model(name, document, resolved.digest, spec)
        tx.audit.append(
            "model.created",
            model=name,
            parameters={
                "recipe": document,
                "recipe_digest": resolved.digest,
                "recipe_revision": 1,
                "input": describe_input(spec),
            },
            inputs=[resolved.initial_weights] if resolved.initial_weights else [],
        )
        if resolved.initial_weights is not None:
            tx.ledger.enqueue_cycle(model, CycleTrigger.INITIAL_WEIGHTS, 0)
    return model, True


def describe_model(store: Store, name: str) -> ModelSummary:
    """One model with recipe, champion and queue."""
    with store.reading() as tx:
        return _summary(tx, tx.ledger.model(name))


def list_models(
    store: Store, *, after: str | None, limit: int, only: Collection[str] | None = None
) -> Page[ModelSummary]:
    """Models by name; ``only`` these, or all."""
    with store.reading() as tx:
        page = tx.ledger.models(after, limit, only)
        return Page(tuple(_summary(tx, model) for model in page.items), page.next)


def pause_model(store: Store, name: str, *, reason: str, actor: Actor) -> Model:
    """Stop starting cycles; uploads are still taken in. A cycle that runs now ends by itself."""
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        if model.state is ModelState.PAUSED:
            return model
        model = tx.ledger.set_state(model, ModelState.PAUSED, reason)
        tx.audit.append("model.paused", model=name, reason=reason)
    return model


def resume_model(store: Store, name: str, *, reason: str, actor: Actor) -> Model:
    """Start cycles again. A cycle that failed for good gets another one in its place; nothing else is hurried."""
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        if model.state is ModelState.ACTIVE:
            return model
        model = tx.ledger.set_state(model, ModelState.ACTIVE, None)
        cycle = _catch_up(store, tx, model)
        tx.audit.append(
            "model.resumed", model=name, reason=reason, parameters={"cycle": cycle.number if cycle else None}
        )
    return model


def keep_initial_weights(store: Store, staged: Staged) -> InitialWeights:
    """Keep uploaded safetensors so that a recipe can name them by digest. They are audited when a model takes them up.

    Raises:
        InvalidWeights: not safetensors, or tensors of a type that a network cannot load.
    """
    tensors = check_weights(staged.path)
    digest, size = store.blobs.keep(staged.path)
    return InitialWeights(digest, size, tuple(dict(tensor) for tensor in tensors))


def check_network(recipe: Recipe, architectures: Collection[str]) -> None:
    """Refuse a custom network that this deployment does not know."""
    network = recipe.network
    if isinstance(network, Custom) and network.architecture not in architectures:
        known = ", ".join(sorted(architectures)) or "none"
        message = (
            f"unknown architecture {network.architecture!r}; this server knows: {known}. "
            "Name it in ESPALIER_ARCHITECTURES on the server and its workers"
        )
        raise InvalidRecipe(message, [("/network/architecture", message)])


def misfit(recipe: Recipe, shape: tuple[int, ...]) -> str | None:
    """Why the recipe's network cannot take examples of this shape; None when it can."""
    match recipe.network:
        case Mlp() | Custom():
            return None
        case Cnn(channels=channels):
            least = 2 ** len(channels)
        case Vgg16():
            least = 32
        case ResNet18() | ResNet50():
            least = 8
    if len(shape) in (2, 3) and min(shape[:2]) >= least:
        return None
    return (
        f"network {recipe.network.name} needs images of at least {least} x {least}, as (height, width) or "
        f"(height, width, channels); "
        f"examples of shape {shape} are none: reshape them, or choose the network mlp"
    )


def check_input(spec: InputSpec, recipe: Recipe) -> InputSpec:
    """Refuse an input that cannot work; the rest is returned as it is.

    Raises:
        InvalidInputSpec: with one (pointer, message) per fault.
    """
    faults = [fault for fault in _input_faults(spec, recipe) if fault is not None]
    if faults:
        raise InvalidInputSpec("the input cannot work: " + "; ".join(f"{p}: {m}" for p, m in faults), faults)
    return spec


def describe_input(spec: InputSpec) -> dict[str, Any]:
    """An input spec as plain values, for audit entries and manifests."""
    scaling = spec.normalisation
    return {
        "shape": list(spec.shape) if spec.shape else None,
        "dtype": spec.dtype,
        "classes": list(spec.classes) if spec.classes else None,
        "normalisation": {"name": scaling.name, "signed_log": scaling.signed_log, "clip": scaling.clip}
        if scaling
        else None,
        "unseen_classes": spec.unseen_classes,
        "label": spec.label,
        "features": list(spec.features) if spec.features else None,
        "resize": spec.resize,
    }


def _with_defaults(spec: InputSpec, recipe: Recipe) -> InputSpec:
    """Weights that come trained expect their own scale: nothing is inferred for them."""
    if recipe.initial_weights is None or spec.normalisation is not None:
        return spec
    return replace(spec, normalisation=Normalisation("none", clip=None))


def _input_faults(spec: InputSpec, recipe: Recipe) -> list[tuple[str, str] | None]:
    faults: list[tuple[str, str] | None] = []
    if spec.shape is not None:
        if not spec.shape or any(side < 1 for side in spec.shape) or math.prod(spec.shape) > 2**27:
            faults.append(("/shape", "needs at least one axis, each of 1 or more, and at most 2**27 values an example"))
        elif (why := misfit(recipe, spec.shape)) is not None:
            faults.append(("/shape", why))
    if spec.dtype not in (None, "float32", "uint8"):
        faults.append(("/dtype", f"unknown dtype {spec.dtype!r} (choose one of: float32, uint8)"))
    if spec.classes is not None and (len(spec.classes) < 2 or len(set(spec.classes)) < len(spec.classes)):
        faults.append(("/classes", "needs at least two classes with different names"))
    if spec.unseen_classes not in get_args(UnseenClasses):
        faults.append(("/unseen_classes", f"unknown choice {spec.unseen_classes!r} (choose one of: reject, extend)"))
    if spec.unseen_classes == "extend" and isinstance(recipe.training.class_weights, tuple):
        faults.append(
            (
                "/unseen_classes",
                "extend goes with training.class_weights balanced or null: a list has no weight for classes that come "
                "late",
            )
        )
    faults += [_normalisation_fault(spec), *_column_faults(spec)]
    if spec.resize not in get_args(Resize):
        faults.append(("/resize", f"unknown choice {spec.resize!r} (choose one of: {', '.join(get_args(Resize))})"))
    if recipe.initial_weights is not None and not spec.complete:
        faults.append(
            ("", "initial_weights need shape, dtype and classes declared, since the network is built before data comes")
        )
    return faults


def _column_faults(spec: InputSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with the names of columns. One column may hold all values of an example, as a list of them."""
    features = spec.features
    if spec.label == "":
        yield "/label", "needs the name of a column, or null for the usual ones"
    if features is None:
        return
    if not features or "" in features or len(set(features)) < len(features):
        yield "/features", "needs at least one column, each with a name of its own"
    elif spec.label in features:
        yield "/features", f"holds {spec.label!r}, which is the label's column"
    elif spec.shape is not None and len(features) not in (1, math.prod(spec.shape)):
        yield "/features", f"has {len(features)} columns, but an example has {math.prod(spec.shape)} values"


def _normalisation_fault(spec: InputSpec) -> tuple[str, str] | None:
    scaling = spec.normalisation
    if scaling is None:
        return None
    if scaling.clip is not None and not (scaling.clip > 0 and math.isfinite(scaling.clip)):
        return "/normalisation/clip", "must be above 0, or null for none"
    if scaling.name != "fixed":
        given = scaling.mean or scaling.std
        return ("/normalisation/mean", 'mean and std go with "name": "fixed" only') if given else None
    if not scaling.mean or len(scaling.mean) != len(scaling.std):
        return "/normalisation/mean", "fixed normalisation needs mean and std of the same length"
    if not all(map(math.isfinite, (*scaling.mean, *scaling.std))) or min(scaling.std) <= 0:
        return "/normalisation/std", "mean must be finite, and std finite and above 0"
    wanted = None if spec.shape is None else normalised_width(spec.shape)
    if wanted is not None and len(scaling.mean) != wanted:
        return "/normalisation/mean", f"needs one value per feature or channel: {wanted}, not {len(scaling.mean)}"
    return None


def normalised_width(shape: tuple[int, ...]) -> int:
    """How many means an input of this shape has: 1 for (height, width), else one per value of the last axis."""
    return 1 if len(shape) == 2 else shape[-1]


def _existing(tx: Transaction, name: str) -> Model | None:
    try:
        return tx.ledger.lock_model(name)
    except UnknownModel:
        return None


def _same_or_refuse(tx: Transaction, model: Model, recipe: Recipe, spec: InputSpec) -> Model:
    first = tx.ledger.recipe(model.name, 1)
    if first.digest != recipe.digest or not _is_of(spec, model.input):
        raise ModelExists(
            f"a model named {model.name!r} exists already with another recipe or input: choose another name"
        )
    return model


def _is_of(declared: InputSpec, present: InputSpec) -> bool:
    """Whether a declared input may have become the present one: inferred where it was open, its classes grown."""
    known = present.classes
    if declared.classes is not None and known is not None and declared.unseen_classes == "extend":
        known = known[: len(declared.classes)]
    pairs = (
        (declared.shape, present.shape),
        (declared.dtype, present.dtype),
        (declared.classes, known),
        (declared.normalisation, present.normalisation),
        (declared.unseen_classes, present.unseen_classes),
        (declared.label, present.label),
        (declared.features, present.features),
        (declared.resize, present.resize),
    )
    return all(ours in (None, theirs) for ours, theirs in pairs)


def _catch_up(store: Store, tx: Transaction, model: Model) -> Cycle | None:
    """The cycle that takes the place of one that failed for good, if that was the last one."""
    recipe = Recipe.resolve(tx.ledger.recipe(model.name).document)
    if recipe.initial_weights is not None and champion_of(tx, model.name) is None:
        return _from_initial_weights(store, tx, model)
    newest = tx.ledger.cycles(model.name, None, 1).items
    if not newest or newest[0].state is not CycleState.FAILED:
        return None
    return enqueue_rest(store, tx, model, newest[0].trigger, through=newest[0].through)


def _from_initial_weights(store: Store, tx: Transaction, model: Model) -> Cycle:
    """Version 0 comes first, whatever was queued meanwhile; then one cycle for all that waits."""
    open_cycles = tx.ledger.open_cycles(model)
    if open_cycles and open_cycles[0].trigger is CycleTrigger.INITIAL_WEIGHTS:
        return open_cycles[0]
    tx.ledger.supersede_cycles(model, "version 0 comes first")
    first = tx.ledger.enqueue_cycle(model, CycleTrigger.INITIAL_WEIGHTS, 0)
    for cycle in open_cycles:
        tx.audit.append(
            "cycle.superseded",
            model=model.name,
            reason="version 0 comes first",
            parameters={"cycle": cycle.number, "replaced_by": first.number},
        )
    if open_cycles:
        enqueue_rest(store, tx, model, open_cycles[-1].trigger)
    return first


def _summary(tx: Transaction, model: Model) -> ModelSummary:
    queued, running = tx.ledger.queue(model)
    newest = tx.ledger.cycles(model.name, None, 1).items
    try:
        alias = tx.ledger.alias(model.name, CHAMPION)
    except UnknownAlias:
        alias = None
    return ModelSummary(
        model=model,
        recipe=tx.ledger.recipe(model.name),
        champion=tx.ledger.summary(model, alias.version) if alias else None,
        champion_alias=alias,
        queued=queued,
        running=running,
        megabatches=tx.buffer.last_number(model),
        last_failure=next((cycle.reason for cycle in newest if cycle.failures), None),
    )
