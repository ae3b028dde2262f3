"""Training: one cycle from claim to publication. Only the worker imports it, since it imports torch.

Knows: the order of claim, work and publication, when snapshots are kept, and what becomes of the result. Must never
know: HTTP, when cycles are due, what a cycle is given (``gathering``), or how the method works (``app.learning``).

Laws:
    * No transaction is open while the device works: claim (short), learn (long), publish (short).
    * Publication compares fencing token and generation, so a stale worker publishes nothing.
    * A cycle that was killed goes on from its last snapshot and ends with the same bits.
    * A cycle that fails is tried again a bounded number of times, then its model is paused with the reason; others go
    on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch

from app import crash
from app.config import Settings
from app.domain import (
    Claim,
    Cycle,
    Digest,
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
    LearningFailed,
    LeaseLost,
    MissingBlob,
    NothingToTrain,
    TrainingDiverged,
    Unavailable,
)
from app.learning.cycle import (
    CycleResult,
    events_of,
    initial_version,
    run_cycle,
    snapshot_fits,
)
from app.learning.guardrails import diverged
from app.learning.latency import latency_of
from app.learning.recipe import Recipe
from app.service.gathering import Work, gather
from app.service.guardrail_actions import carry_out, settled, tell_trips
from app.service.lease import Running, Stopped, Watch, retrying
from app.service.outcomes import fail, release, supersede
from app.service.outputs import outputs_of
from app.service.promotion import promote_passed
from app.store.database import Store
from espalier.formats import checkpoint
from espalier.formats.canonical import sha256_digest
from espalier.formats.custody import uses_of

log = logging.getLogger(__name__)


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
        log.warning("nothing of cycle %d of %s was published: %s", claim.cycle.number, claim.model.name, lost)
        supersede(store, running.actor, claim, str(lost))
    except Exception as error:
        log.exception("cycle %d of %s could not be ended as it should", claim.cycle.number, claim.model.name)
        passing = isinstance(error, Unavailable)
        retrying(partial(fail, store, settings, running.actor, claim, _told(error), final=False, passing=passing))
    with store.reading() as tx:
        return tx.ledger.cycle(claim.model.name, claim.cycle.number)


def _attempt(
    store: Store, settings: Settings, running: Running, claim: Claim, device: torch.device
) -> Callable[[], None]:
    """Carry a claimed cycle out. Returns the transaction that ends it, whichever end it comes to."""
    watch = Watch(store, settings, running, claim, claim.snapshot)
    work = None
    try:
        work = gather(store, settings, claim, device)
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
        log.warning("cycle %d of %s is left: %s", claim.cycle.number, claim.model.name, lost)
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


# -- learn -------------------------------------------------------------------------------------------------------------


def _learn(store: Store, work: Work, watch: Watch, device: torch.device) -> CycleResult:
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
    store: Store, claim: Claim, work: Work, result: CycleResult, seconds: Mapping[Phase, float], device: torch.device
) -> VersionDraft:
    """Encode and keep what the cycle leaves: blobs first, the row later."""
    verdict, made, put = settled(store, claim, result.verdict, result.trips), outputs_of(work, result), store.blobs.put
    dense = checkpoint.encode_dense(checkpoint.decode(made.checkpoint))
    timed = {f"{phase.value}_seconds": value for phase, value in seconds.items()}
    latency = latency_of(work.given, result.arrays, result.masks, device)
    timed |= {"latency_ms": latency.served, "dense_latency_ms": latency.dense}
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
        checkpoint=put(made.checkpoint),
        checkpoint_bytes=len(made.checkpoint),
        dense=sha256_digest(dense),
        dense_bytes=len(dense),
        mask_digest=checkpoint.mask_digest(dict(result.masks)),
        state=put(made.state),
        megabatches=len(result.trained),
        manifest=made.manifest,
        report=result.report,
        inputs=put(made.inputs),
        samples=put(made.samples),
        answers=put(made.answers),
        falls=put(made.falls),
        uses=uses_of(result.samples),
    )


def _publish(store: Store, watch: Watch, claim: Claim, work: Work, result: CycleResult, draft: VersionDraft) -> None:
    name = claim.model.name
    trained = work.inputs.among(result.trained)
    with store.transaction(watch.running.actor) as tx:
        model = tx.ledger.lock_model(name)
        version = tx.ledger.publish_version(claim, draft)
        for number, seen in result.prequential.items():
            assert claim.parent is not None, "only a parent can be tested on arrival"
            drift = result.drift[number].document()
            tested = Prequential(claim.parent.number, seen.accuracy, seen.loss, seen.examples, drift)
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
                "new": sorted(work.inputs.new),
                "mask_digest": version.mask_digest,
                "metrics": dict(result.metrics),
                "environment": dict(draft.manifest["environment"]),
            },
            inputs=[megabatch.digest for megabatch in trained],
            outputs=[version.checkpoint, version.state, *_records(version)],
        )
        if draft.verdict.passed:
            tell_trips(tx, claim, version, result.trips)
            promote_passed(tx, model, version)
        else:
            carry_out(store, tx, model, claim, version, result.trips, held=work.held)
    crash.point("cycle.published")
    watch.discard()


def _records(version: Version) -> list[Digest]:
    """Blobs that say what a version was made from."""
    return [digest for digest in (version.inputs, version.samples, version.answers, version.falls) if digest]
