"""Ingest: a staged upload becomes a megabatch, whole or not at all.

Knows: what a model's input spec asks of decoded arrays, and when the recipe's trigger is met. Must never know: HTTP,
torch.

Laws:
    * What a megabatch means was read by the input spec that is in force when it is accepted: if another upload
      completed or extended the spec meanwhile, it is decoded again.
    * What is refused leaves one audit entry, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from app.domain import (
    Actor,
    Cycle,
    CycleTrigger,
    EvaluationSet,
    InputSpec,
    Megabatch,
    MegabatchDraft,
    Model,
    Normalisation,
    Page,
)
from app.errors import BytesErased, InvalidMegabatch, StoreBusy
from app.intake import sandbox
from app.intake.arrays import DecodedFiles, Limits, Reading
from app.learning.recipe import EveryMegabatches, Recipe
from app.service.models import describe_input, misfit, normalised_width
from app.service.overlap import ids_of, overlap
from app.service.removal import expect_kept, kept
from app.store.blobs import Blobs, Staged
from app.store.database import Store, Transaction

HEAVY_TAIL = 1000.0
"""Flat floating-point inputs beyond this are taken for raw sensor values, and get a signed logarithm first."""

FEW_CLASSES = 1000
"""Beyond this many classes, a largest label of ten times the labels that occur is taken for a mistake."""

MOST_CLASSES = 10_000
"""Classes that unseen ones may extend a model to: a label beyond is taken for a mistake."""

_SELF_EVIDENT = ("npz",)
"""Formats that are read alike whatever a model's input spec says."""

TRIES = 5
"""How often an upload is decoded anew because another one changed the input spec meanwhile."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A megabatch, whether it is new, and the cycle that it set off, if any."""

    megabatch: Megabatch
    new: bool
    cycle: Cycle | None


def accept_megabatch(
    store: Store, name: str, staged: Staged, *, limits: Limits, actor: Actor, media: str | None = None
) -> Accepted:
    """Decode, check and keep an upload. The same arrays again return the first megabatch, however they are packed.

    Args:
        staged: the upload's bytes, durable but not yet trusted.
        limits: how much, and for how long, decoding may take.
        media: the declared media type, if one was.

    Raises:
        UnknownModel, MegabatchQuarantined, MegabatchErased: nothing was changed.
        InvalidMegabatch: only the audit log says so.
        StoreBusy: other uploads kept changing the model's input, or erasures what it is made of; nothing was changed.
    """
    try:
        for _ in range(TRIES):
            with suppress(BytesErased):  # then they are kept anew
                if (accepted := _accept(store, name, staged, media, limits, actor)) is not None:
                    return accepted
    except InvalidMegabatch as refusal:
        _audit_refusal(store, name, staged, refusal, actor)
        raise
    raise StoreBusy("other uploads, or erasures, keep coming in between: send this one again")


def _accept(
    store: Store, name: str, staged: Staged, media: str | None, limits: Limits, actor: Actor
) -> Accepted | None:
    """One attempt; None when the input spec is no longer the one that the upload was read by."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        recipe = Recipe.resolve(tx.ledger.recipe(name).document)
        evaluation = tx.buffer.evaluation(model)
        logged = tx.audit.head().size
    reading = reading_of(model.input)

    def fit(decoded: DecodedFiles) -> InputSpec:
        _expect_welcome(store, model, decoded)
        return completed(model.input, decoded, recipe)

    decoded, draft = decoded_draft(store.blobs, staged, limits, reading, fit, media)
    draft = _beside(store.blobs, draft, evaluation)
    arrays = (draft.x, draft.y, draft.ids)
    with kept(store, arrays, actor), store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        if decoded.format not in _SELF_EVIDENT and reading_of(model.input) != reading:
            return None
        spec = completed(model.input, decoded, recipe)  # another upload may have been the first one meanwhile
        draft = replace(draft, histogram=_histogram(decoded, spec))
        if (now := tx.buffer.evaluation(model)) != evaluation:
            draft = _beside(store.blobs, draft, now)
        megabatch, new = tx.buffer.add_megabatch(model, draft)
        if not new:
            return Accepted(megabatch, False, None)
        before = model.input
        if before != spec:
            model = tx.ledger.set_input(model, spec)
        cycle = _enqueue_if_met(tx, model, recipe)
        _audit(tx, megabatch, before, spec, cycle)
        expect_kept(tx, logged, arrays)
    return Accepted(megabatch, True, cycle)


def _expect_welcome(store: Store, model: Model, decoded: DecodedFiles) -> None:
    """Refuse what was quarantined or erased before any of it is kept."""
    with store.reading() as tx:
        tx.buffer.same(model, decoded.digest)


def decoded_draft(
    blobs: Blobs,
    staged: Staged,
    limits: Limits,
    reading: Reading,
    fit: Callable[[DecodedFiles], InputSpec],
    media: str | None = None,
) -> tuple[DecodedFiles, MegabatchDraft]:
    """Decode an upload, check it, and keep its arrays.

    Args:
        reading: what the model's input spec says about reading it.
        fit: checks the decoded arrays; gives the input spec that their values follow.
        media: the declared media type, if one was.

    Returns:
        What was decoded (its files are gone by then), and the draft whose blobs are kept.

    Raises:
        InvalidMegabatch: nothing was kept.
    """
    with blobs.workspace() as work:
        decoded = sandbox.decode(staged.path, work, limits, reading, media)
        return decoded, _keep(blobs, decoded, fit(decoded))


def reading_of(spec: InputSpec) -> Reading:
    """What an input spec says about reading an upload."""
    return Reading(
        label=spec.label,
        features=spec.features,
        classes=spec.classes,
        extend=spec.unseen_classes == "extend",
        shape=spec.shape,
        dtype=spec.dtype,
        resize=spec.resize,
    )


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
    """Fill in what the spec leaves open, add classes where it lets them grow, and check that the arrays follow it.

    Raises:
        InvalidMegabatch: "wrong-shape", "wrong-dtype", "label-out-of-range" or "one-class", with the remedy.
    """
    largest = _largest_label(decoded)
    if spec.classes is None and decoded.classes is None and largest >= max(FEW_CLASSES, 10 * len(decoded.labels)):
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {largest} would mean {largest + 1} classes, but only {len(decoded.labels)} labels occur: "
            "number the classes from 0, or declare input.classes when the model is created",
        )
    full = replace(
        spec,
        shape=spec.shape or decoded.shape,
        dtype=spec.dtype or decoded.dtype,
        classes=_classes(spec, decoded),
        features=spec.features or decoded.features,
        normalisation=spec.normalisation or _normalisation(decoded),
    )
    check_fit(full, decoded, _UNSEEN)
    if spec.shape is None and (why := misfit(recipe, decoded.shape)) is not None:
        raise InvalidMegabatch("wrong-shape", why)
    if full.classes is not None and len(full.classes) < 2:
        raise InvalidMegabatch(
            "one-class",
            "the first megabatch holds one class only, label 0, so the classes cannot be inferred: declare "
            "input.classes when the model is created",
        )
    _check_fixed(full)
    return full


def check_fit(spec: InputSpec, decoded: DecodedFiles, remedy: str) -> None:
    """Check that decoded arrays are what a model takes.

    Args:
        spec: its shape, dtype and classes are known.
        remedy: what to do about a label beyond the classes.

    Raises:
        InvalidMegabatch: "wrong-shape", "wrong-dtype" or "label-out-of-range", with the remedy.
    """
    assert spec.shape is not None and spec.classes is not None
    if decoded.shape != spec.shape:
        raise InvalidMegabatch(
            "wrong-shape",
            f"examples have shape {decoded.shape}, but the model takes {spec.shape}: "
            f"send x as (n, {', '.join(map(str, spec.shape))})",
        )
    if decoded.dtype != spec.dtype:
        raise InvalidMegabatch(
            "wrong-dtype",
            f"x decodes to {decoded.dtype}, but the model takes {spec.dtype}: send x.astype({spec.dtype!r})",
        )
    largest, known = _largest_label(decoded), len(spec.classes)
    if largest >= known:
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {largest} is beyond the model's {known} classes (labels 0 to {known - 1}): {remedy}",
        )


_UNSEEN = (
    "correct y; or create a model that declares all classes, those of later megabatches too, as input.classes, or one "
    'whose classes grow as they come (input.unseen_classes: "extend")'
)


def _largest_label(decoded: DecodedFiles) -> int:
    return max(label for label, _ in decoded.labels)


def _classes(spec: InputSpec, decoded: DecodedFiles) -> tuple[str, ...]:
    """Class names: as the labels came, or the labels themselves; class numbers that come late get a name."""
    largest = _largest_label(decoded)
    if spec.classes is None:
        if decoded.classes is not None:
            return _few(decoded.classes)
        return tuple(str(label) for label in range(largest + 1))
    known = len(spec.classes)
    if spec.unseen_classes == "reject" or largest < known:
        return spec.classes
    if largest >= MOST_CLASSES:
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {largest} would extend the model's {known} classes to {largest + 1}, more than {MOST_CLASSES}: "
            "number the classes from 0, or declare input.classes when the model is created",
        )
    if decoded.classes is not None:
        return decoded.classes
    return (*spec.classes, *_late(range(known, largest + 1), set(spec.classes)))


def _few(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that become the classes of a model that has none."""
    if len(names) > MOST_CLASSES:
        raise InvalidMegabatch(
            "too-many-labels",
            f"there are {len(names)} different names, more than {MOST_CLASSES} classes: is this the label column? If "
            "so, declare input.classes when the model is created",
        )
    return names


def _late(labels: range, taken: set[str]) -> Iterator[str]:
    """A name for each label that came late; none is taken twice."""
    for label in labels:
        name = f"class-{label}"
        while name in taken:
            name += "-late"
        taken.add(name)
        yield name


def _normalisation(decoded: DecodedFiles) -> Normalisation:
    raw_sensors = len(decoded.shape) == 1 and decoded.dtype == "float32" and decoded.largest > HEAVY_TAIL
    return Normalisation("first-megabatch", signed_log=raw_sensors)


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


def _beside(blobs: Blobs, draft: MegabatchDraft, evaluation: EvaluationSet | None) -> MegabatchDraft:
    """The draft, with how many of its examples are in the evaluation set."""
    found = None if evaluation is None else overlap(blobs, draft.ids, ids_of(blobs, evaluation.ids))
    return replace(draft, evaluation_overlap=found)


def _enqueue_if_met(tx: Transaction, model: Model, recipe: Recipe) -> Cycle | None:
    """One cycle as soon as enough megabatches lie beyond the last one that any cycle was enqueued for."""
    if not isinstance(recipe.trigger, EveryMegabatches):
        return None
    waiting = tx.buffer.eligible(model, seen=range(1, tx.ledger.covered(model) + 1))
    if len(waiting) < recipe.trigger.every:
        return None
    return tx.ledger.enqueue_cycle(model, CycleTrigger.MEGABATCHES, waiting[-1].number)


def _same_but_classes(before: InputSpec, spec: InputSpec) -> bool:
    """Whether nothing was inferred; classes that were added have an entry of their own."""
    return before.complete and before == replace(spec, classes=before.classes)


def _audit_refusal(store: Store, name: str, staged: Staged, refusal: InvalidMegabatch, actor: Actor) -> None:
    with store.transaction(actor) as tx:
        tx.audit.append(
            "megabatch.rejected",
            model=name,
            reason=str(refusal),
            parameters={"refusal": refusal.reason, "digest": staged.digest, "bytes": staged.size},
        )


def _audit(tx: Transaction, megabatch: Megabatch, before: InputSpec, spec: InputSpec, cycle: Cycle | None) -> None:
    overlap = megabatch.evaluation_overlap
    tx.audit.append(
        "megabatch.accepted",
        model=megabatch.model,
        parameters={
            "megabatch": megabatch.number,
            "digest": megabatch.digest,
            "examples": megabatch.examples,
            "histogram": list(megabatch.histogram),
            "cycle": cycle.number if cycle else None,
            **({} if _same_but_classes(before, spec) else {"inferred_input": describe_input(spec)}),
            **({} if overlap is None else {"evaluation_overlap": overlap}),
        },
        inputs=[megabatch.x, megabatch.y, megabatch.ids],
    )
    known = len(before.classes or spec.classes or ())
    added = (spec.classes or ())[known:]
    if added:
        tx.audit.append(
            "model.classes-extended",
            model=megabatch.model,
            reason=f"megabatch {megabatch.number} holds labels beyond the {known} classes that were known",
            parameters={"megabatch": megabatch.number, "classes_before": known, "added": list(added)},
        )
