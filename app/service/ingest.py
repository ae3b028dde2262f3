"""Ingest: a staged upload becomes a megabatch, whole or not at all.

Knows: what a model's input spec asks of decoded arrays, and when the recipe's trigger is met. Must never know: HTTP,
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.domain import Actor, Cycle, CycleTrigger, InputSpec, Megabatch, MegabatchDraft, Model, Normalisation, Page
from app.errors import InvalidMegabatch
from app.intake import sandbox
from app.intake.decoders import Limits
from app.intake.sandbox import DecodedFiles
from app.learning.recipe import EveryMegabatches, Recipe
from app.service.models import describe_input, misfit, normalised_width
from app.store.blobs import Blobs, Staged
from app.store.database import Store, Transaction

HEAVY_TAIL = 1000.0
"""Flat floating-point inputs beyond this are taken for raw sensor values, and get a signed logarithm first."""

FEW_CLASSES = 1000
"""Beyond this many classes, a largest label of ten times the labels that occur is taken for a mistake."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A megabatch, whether it is new, and the cycle that it set off, if any."""

    megabatch: Megabatch
    new: bool
    cycle: Cycle | None


def accept_megabatch(store: Store, name: str, staged: Staged, *, limits: Limits, actor: Actor) -> Accepted:
    """Decode, check and keep an upload. The same arrays again return the first megabatch, however they are packed.

    Args:
        staged: the upload's bytes, durable but not yet trusted.
        limits: how much, and for how long, decoding may take.

    Raises:
        UnknownModel, InvalidMegabatch, MegabatchQuarantined: nothing was changed.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        recipe = Recipe.resolve(tx.ledger.recipe(name).document)
    with store.blobs.workspace() as work:
        decoded = sandbox.decode(staged.path, work, limits)
        spec = completed(model.input, decoded, recipe)
        draft = _keep(store.blobs, decoded, spec)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        spec = completed(model.input, decoded, recipe)  # another upload may have been the first one meanwhile
        draft = replace(draft, histogram=_histogram(decoded, spec))
        megabatch, new = tx.buffer.add_megabatch(model, draft)
        if not new:
            return Accepted(megabatch, False, None)
        inferred = model.input != spec
        if inferred:
            model = tx.ledger.set_input(model, spec)
        cycle = _enqueue_if_met(tx, model, recipe)
        _audit(tx, megabatch, spec if inferred else None, cycle)
    return Accepted(megabatch, True, cycle)


def get_megabatch(store: Store, name: str, number: int) -> tuple[Megabatch, InputSpec]:
    """One megabatch, and the input spec that its values follow."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        return tx.buffer.megabatch(name, number), model.input


def list_megabatches(store: Store, name: str, *, after: int | None, limit: int) -> tuple[Page[Megabatch], InputSpec]:
    """Megabatches in order of arrival, and the input spec that their values follow."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        return tx.buffer.megabatches(name, after, limit), model.input


def completed(spec: InputSpec, decoded: DecodedFiles, recipe: Recipe) -> InputSpec:
    """Fill in what the spec leaves open, and check that the arrays follow it.

    Raises:
        InvalidMegabatch: "wrong-shape", "wrong-dtype" or "label-out-of-range", with the remedy.
    """
    largest = max(label for label, _ in decoded.labels)
    if spec.classes is None and largest >= max(FEW_CLASSES, 10 * len(decoded.labels)):
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {largest} would mean {largest + 1} classes, but only {len(decoded.labels)} labels occur: "
            "number the classes from 0, or declare input.classes when the model is created",
        )
    shape = spec.shape or decoded.shape
    full = InputSpec(
        shape=shape,
        dtype=spec.dtype or decoded.dtype,
        classes=spec.classes or _classes(decoded),
        normalisation=spec.normalisation or _normalisation(decoded),
    )
    if decoded.shape != shape:
        raise InvalidMegabatch(
            "wrong-shape",
            f"examples have shape {decoded.shape}, but the model takes {shape}: "
            f"send x as (n, {', '.join(map(str, shape))})",
        )
    if decoded.dtype != full.dtype:
        raise InvalidMegabatch(
            "wrong-dtype",
            f"x decodes to {decoded.dtype}, but the model takes {full.dtype}: send x.astype({full.dtype!r})",
        )
    if spec.shape is None and (why := misfit(recipe, decoded.shape)) is not None:
        raise InvalidMegabatch("wrong-shape", why)
    _check_labels(largest, full)
    _check_fixed(full)
    return full


def _classes(decoded: DecodedFiles) -> tuple[str, ...]:
    """Class names when none are declared: the labels themselves, up to the largest one."""
    return tuple(str(label) for label in range(max(label for label, _ in decoded.labels) + 1))


def _normalisation(decoded: DecodedFiles) -> Normalisation:
    raw_sensors = len(decoded.shape) == 1 and decoded.dtype == "float32" and decoded.largest > HEAVY_TAIL
    return Normalisation("first-megabatch", signed_log=raw_sensors)


def _check_labels(largest: int, spec: InputSpec) -> None:
    assert spec.classes is not None
    known = len(spec.classes)
    if largest >= known:
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {largest} is beyond the model's {known} classes (labels 0 to {known - 1}): "
            "correct y, or create a model that declares all classes, those of later megabatches too, as input.classes",
        )
    if known < 2:
        raise InvalidMegabatch(
            "one-class",
            "the first megabatch holds one class only, label 0, so the classes cannot be inferred: declare "
            "input.classes when the model is created",
        )


def _check_fixed(spec: InputSpec) -> None:
    assert spec.shape is not None and spec.normalisation is not None
    given = len(spec.normalisation.mean)
    if spec.normalisation.name == "fixed" and given != normalised_width(spec.shape):
        raise InvalidMegabatch(
            "wrong-shape",
            f"the model's fixed normalisation has {given} values, but examples of shape {spec.shape} need "
            f"{normalised_width(spec.shape)}",
        )


def _histogram(decoded: DecodedFiles, spec: InputSpec) -> tuple[int, ...]:
    assert spec.classes is not None
    counts = dict(decoded.labels)
    return tuple(counts.get(label, 0) for label in range(len(spec.classes)))


def _keep(blobs: Blobs, decoded: DecodedFiles, spec: InputSpec) -> MegabatchDraft:
    (x, _), (y, _), (ids, _) = (blobs.keep(path) for path in (decoded.x, decoded.y, decoded.ids))
    return MegabatchDraft(
        digest=decoded.digest,
        x=x,
        y=y,
        ids=ids,
        examples=decoded.examples,
        bytes=decoded.bytes,
        histogram=_histogram(decoded, spec),
    )


def _enqueue_if_met(tx: Transaction, model: Model, recipe: Recipe) -> Cycle | None:
    """One cycle as soon as enough megabatches lie beyond the last one that any cycle was enqueued for."""
    if not isinstance(recipe.trigger, EveryMegabatches):
        return None
    newest: Sequence[Cycle] = tx.ledger.cycles(model.name, None, 1).items
    covered = newest[0].through if newest else 0
    waiting = tx.buffer.eligible(model, seen=range(1, covered + 1))
    if len(waiting) < recipe.trigger.every:
        return None
    return tx.ledger.enqueue_cycle(model, CycleTrigger.MEGABATCHES, waiting[-1].number)


def _audit(tx: Transaction, megabatch: Megabatch, inferred: InputSpec | None, cycle: Cycle | None) -> None:
    tx.audit.append(
        "megabatch.accepted",
        model=megabatch.model,
        parameters={
            "megabatch": megabatch.number,
            "digest": megabatch.digest,
            "examples": megabatch.examples,
            "histogram": list(megabatch.histogram),
            "cycle": cycle.number if cycle else None,
            **({"inferred_input": describe_input(inferred)} if inferred else {}),
        },
        inputs=[megabatch.x, megabatch.y, megabatch.ids],
    )
