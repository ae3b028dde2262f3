"""Builders: the shortest way to a model, a megabatch, a cycle, a version. Each commits its own audited transaction."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from app.domain import (
    CHAMPION,
    Actor,
    Claim,
    Cycle,
    CycleTrigger,
    Digest,
    EvaluationSet,
    InputSpec,
    Layer,
    Megabatch,
    MegabatchDraft,
    Model,
    Normalisation,
    Verdict,
    Version,
    VersionDraft,
    VersionStatus,
)
from app.store.database import Store

ACTOR = Actor("tester", "request-1")

INPUT = InputSpec((4,), "float32", ("cat", "dog"), Normalisation("first-megabatch"))


def digest_of(text: str) -> Digest:
    """A digest that differs with the text; nothing has it as its bytes."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def make_model(
    store: Store, name: str = "gas", *, recipe: dict[str, Any] | None = None, input: InputSpec = INPUT
) -> Model:
    document = {"preset": "espalier", "seed": 7} if recipe is None else recipe
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.create_model(name, document, digest_of(repr(document)), input)
        tx.audit.append("model.created", model=name)
    return model


def megabatch_draft(store: Store, content: str) -> MegabatchDraft:
    """A draft whose three blobs are there, though they hold no arrays."""
    x, y, ids = (store.blobs.put(f"{content} {part}".encode()) for part in ("x", "y", "ids"))
    return MegabatchDraft(digest_of(content), x, y, ids, examples=10, bytes=400, histogram=(4, 6))


def make_megabatch(store: Store, model: Model, content: str | None = None) -> Megabatch:
    with store.transaction(ACTOR) as tx:
        draft = megabatch_draft(store, content or f"{model.name} {tx.buffer.last_number(model) + 1}")
        megabatch, new = tx.buffer.add_megabatch(model, draft)
        if new:
            tx.audit.append("megabatch.accepted", model=model.name)
    return megabatch


def make_evaluation(store: Store, model: Model, content: str = "evaluation") -> EvaluationSet:
    with store.transaction(ACTOR) as tx:
        found, new = tx.buffer.set_evaluation(model, megabatch_draft(store, content))
        if new:
            tx.audit.append("evaluation.set", model=model.name)
    return found


def make_pin(store: Store, model: Model, number: int, *, pinned: bool = True) -> Megabatch:
    with store.transaction(ACTOR) as tx:
        megabatch, changed = tx.buffer.pin(model, number, pinned=pinned)
        if changed:
            tx.audit.append("megabatch.pinned", model=model.name)
    return megabatch


def make_cycle(store: Store, model: Model, *, trigger: CycleTrigger = CycleTrigger.MANUAL, through: int = 0) -> Cycle:
    with store.transaction(ACTOR) as tx:
        cycle = tx.ledger.enqueue_cycle(model, trigger, through)
        tx.audit.append("cycle.requested", model=model.name)
    return cycle


def claim(store: Store, worker: str = "worker-1", lease_seconds: float = 60.0) -> Claim | None:
    with store.transaction(ACTOR) as tx:
        claimed = tx.ledger.claim_cycle(worker, lease_seconds)
        if claimed is not None:
            tx.audit.append("cycle.started", model=claimed.model.name)
    return claimed


def version_draft(store: Store, content: str, *, passed: bool = True, stage: int = 1, kept: int = 6) -> VersionDraft:
    return VersionDraft(
        status=VersionStatus.PUBLISHED if passed else VersionStatus.WITHHELD,
        stage=stage,
        depth=stage,
        target_density=0.6,
        kept=kept,
        total=10,
        layers=(Layer("body.0.weight", (2, 5), kept, 10),),
        metrics={"validation_accuracy": 0.1 + 0.2, "generalization_gap": -1e-17},
        verdict=Verdict(passed, () if passed else ("accuracy fell by 0.1",)),
        checkpoint=store.blobs.put(f"checkpoint {content}".encode()),
        checkpoint_bytes=40,
        dense=digest_of(f"dense {content}"),
        dense_bytes=400,
        mask_digest=digest_of(f"mask {content}"),
        state=store.blobs.put(f"state {content}".encode()),
        megabatches=1,
        manifest={"format": "espalier-sparse-1", "layers": []},
    )


def publish(store: Store, claimed: Claim, *, passed: bool = True, champion: bool = True) -> Version:
    name = claimed.model.name
    draft = version_draft(store, f"{name} {claimed.next_version}", passed=passed)
    with store.transaction(ACTOR) as tx:
        version = tx.ledger.publish_version(claimed, draft)
        tx.audit.append("version.published", model=name, outputs=[version.checkpoint])
        if passed and champion:
            tx.ledger.move_alias(claimed.model, CHAMPION, version.number, expected_revision=None, reason="passed")
            tx.audit.append("alias.moved", model=name)
    return version


def make_version(
    store: Store,
    model: Model,
    *,
    passed: bool = True,
    champion: bool = True,
    trigger: CycleTrigger = CycleTrigger.MANUAL,
) -> Version:
    """Enqueue, claim and publish one cycle. No other cycle may be waiting."""
    cycle = make_cycle(store, model, trigger=trigger)
    claimed = claim(store)
    assert claimed is not None
    assert (claimed.model.name, claimed.cycle.number) == (model.name, cycle.number)
    return publish(store, claimed, passed=passed, champion=champion)
