"""Training: one cycle from claim to publication. Only the worker imports it, since it imports torch.

Knows: how a claimed cycle's pinned inputs are gathered, when snapshots are kept, and what becomes of the result. Must
never know: HTTP, when cycles are due, or how the method works (``app.learning``).

Laws:
    * No transaction is open while the device works: claim (short), learn (long), publish (short).
    * Publication compares fencing token and generation, so a stale worker publishes nothing.
    * A cycle that was killed goes on from its last snapshot and ends with the same bits.
    * A cycle that fails is tried again a bounded number of times, then its model is paused with the reason; others go
    on.
"""

from __future__ import annotations

import importlib
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load as load_safetensors

from app import __version__, crash
from app.config import Settings
from app.domain import (
    CHAMPION,
    HOLDING,
    Claim,
    Cycle,
    CycleState,
    CycleTrigger,
    Digest,
    EvaluationSet,
    InputSpec,
    Megabatch,
    Phase,
    Prequential,
    Trip,
    Version,
    VersionDraft,
    VersionStatus,
)
from app.errors import (
    BadInput,
    CorruptBlob,
    InvalidRecipe,
    InvalidWeights,
    LearningFailed,
    LeaseLost,
    MissingBlob,
    NothingToTrain,
    TrainingDiverged,
    Unavailable,
)
from app.learning.cycle import (
    CycleInput,
    CycleResult,
    Examples,
    NormalisationState,
    Parent,
    events_of,
    initial_version,
    run_cycle,
    snapshot_fits,
)
from app.learning.guardrails import diverged, hold_since
from app.learning.history import History, Hold
from app.learning.recipe import Custom, NoReplay, Recipe
from app.service.guardrail_actions import carry_out, scale_of, settled
from app.service.lease import Running, Stopped, Watch, retrying
from app.service.models import describe_input
from app.service.outcomes import fail, release, supersede
from app.service.promotion import promote_passed
from app.service.state import State, keep_state, present_rows, spread, state_of
from app.store.array_files import Column, side_by_side
from app.store.database import Store, Transaction
from espalier.formats import checkpoint
from espalier.formats.canonical import sha256_digest
from espalier.formats.custody import Use
from espalier.formats.writer import ZSTD

log = logging.getLogger(__name__)

MOST_ASKED = 64
"""Past megabatches outside the replay buffer whose validation examples are asked, to measure forgetting."""


def run_next_cycle(store: Store, settings: Settings, *, running: Running, device: torch.device) -> Cycle | None:
    """Claim the next queued cycle, carry it out, and end it with one transaction.

    Returns:
        The cycle as it ended (published, withheld, superseded, failed, or queued again), or None when none was due.
    """
    claim = _claim(store, settings, running)
    if claim is None:
        return None
    running.begin(claim)
    crash.point("cycle.claimed")
    try:
        ending = _attempt(store, settings, running, claim, device)
    finally:
        running.end()  # before the ending, which gives the lease up: a renewal must not take that for a loss
    try:
        retrying(ending)
    except LeaseLost as lost:
        supersede(store, running.actor, claim, str(lost))
    except Exception as error:
        log.exception("cycle %d of %s could not be ended as it should", claim.cycle.number, claim.model.name)
        retrying(partial(fail, store, settings, running.actor, claim, _told(error), final=False))
    with store.reading() as tx:
        return tx.ledger.cycle(claim.model.name, claim.cycle.number)


def _attempt(
    store: Store, settings: Settings, running: Running, claim: Claim, device: torch.device
) -> Callable[[], None]:
    """Carry a claimed cycle out. Returns the transaction that ends it, whichever end it comes to."""
    watch = Watch(store, settings, running, claim, claim.snapshot)
    work = None
    try:
        work = _gather(store, settings, claim)
        if work is None:
            return partial(supersede, store, running.actor, claim, "nothing is left to train on")
        result = _learn(store, work, watch, device)
        crash.point("cycle.learnt")
        draft = _draft(store, claim, work, result, watch.finish(), device)
        crash.point("cycle.blobs")
        return partial(_publish, store, watch, claim, work, result, draft)
    except Stopped:
        return partial(release, store, running.actor, claim)
    except LeaseLost as lost:
        return partial(supersede, store, running.actor, claim, str(lost))
    except NothingToTrain as wait:
        return partial(supersede, store, running.actor, claim, f"its megabatches wait for more examples: {wait}")
    except Exception as error:
        log.exception("cycle %d of %s failed", claim.cycle.number, claim.model.name)
        final, held = isinstance(error, (BadInput, LearningFailed)), work is not None and work.held
        return partial(
            fail, store, settings, running.actor, claim, _told(error), final=final, events=events_of(error),
            trip=_tripped(claim, error), held=held, passing=isinstance(error, Unavailable),
        )  # fmt: skip


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _tripped(claim: Claim, error: Exception) -> Trip | None:
    """The guardrail that asks for another attempt when training has diverged."""
    if not isinstance(error, TrainingDiverged):
        return None
    return diverged(Recipe.resolve(claim.recipe.document).guardrails, _told(error))


# -- claim -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    """What a claimed cycle needs in memory."""

    given: CycleInput
    before: State
    new: frozenset[int]
    examples: Sequence[Megabatch]

    @property
    def held(self) -> bool:
        """Whether guardrails hold the density in this cycle."""
        return bool(self.given.history.holds)


@dataclass(frozen=True, slots=True)
class _Past:
    """Accepted megabatches that a lineage has seen, by what becomes of them: no number is in two of the sets.

    Attributes:
        pinned: replayed whole.
        replayed: in the parent's replay buffer, some of their rows at least.
        released: pinned no longer; the replay policy may choose among all of their rows again.
        asked: in no buffer; their validation examples alone are asked, to measure forgetting.
    """

    pinned: frozenset[int]
    replayed: frozenset[int]
    released: frozenset[int]
    asked: frozenset[int]

    @classmethod
    def of(cls, before: State, pins: frozenset[int], accepted: frozenset[int]) -> _Past:
        """What a parent's state, the pins of today and the quarantine say."""
        seen = frozenset(before.seen) & accepted
        pinned = seen & pins
        replayed = (seen - pinned).intersection(before.replay)
        released = seen & before.pinned - pinned - replayed
        asked = spread(seen - pinned - replayed - released, MOST_ASKED)
        return cls(pinned, replayed, released, frozenset(asked))


def _claim(store: Store, settings: Settings, running: Running) -> Claim | None:
    with store.transaction(running.actor) as tx:
        claim = tx.ledger.claim_cycle(running.worker, settings.lease_seconds)
        if claim is not None:
            tx.audit.append(
                "cycle.started",
                model=claim.model.name,
                parameters={
                    "cycle": claim.cycle.number,
                    "parent": claim.cycle.parent,
                    "through": claim.cycle.through,
                    "recipe_digest": claim.recipe.digest,
                    "evaluation_set": claim.evaluation.digest if claim.evaluation else None,
                    "pinned": sorted(claim.pinned),
                    "resumed": claim.snapshot is not None,
                },
                inputs=[claim.parent.checkpoint] if claim.parent else [],
            )
    return claim


def _gather(store: Store, settings: Settings, claim: Claim) -> _Work | None:
    """The cycle's pinned inputs: recipe, parent, evaluation set, megabatches up to the pinned last one."""
    recipe = Recipe.resolve(claim.recipe.document)
    pins = frozenset[int]() if isinstance(recipe.replay, NoReplay) else claim.pinned
    before = state_of(store.blobs, claim.parent)
    with store.reading() as tx:
        eligible = tx.buffer.eligible(claim.model, seen=before.seen, through=claim.cycle.through)
        past = _Past.of(before, pins, frozenset(tx.buffer.accepted(claim.model)))
        old = tx.buffer.training_set(claim.model, [*past.replayed, *past.pinned, *past.released, *past.asked])
        holds = _holds(store, tx, claim, recipe)
        anew = claim.parent is None and CHAMPION in tx.ledger.pointed(claim.model)
    first = claim.cycle.trigger is CycleTrigger.INITIAL_WEIGHTS
    if not eligible and not first:
        return None
    if recipe.initial_weights is not None and claim.parent is None and not (first or anew):
        raise InvalidWeights("version 0 is not there to start from: resume the model, which makes it anew")
    used = sorted([*old, *eligible], key=lambda megabatch: megabatch.number)
    new = frozenset(m.number for m in eligible)
    whole = {m.number: np.ones(m.examples, dtype=np.bool_) for m in old if m.number in past.released}
    given = CycleInput(
        recipe=recipe,
        input=claim.model.input,
        parent=_parent(store, claim.parent, before),
        attempt=claim.cycle.attempt,
        megabatches=_examples(store, {megabatch.number: megabatch for megabatch in used}),
        new=new,
        untested=frozenset(m.number for m in eligible if m.prequential is None),
        replay=_replayed(before, {m.number: m for m in old if m.number in past.replayed}) | whole,
        pinned=past.pinned | (pins & new),
        evaluation=_examples(store, {0: claim.evaluation})[0] if claim.evaluation else None,
        holds=holds,
        scale=scale_of(claim.cycle.attempt),
        initial=_initial_weights(store, recipe) if first or (anew and recipe.initial_weights) else None,
        architecture=_architecture(settings, recipe),
    )
    return _Work(given, before, given.new, used)


def _replayed(before: State, megabatches: Mapping[int, Megabatch]) -> dict[int, npt.NDArray[np.bool_]]:
    """The rows of the parent's replay buffer that are there still."""
    rows = {number: present_rows(before.replay[number], megabatch) for number, megabatch in megabatches.items()}
    return {number: mask for number, mask in rows.items() if mask.any()}


def _parent(store: Store, version: Version | None, state: State) -> Parent | None:
    if version is None:
        return None
    saved = checkpoint.decode(store.blobs.read(version.checkpoint))
    history = _history(state) if version.verdict.passed else _history(state).pardoned()  # promoted by hand
    classes = len(saved.manifest["input"]["classes"])
    return Parent(saved.arrays, saved.masks, version.stage, version.depth, _statistics(saved), history, classes)


def _history(state: State) -> History:
    return History.from_document(state.history) if state.history else History()


def _holds(store: Store, tx: Transaction, claim: Claim, recipe: Recipe) -> tuple[Hold, ...]:
    """What holds pruning beside the parent's history: guardrails that tripped on an attempt that is in no lineage."""
    withheld = tx.ledger.held_since(claim.model, claim.cycle.parent)
    if withheld is not None:
        return _history(state_of(store.blobs, withheld)).holds
    before = tx.ledger.attempt_before(claim.cycle)
    if before is None or before.state is not CycleState.FAILED:
        return ()
    trip = diverged(recipe.guardrails, before.reason or "")
    return (hold_since(trip),) if trip and trip.action in HOLDING else ()


def _statistics(saved: checkpoint.Checkpoint) -> NormalisationState | None:
    if not saved.normalisation:
        return None
    return NormalisationState(saved.normalisation["mean"], saved.normalisation["std"])


def _examples(store: Store, found: Mapping[int, Megabatch | EvaluationSet]) -> list[Examples]:
    """By number, verified and mapped side by side; labels and ids are mapped while they are looked at."""
    mapped = side_by_side([partial(store.blobs.verified, each.x) for each in found.values()])
    return [
        Examples(number, x, *(_column(store, digest, each.examples) for digest in (each.y, each.ids)))
        for (number, each), x in zip(found.items(), mapped, strict=True)
    ]


def _column(store: Store, digest: Digest, length: int) -> Column:
    return Column(partial(store.blobs.verified, digest), length)


def _initial_weights(store: Store, recipe: Recipe) -> Mapping[str, np.ndarray]:
    assert recipe.initial_weights is not None
    weights: dict[str, np.ndarray] = load_safetensors(store.blobs.read(recipe.initial_weights))
    return weights


def _architecture(settings: Settings, recipe: Recipe) -> Callable[..., torch.nn.Module] | None:
    """The user's own network factory, by the name that the recipe gives it.

    Raises:
        InvalidRecipe: this worker does not know it, or cannot import it.
    """
    if not isinstance(recipe.network, Custom):
        return None
    place = settings.architectures.get(recipe.network.architecture, "")
    module, _, factory = place.partition(":")
    try:
        found: Callable[..., torch.nn.Module] = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRecipe(
            f"this worker cannot load architecture {recipe.network.architecture!r} from {place or 'nowhere'!r} "
            f"({error}): set ESPALIER_ARCHITECTURES alike on the server and its workers"
        ) from error
    return found


# -- learn -------------------------------------------------------------------------------------------------------------


def _learn(store: Store, work: _Work, watch: Watch, device: torch.device) -> CycleResult:
    if work.given.initial is not None:
        return initial_version(work.given, device=device)
    return run_cycle(work.given, device=device, observe=watch, snapshot=_snapshot(store, watch, device))


def _snapshot(store: Store, watch: Watch, device: torch.device) -> bytes | None:
    """The snapshot to go on from; one that was taken under another torch, device kind or thread count is left, and
    the log says so.
    """
    if watch.snapshot is None:
        return None
    try:
        saved = store.blobs.read(watch.snapshot)
        why = snapshot_fits(saved, device)
    except (MissingBlob, CorruptBlob) as gone:
        why = str(gone)
    if why is None:
        return saved
    cycle = watch.claim.cycle
    with store.transaction(watch.running.actor) as tx:
        tx.audit.append("cycle.restarted", model=cycle.model, reason=why, parameters={"cycle": cycle.number})
    return None


# -- publish -----------------------------------------------------------------------------------------------------------


def _draft(
    store: Store, claim: Claim, work: _Work, result: CycleResult, seconds: Mapping[Phase, float], device: torch.device
) -> VersionDraft:
    """Encode and keep the checkpoint and the state: blobs first, the row later."""
    verdict = settled(store, claim, result.verdict, result.trips)
    manifest = _manifest(claim, work, result, device)
    scaling = result.normalisation
    normalisation = {"mean": scaling.mean, "std": scaling.std} if scaling else None
    data = checkpoint.encode(dict(result.arrays), dict(result.masks), manifest, normalisation)
    dense = checkpoint.encode_dense(checkpoint.decode(data))
    digest = store.blobs.put(data)
    state = keep_state(
        store.blobs, work.before.advanced(work.new, result.replay, result.history.document(), work.given.pinned)
    )
    timed = {f"{phase.value}_seconds": value for phase, value in seconds.items()}
    return VersionDraft(
        status=VersionStatus.PUBLISHED if result.verdict.passed else VersionStatus.WITHHELD,
        stage=result.stage,
        depth=result.depth,
        target_density=result.target_density,
        kept=result.kept,
        total=result.total,
        layers=result.layers,
        metrics={**result.metrics, **timed},
        verdict=verdict,
        checkpoint=digest,
        checkpoint_bytes=len(data),
        dense=sha256_digest(dense),
        dense_bytes=len(dense),
        mask_digest=checkpoint.mask_digest(dict(result.masks)),
        state=state,
        megabatches=len(result.trained),
        manifest=manifest,
        report=result.report,
        uses={number: Use.TRAINED | (Use.NEW if number in work.new else 0) for number in result.trained},
    )


def _manifest(claim: Claim, work: _Work, result: CycleResult, device: torch.device) -> dict[str, Any]:
    """What a checkpoint says of itself. No times: the same cycle gives the same bytes, killed and resumed or not."""
    recipe = work.given.recipe
    return {
        "format": checkpoint.FORMAT,
        "model": claim.model.name,
        "version": claim.next_version,
        "parent": claim.parent.number if claim.parent else None,
        "parent_checkpoint": claim.parent.checkpoint if claim.parent else None,
        "stage": result.stage,
        "depth": result.depth,
        "cycle": claim.cycle.number,
        "recipe_revision": claim.recipe.revision,
        "recipe_digest": claim.recipe.digest,
        "recipe": recipe.document(),
        "input": describe_input(_complete(claim.model.input)),
        "network": recipe.network.model_dump(mode="json"),
        "layers": [{"name": y.name, "shape": list(y.shape), "kept": y.kept, "total": y.total} for y in result.layers],
        "density": {"target": result.target_density, "kept": result.kept, "total": result.total},
        "metrics": dict(result.metrics),
        "mask_digest": checkpoint.mask_digest(dict(result.masks)),
        "values": recipe.checkpoint.values,
        "seed": recipe.seed,
        "attempt": claim.cycle.attempt,
        "megabatches": len(result.trained),
        "evaluation_set": claim.evaluation.digest if claim.evaluation else None,
        "environment": {
            "torch": torch.__version__,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "espalier": __version__,
            "zstd": ZSTD,
        },
    }


def _complete(spec: InputSpec) -> InputSpec:
    assert spec.complete, "a cycle runs after the first megabatch, which completes the input spec"
    return spec


def _publish(store: Store, watch: Watch, claim: Claim, work: _Work, result: CycleResult, draft: VersionDraft) -> None:
    name = claim.model.name
    trained = [megabatch for megabatch in work.examples if megabatch.number in result.trained]
    with store.transaction(watch.running.actor) as tx:
        model = tx.ledger.lock_model(name)
        version = tx.ledger.publish_version(claim, draft)
        for number, seen in result.prequential.items():
            assert claim.parent is not None, "only a parent can be tested on arrival"
            tested = Prequential(claim.parent.number, seen.accuracy, seen.loss, seen.examples)
            tx.buffer.record_prequential(model, number, tested)
        for event in result.events:
            tx.audit.append(event.kind, model=name, parameters={"cycle": claim.cycle.number, **event.parameters})
        tx.audit.append(
            f"version.{draft.status.value}",
            model=name,
            reason="; ".join(draft.verdict.reasons) or None,
            parameters={
                "cycle": claim.cycle.number,
                "version": version.number,
                "parent": version.parent,
                "stage": version.stage,
                "kept": version.kept,
                "total": version.total,
                "megabatches": [megabatch.number for megabatch in trained],
                "new": sorted(work.new),
                "mask_digest": version.mask_digest,
                "metrics": dict(result.metrics),
            },
            inputs=[megabatch.digest for megabatch in trained],
            outputs=[version.checkpoint, version.state],
        )
        if draft.verdict.passed:
            promote_passed(tx, model, version)
        else:
            carry_out(store, tx, model, claim, version, result.trips, held=work.held)
    crash.point("cycle.published")
    watch.discard()
