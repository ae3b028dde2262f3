"""Lineages of versions as cycles leave them, without training: real checkpoints, masks that only shrink, the log's
entries of every cycle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from app.domain import (
    CHAMPION,
    Actor,
    CycleTrigger,
    InputSpec,
    Layer,
    MegabatchDraft,
    Model,
    Normalisation,
    Verdict,
    Version,
    VersionDraft,
    VersionStatus,
)
from app.service.state import State, encode_state
from app.store.database import Store
from app.store.numbers import Numbers
from espalier.formats import checkpoint
from espalier.formats.canonical import sha256_digest
from tests.builders import digest_of

WORKER = Actor("worker-1", "request-9")
RECIPE: dict[str, Any] = {
    "seed": 7,
    "network": {"name": "mlp", "hidden": []},
    "criterion": {"name": "magnitude"},
    "schedule": {"name": "factor", "target": 0.1, "stages": 8},
    "training": {"epochs": 2, "optimizer": {"name": "sgd", "momentum": 0.9}},
    "replay": {"name": "class-balanced", "examples": 100},
    "guardrails": [{"name": "accuracy-drop", "at_most": 0.02, "then": "hold"}],
}
INPUT = InputSpec((32,), "float32", ("cat", "dog|<b>", "owl"), Normalisation("none"))


@dataclass
class Lineage:
    """Publishes one version after another of one model."""

    store: Store
    name: str = "gas"
    classes: int = 3
    width: int = 32
    model: Model = field(init=False)
    mask: np.ndarray = field(init=False)
    last: Version | None = None

    def __post_init__(self) -> None:
        with self.store.transaction(WORKER) as tx:
            self.model = tx.ledger.create_model(self.name, RECIPE, digest_of("recipe"), INPUT)
            tx.audit.append("model.created", model=self.name, parameters={"recipe": RECIPE})
        self.mask = np.ones((self.classes, self.width), dtype=np.bool_)

    def publish(self, *, prune: int = 2, passed: bool = True, failed_first: bool = False, steps: int = 1) -> Version:
        """One megabatch and the cycle that it starts; ``prune`` weights fall, in ``steps`` pruning steps."""
        store, name = self.store, self.name
        digest = self._megabatch()
        with store.transaction(WORKER) as tx:
            claim = tx.ledger.claim_cycle("worker-1", 60)
            assert claim is not None
            cycle = claim.cycle.number
            tx.audit.append("cycle.started", model=name, parameters={"cycle": cycle})
        if failed_first:
            with store.transaction(WORKER) as tx:
                self._step(tx, cycle, self.mask, np.zeros_like(self.mask))
                tx.audit.append("cycle.failed", model=name, parameters={"cycle": cycle}, reason="the power went")
        before, masks = self.mask, [self.mask]
        for _ in range(steps if prune else 0):
            after = masks[-1].copy()
            after.reshape(-1)[np.flatnonzero(after)[-prune:]] = False
            masks.append(after)
        mask = masks[-1]
        draft, total = self._draft(claim, mask, passed), mask.size
        with store.transaction(WORKER) as tx:
            tx.ledger.lock_model(name)
            version = tx.ledger.publish_version(claim, draft)
            for one, other in pairwise(masks):
                self._step(tx, cycle, one, other)
            tx.audit.append("cycle.judged", model=name, parameters={"cycle": cycle, "passed": passed})
            tx.audit.append(
                f"version.{draft.status.value}",
                model=name,
                parameters={
                    "cycle": cycle,
                    "version": version.number,
                    "parent": version.parent,
                    "kept": version.kept,
                    "total": total,
                    "mask_digest": version.mask_digest,
                    "megabatches": [version.megabatches],
                },
                inputs=[digest],
                outputs=[version.checkpoint, version.state],
            )
            if passed:
                alias = tx.ledger.move_alias(self.model, CHAMPION, version.number, expected_revision=None, reason="ok")
                moved = {"alias": CHAMPION, "revision": alias.revision, "from": version.parent, "to": version.number}
                tx.audit.append("alias.moved", model=name, reason="ok", parameters=moved)
        if passed:
            self.mask, self.last = mask, version
        else:
            self.mask = before
        return version

    def extend(self) -> None:
        """Add a class: the network's head grows."""
        self.classes += 1
        self.mask = np.concatenate([self.mask, np.ones((1, self.width), dtype=np.bool_)])
        with self.store.transaction(WORKER) as tx:
            tx.audit.append("model.classes-extended", model=self.name, parameters={"added": ["fox"]})

    def _megabatch(self) -> str:
        with self.store.transaction(WORKER) as tx:
            model = tx.ledger.lock_model(self.name)
            content = f"{self.name} {tx.buffer.last_number(model) + 1}"
            x, y, ids = (self.store.blobs.put(f"{content} {part}".encode()) for part in ("x", "y", "ids"))
            draft = MegabatchDraft(digest_of(content), x, y, ids, examples=9, bytes=400, histogram=(3, 3, 3))
            taken, _ = tx.buffer.add_megabatch(model, draft)
            tx.ledger.enqueue_cycle(model, CycleTrigger.MEGABATCHES, taken.number)
            tx.audit.append("megabatch.accepted", model=self.name, parameters={"megabatch": taken.number})
        return draft.digest

    def _step(self, tx: Any, cycle: int, before: np.ndarray, after: np.ndarray) -> None:
        digests = [checkpoint.mask_digest({"0.weight": mask}) for mask in (before, after)]
        parameters = {"cycle": cycle, "mask_digest_before": digests[0], "mask_digest_after": digests[1]}
        layers = {"layers": [{"name": "0.weight", "kept_before": int(before.sum()), "kept": int(after.sum())}]}
        tx.audit.append("mask.pruned", model=self.name, parameters={**parameters, **layers, "threshold": 0.25})

    def _draft(self, claim: Any, mask: np.ndarray, passed: bool) -> VersionDraft:
        parent, kept, total = claim.parent, int(mask.sum()), mask.size
        weight = np.random.default_rng(claim.next_version).normal(size=mask.shape).astype(np.float32)
        arrays = {"0.weight": np.where(mask, weight, np.float32(0)), "0.bias": np.zeros(len(mask), np.float32)}
        layers = (Layer("0.weight", mask.shape, kept, total),)
        manifest = {
            "model": self.name,
            "version": claim.next_version,
            "parent": parent.number if parent else None,
            "parent_checkpoint": parent.checkpoint if parent else None,
            "cycle": claim.cycle.number,
            "recipe": RECIPE,
            "input": {"shape": [self.width], "dtype": "float32", "classes": list(INPUT.classes or ())},
            "network": RECIPE["network"],
            "density": {"target": 0.5, "kept": kept, "total": total},
            "seed": 7,
            "evaluation_set": None,
            "environment": {"torch": "2.13.0+cpu", "device": "cpu", "threads": 1, "espalier": "0.1.0"},
        }
        data = checkpoint.encode(arrays, {"0.weight": mask}, manifest)
        dense = checkpoint.encode_dense(checkpoint.decode(data))
        stage = (parent.stage if parent else 0) + 1
        return VersionDraft(
            status=VersionStatus.PUBLISHED if passed else VersionStatus.WITHHELD,
            stage=stage,
            depth=stage,
            target_density=0.5,
            kept=kept,
            total=total,
            layers=layers,
            metrics={"validation_accuracy": 0.75, "train_accuracy": 0.8},
            verdict=Verdict(passed, () if passed else ("accuracy fell by 0.1",), "" if passed else "withhold"),
            checkpoint=self.store.blobs.put(data),
            checkpoint_bytes=len(data),
            dense=sha256_digest(dense),
            dense_bytes=len(dense),
            mask_digest=checkpoint.mask_digest({"0.weight": mask}),
            state=self.store.blobs.put(encode_state(State(Numbers(range(1, claim.cycle.through + 1))))),
            megabatches=claim.cycle.through,
            manifest=manifest,  # as a cycle leaves it: floats are strings in the checkpoint alone
            report={"validation_by_class": {"examples": [4, 5, 0], "accuracy": [0.75, 0.8, None]}},
        )
