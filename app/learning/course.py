"""Course: what is known so far in one cycle, and the snapshot of it that an observer may take.

Knows: network, mask, fit and events of one cycle, and each thing that a cycle does to them. Must never know: in which
order they are done (``cycle``), HTTP, SQL, files, the clock.

Laws:
    * A snapshot holds all that the plan does not say: a course that is taken up from it goes on with the same bits.
    * Every mask lies within the one before it and keeps as many weights as planned; what is scored and trained is the
      parent's. A breach raises ``InvariantBroken``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.domain import Event, Phase, Progress
from app.errors import InvariantBroken
from app.learning import guardrails
from app.learning import snapshot as snapshots
from app.learning.architectures import prunable_parameters
from app.learning.drift import Drift
from app.learning.evaluation import evaluate
from app.learning.flops import flops_of
from app.learning.mask import Mask
from app.learning.metrics import Arrival, Measured, figures
from app.learning.metrics import report as report_of
from app.learning.monitors import arrived, gap_rise
from app.learning.optimizers import minibatch_bounds
from app.learning.plan import Plan
from app.learning.recipe import SnipAbsolute, Taylor
from app.learning.records import answered, fell, standing, used
from app.learning.reports import (
    ancestor_of,
    check_finite,
    exported,
    next_history,
    pruning_report,
    rounded_as,
    training_report,
)
from app.learning.result import CycleResult, Observer
from app.learning.running import RunningScores
from app.learning.schedules import kept_at, pruning_steps
from app.learning.scoring import Ranking, Sample, rank, rank_running
from app.learning.training import Fit

_PHASES = tuple(Phase)


class Course:
    """What is known so far in one cycle, and the snapshot of it that an observer may take."""

    def __init__(self, plan: Plan, observe: Observer, snapshot: bytes | None, events: list[Event]) -> None:
        self.plan, self._observe = plan, observe
        self.network = plan.network()
        self.prunable = prunable_parameters(self.network)
        self.phase, self.events = Phase.ARRIVAL, events
        self.tested, self.drift = dict[int, Arrival](), dict[int, Drift]()
        parent = plan.given.parent
        self.before = Mask.from_arrays(parent.masks, self.prunable) if parent else Mask.full(self.prunable)
        self.mask = self.before
        if not self.mask.holds(self.prunable):
            raise InvariantBroken("the parent's pruned weights are not zero")
        self.falls = standing(self.mask)
        self.scored = np.zeros(len(plan.training), dtype=np.bool_)
        self.pruned = 0
        self._aim()
        if snapshot is not None:
            self._restore(*snapshots.decode(snapshot))

    @property
    def planned(self) -> int:
        """Weights that are kept at the end of the cycle."""
        return min(self.before.kept, kept_at(self.step.density, self.before.total))

    def at(self, phase: Phase) -> bool:
        """Enter a phase, unless a snapshot was taken later; says whether there is work to do in it."""
        if _PHASES.index(phase) < _PHASES.index(self.phase):
            return False
        self.phase = phase
        self.pulse()
        return True

    def pulse(self, loss: float | None = None) -> None:
        """Let the observer look."""
        fit = self.fit
        self._observe(
            Progress(self.phase, fit.epoch, fit.epochs, fit.step, fit.steps, loss, self.mask.density), self._snapshot
        )

    def record(self, kind: str, parameters: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append(Event(kind, parameters))

    def meet(self, number: int, champion: nn.Module) -> None:
        """Let the champion answer a new megabatch, and look how far it lies from the past."""
        answers = evaluate(champion, self.plan.megabatch(number), self.pulse)
        drift = arrived(self.plan, number, answers, champion, self.pulse)
        if number in self.plan.given.untested:
            self.tested[number] = Arrival.of(answers)
        self.drift[number] = drift

    def heed(self) -> None:
        """Hold the density in this cycle, where what has arrived makes a guardrail trip that asks for it."""
        plan = self.plan
        hold = guardrails.held_on_arrival(plan.recipe.guardrails, plan.given.history, self.drift)
        if hold is not None:
            self._aim(hold)

    def begin(self) -> None:
        """Check that what is about to be scored and trained is the parent's, and say so when density is held.

        Raises:
            InvariantBroken: when it is not.
        """
        self._check_start()
        if self.step.held and not self._recorded("mask.held"):
            self.record("mask.held", {"stage": self.step.stage, "density": self.mask.density, "reason": self.step.held})

    def to_come(self) -> Iterator[tuple[int, int]]:
        """Pruning steps that are still to be made: (optimizer steps before it, weights kept after it)."""
        while self.pruned < len(self.steps):
            yield self.steps[self.pruned]

    def train_to(self, step: int) -> None:
        """Train until so many optimizer steps are done."""
        if step:
            self.at(Phase.TRAIN)
        self.fit.run_to(step, self.pulse)

    def prune(self, kept: int) -> None:
        """Score, take over the next mask, and record the step.

        Raises:
            InvariantBroken: when a law of the module does not hold afterwards.
        """
        ranking = self._ranking(kept)
        scored = self._scored(ranking)
        before, self.mask = self.mask, ranking.selection.mask
        self.fit.shrink(self.mask)
        self.pruned += 1
        fell(self.falls, before, self.mask, self.pruned)
        self.scored |= scored
        if self.mask.kept != kept or not self.mask.is_subset_of(before) or not self.fit.trains(self.prunable):
            raise InvariantBroken(f"{self.mask.kept} weights are kept where {kept} were planned, or others are trained")
        if self.pruned == len(self.steps):
            self.fit.settle()
        self.record(
            "mask.pruned",
            pruning_report(self.plan, self.step, self.fit, self.steps, self.pruned, before, ranking, scored),
        )
        self.pulse()

    def end_training(self) -> None:
        """Settle on the weights to publish.

        Raises:
            TrainingDiverged: when a tensor is not finite: the last optimizer step has no loss after it that would tell.
            LearningFailed: when a weight is too large for what the recipe rounds to.
        """
        self.fit.finish(self.pulse)
        check_finite(self.network)
        self.record(
            "network.trained", training_report(self.plan, self.step, self.fit, self.mask, self.planned) | self._round()
        )

    def measure(self) -> Measured:
        """Everything that is to be known of the trained network."""
        plan = self.plan
        validation = plan.answers(self.network, plan.verdict, self.pulse)
        asked = plan.answers(self.network, plan.asked, self.pulse)
        example, _ = plan.training.gather(torch.zeros(1, dtype=torch.int64))
        agreements = [e.parameters["mask_agreement"] for e in self.events if "mask_agreement" in e.parameters]
        measured = Measured(
            training=evaluate(self.network, plan.training, self.pulse), validation=validation,
            champion=plan.champion_answers(self.pulse), retained=plan.retained(asked),
            new=plan.given.new, evaluation=plan.answers(self.network, plan.evaluation, self.pulse), tested=self.tested,
            flops=flops_of(self.network, self.prunable, self.mask, example), agreement=min(agreements, default=None),
            unrounded=self.unrounded, asked=asked, drift=self.drift,
        )  # fmt: skip
        here = ancestor_of(self.step.stage, self.mask.density, measured)
        return replace(measured, gap=gap_rise(plan.given.history, here, plan.recipe.monitoring.gap))

    @property
    def unrounded(self) -> float | None:
        """Accuracy on the verdict's rows before the weights were rounded; None where they are not."""
        figures = [e.parameters.get("unrounded_validation_accuracy") for e in self.events]
        return next((accuracy for accuracy in figures if accuracy is not None), None)

    def evidence(self, measured: Measured) -> guardrails.Evidence:
        """What guardrails judge by."""
        return guardrails.Evidence(
            measured, self.mask.layers, self.plan.given.history, self.fit.first_loss, self.fit.loss, self.plan.notes
        )

    def result(self, measured: Measured, judgement: guardrails.Judgement) -> CycleResult:
        """The candidate version.

        Raises:
            InvariantBroken: when the density is not the planned one.
        """
        plan, mask = self.plan, self.mask
        if mask.kept != self.planned or not mask.is_subset_of(self.before):
            raise InvariantBroken(f"{mask.kept} weights are kept at the end where {self.planned} were planned")
        buffer = plan.next_buffer(self.network, self.pulse)
        self.record("replay.kept", plan.composition(buffer))
        history = next_history(plan, self.step.stage, mask.density, measured, judgement)
        fit = {"examples_seen": float(self.fit.examples_seen), "epochs": float(self.fit.epoch),
               "best_epoch": float(self.fit.best.epoch + 1 if self.fit.best else self.fit.epoch)}  # fmt: skip
        metrics, report = figures(measured, history) | fit, report_of(measured, history)
        verdict = judgement.verdict
        self.record("cycle.judged", {"passed": verdict.passed, "action": verdict.action,
                                     "reasons": list(verdict.reasons), "rules": list(judgement.rules),
                                     "metrics": metrics, "report": report})  # fmt: skip
        return CycleResult(
            arrays=exported(self.network, mask), masks=mask.arrays(), normalisation=plan.normalisation,
            stage=self.step.stage, depth=plan.depth, target_density=self.step.density, layers=mask.layers,
            kept=mask.kept, total=mask.total, metrics=metrics, verdict=judgement.verdict, prequential=dict(self.tested),
            events=tuple(self.events), trained=plan.trained, replay=buffer, history=history, report=report,
            samples=used(plan, self.fit.shown(self.fit.step), self.scored, buffer),
            answers=answered((plan.asked, measured.asked), (plan.evaluation, measured.evaluation)), falls=self.falls,
            trips=judgement.trips, drift=dict(self.drift),
        )  # fmt: skip

    def _round(self) -> dict[str, Any]:
        """Round the kept weights in place, as the recipe says: what is measured and judged is what is published.

        Nothing looks at the cycle between the first weight and the last, so no snapshot holds some of each.
        """
        values = self.plan.recipe.checkpoint.values
        if values == "float32":
            return {}
        exact = self.plan.answers(self.network, self.plan.verdict, self.pulse)
        with torch.no_grad():
            for name, weight in self.prunable.items():
                weight.copy_(torch.from_numpy(rounded_as(name, weight.detach().cpu().numpy(), values)))
        return {"values": values, "unrounded_validation_accuracy": exact.accuracy if exact else None}

    def _aim(self, hold: str | None = None) -> None:
        """Settle what this cycle does to the density, and when.

        Args:
            hold: why it is to be held by what has arrived, if it is.
        """
        plan = self.plan
        self.step = plan.step(self.before, hold)
        self.fit = self._new_fit()
        self.steps = pruning_steps(
            plan.recipe.pace, self.fit.steps, self.before.kept, self.planned,
            getattr(plan.recipe.criterion, "iterations", 1),
        )  # fmt: skip

    def _new_fit(self) -> Fit:
        plan, criterion = self.plan, self.plan.recipe.criterion
        running = RunningScores(self.prunable, criterion.decay) if isinstance(criterion, Taylor) else None
        fit = Fit(
            self.network, self.prunable, self.mask, plan.training, plan.selection, plan.recipe.training, plan.seed,
            plan.order, running,
        )  # fmt: skip
        if self.planned == self.before.kept:
            fit.settle()
        return fit

    def _ranking(self, kept: int) -> Ranking:
        plan, recipe = self.plan, self.plan.recipe
        if self.fit.running is not None and self.fit.running.updates:
            return rank_running(self.fit.running, recipe.distribution, self.mask, kept)
        purpose = f"scores-{self.pruned}"
        order = plan.sample(len(plan.training), purpose)
        criterion, size = recipe.criterion, plan.sample_size
        if isinstance(criterion, Taylor):  # a cycle of one optimizer step: the same gradients, taken before it
            criterion, size = SnipAbsolute(), len(order)
        ranking = rank(
            criterion, recipe.distribution, self.network, self.prunable, self.mask, kept,
            Sample(size, order, self._minibatches), plan.seed(purpose),
        )  # fmt: skip
        self._check_start()
        return ranking

    def _scored(self, ranking: Ranking) -> npt.NDArray[np.bool_]:
        """Which training rows the scores were computed on: (n,) bool."""
        if ranking.positions is None:  # by training itself
            return self.fit.shown(self.fit.step)
        rows = np.zeros(len(self.plan.training), dtype=np.bool_)
        rows[ranking.positions.numpy()] = True
        return rows

    def _check_start(self) -> None:
        """Before anything is pruned or trained, the weights are the parent's, or the initial ones."""
        source = self.plan.given.parent.arrays if self.plan.given.parent else self.plan.given.initial
        if source is None or self.pruned or self.fit.step:
            return
        for name, weight in self.prunable.items():
            if not np.array_equal(weight.detach().cpu().numpy(), np.asarray(source[name])):
                raise InvariantBroken(f"the scored weights of {name} are not the trained ones")

    def _minibatches(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        bounds = minibatch_bounds(len(positions), self.plan.recipe.training.minibatch) if len(positions) else []
        for minibatch in self.plan.training.minibatches(positions[start:end] for start, end in bounds):
            yield minibatch
            self.pulse()

    def _recorded(self, kind: str) -> bool:
        return any(event.kind == kind for event in self.events)

    def _snapshot(self) -> bytes:
        facts: dict[str, Any] = {
            "subject": self.plan.subject,
            "phase": self.phase.value,
            "tested": {str(number): list(tested) for number, tested in self.tested.items()},
            "drift": {str(number): drift.document() for number, drift in self.drift.items()},
            "events": [[event.kind, event.parameters] for event in self.events],
            "pruned": self.pruned,
        }
        tensors, facts["fit"] = self.fit.state()
        tensors |= {f"mask/{name}": tensor for name, tensor in self.mask.items()}
        tensors |= {f"falls/{name}": torch.from_numpy(steps.view(np.int16)) for name, steps in self.falls.items()}
        tensors["scored"] = torch.from_numpy(self.scored)
        return snapshots.encode(tensors, facts, self.plan.device)

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if facts["subject"] != self.plan.subject:
            raise InvariantBroken("the snapshot was taken in another cycle: start this one anew")
        self.phase, self.pruned = Phase(facts["phase"]), facts["pruned"]
        self.tested = {int(number): Arrival(*tested) for number, tested in facts["tested"].items()}
        self.drift = {int(number): Drift.from_document(drift) for number, drift in facts["drift"].items()}
        if self.phase is not Phase.ARRIVAL:
            self.heed()
        self.events[:] = [Event(kind, parameters) for kind, parameters in facts["events"]]
        self.mask = Mask({name: tensors[f"mask/{name}"].to(self.plan.device) for name in self.prunable})
        self.falls = {name: tensors[f"falls/{name}"].numpy().view(np.uint16) for name in self.prunable}
        self.scored = tensors["scored"].numpy()
        self.fit = self._new_fit()
        self.fit.restore(tensors, facts["fit"])
