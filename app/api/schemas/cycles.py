"""Cycles: attempts to prune, retrain and judge.

Knows: how a cycle is asked for, and how it and its progress look. Must never know: when one is due, or what it does.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.wire import TIME, Asked, Page, Time, example

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
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": None,
}


class NewCycle(Asked):
    """A cycle that is asked for."""

    model_config = example({"reason": "new labels for Monday"}, {})

    reason: str | None = Field(None, description="In words, for the audit log.", max_length=2000)


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

    model_config = example(_CYCLE)

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


class Cycles(Page[Cycle]):
    """Cycles, newest first."""
