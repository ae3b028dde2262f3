"""One cycle: test the champion, score, prune, retrain, evaluate, judge. ``run_cycle`` is the method on one screen.

Knows: the order of things, and what each of them leaves behind. Must never know: HTTP, SQL, files, the clock.

Laws:
    * The same input gives the same result; no global state is read, and torch's generators are left as they were.
    * A cycle that is stopped at any call of its observer and resumed from the snapshot offered there gives the same
      bits: arrays, masks, metrics and events.
    * Masks are nested along a lineage; the counted density is the planned one, to the weight; the scored weights are
      the parent's. Each is checked where it could break, and a breach raises ``InvariantBroken``.
    * The champion is tested on a new megabatch before anything is learned from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.domain import Event, Layer, Phase, Progress, Trip, Verdict
from app.errors import InvalidWeights, InvariantBroken, TrainingDiverged
from app.learning import guardrails
from app.learning import snapshot as snapshots
from app.learning.architectures import prunable_parameters
from app.learning.evaluation import evaluate
from app.learning.flops import flops_of
from app.learning.history import LONGEST, Ancestor, History
from app.learning.mask import Mask
from app.learning.metrics import Arrival, Measured, figures
from app.learning.metrics import report as report_of
from app.learning.normalisation import NormalisationState, fixed_state
from app.learning.optimizers import minibatch_bounds
from app.learning.plan import CycleInput, Parent, Plan, is_finite, starting_network
from app.learning.recipe import SnipAbsolute, Taylor
from app.learning.rows import Examples
from app.learning.running import RunningScores
from app.learning.schedules import kept_at, pruning_steps
from app.learning.scoring import Ranking, Sample, rank, rank_running
from app.learning.scoring import figures as agreement_report
from app.learning.snapshot import snapshot_fits
from app.learning.training import Fit

__all__ = [
    "Arrival",
    "CycleInput",
    "CycleResult",
    "Event",
    "Examples",
    "NormalisationState",
    "Observer",
    "Parent",
    "events_of",
    "initial_version",
    "run_cycle",
    "snapshot_fits",
]

# -- what goes in and what comes out -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CycleResult:
    """A candidate version.

    Attributes:
        arrays: every tensor of the network's ``state_dict``, +0.0 where pruned.
        masks: boolean, of the prunable tensors, in the network's order.
        normalisation: statistics that its clients need, if any.
        stage, depth: the parent's, advanced.
        target_density: what the schedule asked for; ``kept / total`` is what was counted.
        metrics: by name; those without data are absent.
        prequential: by number of the megabatch.
        events: in order.
        trained: numbers of the megabatches that it trained on.
        replay: rows of megabatches in the replay buffer after this cycle, by number: (n,) bool.
        history: what the lineage remembers, this version included.
        report: figures that are no single number: per class, per megabatch, per layer; plain JSON values.
        trips: guardrails that tripped.
    """

    arrays: dict[str, npt.NDArray[Any]]
    masks: dict[str, npt.NDArray[np.bool_]]
    normalisation: NormalisationState | None
    stage: int
    depth: int
    target_density: float
    layers: tuple[Layer, ...]
    kept: int
    total: int
    metrics: dict[str, float]
    verdict: Verdict
    prequential: dict[int, Arrival]
    events: tuple[Event, ...]
    trained: tuple[int, ...]
    replay: dict[int, npt.NDArray[np.bool_]]
    history: History
    report: dict[str, Any]
    trips: tuple[Trip, ...] = ()


class Observer(Protocol):
    """Called at every optimizer step, evaluated chunk and change of phase; may raise to stop the cycle."""

    def __call__(self, progress: Progress, snapshot: Callable[[], bytes]) -> None:
        """Look at the progress; call ``snapshot`` for the bytes to resume from, before returning."""
        ...


# -- the method --------------------------------------------------------------------------------------------------------


def run_cycle(
    given: CycleInput, *, device: torch.device, observe: Observer, snapshot: bytes | None = None
) -> CycleResult:
    """Prune one step further, retrain, judge.

    Args:
        given: the pinned input.
        device: where tensors live.
        observe: see ``Observer``.
        snapshot: where an earlier run of the same cycle stopped; ``snapshot_fits`` says whether it can be used here.

    Raises:
        NothingToTrain: when no training rows are left after the split.
        LearningFailed: when training diverges or the network does not fit its input.
        InvalidWeights: when the parent or the initial weights do not fit the network.
        InvariantBroken: when a law above is broken, or the snapshot belongs to another cycle.

    Whatever it raises carries the events so far: ``events_of``.
    """
    plan, events = Plan(given, device), list[Event]()
    with _carried(events):
        run = _Run(plan, observe, snapshot, events)

        if run.at(Phase.ARRIVAL) and given.parent:  # what production saw: before anything is learned
            champion = plan.champion(run.network)
            for number in sorted(given.untested - run.tested.keys()):
                run.tested[number] = Arrival.of(evaluate(champion, plan.megabatch(number), run.pulse))

        if run.at(Phase.PRUNE):
            run.begin()
        for when, kept in run.to_come():
            run.train_to(when)
            run.prune(kept)
        if run.at(Phase.TRAIN):
            run.train_to(run.fit.steps)
            run.end_training()

        run.at(Phase.JUDGE)
        measured = run.measure()
        judgement = guardrails.judge(given.recipe.guardrails, run.evidence(measured))
        return run.result(measured, judgement)


def events_of(error: BaseException) -> tuple[Event, ...]:
    """What had happened in the cycle that ended with this error, as far as ``run_cycle`` came."""
    events: tuple[Event, ...] = getattr(error, "events", ())
    return events


@contextmanager
def _carried(events: list[Event]) -> Iterator[None]:
    """Let an error take the events so far along; a broken invariant is one of them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InvariantBroken):
            events.append(Event("invariant.broken", {"message": str(error)}))
        vars(error)["events"] = tuple(events)
        raise


def initial_version(given: CycleInput, *, device: torch.device) -> CycleResult:
    """Version 0, from uploaded weights: stage 0, depth 0, density 1; nothing is trained.

    Raises:
        InvalidWeights: when there are none, or they do not fit the network.
    """
    if given.initial is None:
        raise InvalidWeights("there are no initial weights to make version 0 from")
    network = starting_network(replace(given, parent=None), 0, device)
    mask = Mask.full(prunable_parameters(network))
    return CycleResult(
        arrays=_exported(network, mask), masks=mask.arrays(), normalisation=fixed_state(given.input), stage=0, depth=0,
        target_density=1.0, layers=mask.layers, kept=mask.kept, total=mask.total, metrics={}, verdict=Verdict(True),
        prequential={}, events=(), trained=(), replay={}, history=History(), report={},
    )  # fmt: skip


# -- what is known so far ----------------------------------------------------------------------------------------------


_PHASES = tuple(Phase)


class _Run:
    """What is known so far in one cycle, and the snapshot of it that an observer may take."""

    def __init__(self, plan: Plan, observe: Observer, snapshot: bytes | None, events: list[Event]) -> None:
        self.plan, self._observe = plan, observe
        self.network = plan.network()
        self.prunable = prunable_parameters(self.network)
        self.phase, self.events, self.tested = Phase.ARRIVAL, events, dict[int, Arrival]()
        parent = plan.given.parent
        self.before = Mask.from_arrays(parent.masks, self.prunable) if parent else Mask.full(self.prunable)
        self.mask = self.before
        if not self.mask.holds(self.prunable):
            raise InvariantBroken("the parent's pruned weights are not zero")
        self.step = plan.step(self.before)
        self.pruned = 0
        self.fit = self._new_fit()
        self.steps = pruning_steps(
            plan.recipe.pace, self.fit.steps, self.before.kept, self.planned,
            getattr(plan.recipe.criterion, "iterations", 1),
        )  # fmt: skip
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
        before, self.mask = self.mask, ranking.selection.mask
        self.fit.shrink(self.mask)
        self.pruned += 1
        if self.mask.kept != kept or not self.mask.is_subset_of(before) or not self.fit.trains(self.prunable):
            raise InvariantBroken(f"{self.mask.kept} weights are kept where {kept} were planned, or others are trained")
        if self.pruned == len(self.steps):
            self.fit.settle()
        self.record("mask.pruned", _pruning_report(self, before, ranking))
        self.pulse()

    def end_training(self) -> None:
        """Settle on the weights to publish.

        Raises:
            TrainingDiverged: when a tensor is not finite: the last optimizer step has no loss after it that would tell.
        """
        self.fit.finish(self.pulse)
        _check_finite(self.network)
        self.record("network.trained", _training_report(self))

    def measure(self) -> Measured:
        """Everything that is to be known of the trained network."""
        plan = self.plan
        validation = plan.answers(self.network, plan.verdict, self.pulse)
        example, _ = plan.training.gather(torch.zeros(1, dtype=torch.int64))
        agreements = [e.parameters["mask_agreement"] for e in self.events if "mask_agreement" in e.parameters]
        return Measured(
            training=evaluate(self.network, plan.training, self.pulse), validation=validation,
            champion=plan.champion_answers(self.pulse), retained=plan.retained(self.network, self.pulse),
            new=plan.given.new, evaluation=plan.answers(self.network, plan.evaluation, self.pulse), tested=self.tested,
            flops=flops_of(self.network, self.prunable, self.mask, example), agreement=min(agreements, default=None),
        )  # fmt: skip

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
        history = self._history(measured, judgement)
        fit = {"examples_seen": float(self.fit.examples_seen), "epochs": float(self.fit.epoch),
               "best_epoch": float(self.fit.best.epoch + 1 if self.fit.best else self.fit.epoch)}  # fmt: skip
        metrics, report = figures(measured, history) | fit, report_of(measured, history)
        verdict = judgement.verdict
        self.record("cycle.judged", {"passed": verdict.passed, "action": verdict.action,
                                     "reasons": list(verdict.reasons), "rules": list(judgement.rules),
                                     "metrics": metrics, "report": report})  # fmt: skip
        return CycleResult(
            arrays=_exported(self.network, mask), masks=mask.arrays(), normalisation=plan.normalisation,
            stage=self.step.stage, depth=plan.depth, target_density=self.step.density, layers=mask.layers,
            kept=mask.kept, total=mask.total, metrics=metrics, verdict=judgement.verdict, prequential=dict(self.tested),
            events=tuple(self.events), trained=plan.trained, replay=buffer, history=history, report=report,
            trips=judgement.trips,
        )  # fmt: skip

    def _history(self, measured: Measured, judgement: guardrails.Judgement) -> History:
        before, answers, evaluation = self.plan.given.history, measured.validation, measured.evaluation
        new = sum(len(self.plan.examples(number)) for number in self.plan.given.new)
        here = (Ancestor(self.step.stage, self.mask.density, answers.accuracy, len(answers)),) if answers else ()
        best = {n: max(before.best.get(n, 0.0), kept.accuracy) for n, kept in measured.retained.items()}
        return History(
            arrived=before.arrived + new,
            ancestors=(*before.ancestors, *here)[-LONGEST:],
            best=_remembered({**before.best, **best}, measured.retained),
            breaches=judgement.breaches,
            holds=judgement.holds,
            evaluation_errors=before.evaluation_errors + (evaluation.errors if evaluation else 0),
            evaluation_examples=before.evaluation_examples + (len(evaluation) if evaluation else 0),
        )

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
        for start, end in bounds:
            yield self.plan.training.gather(positions[start:end])
            self.pulse()

    def _recorded(self, kind: str) -> bool:
        return any(event.kind == kind for event in self.events)

    def _snapshot(self) -> bytes:
        facts: dict[str, Any] = {
            "subject": self.plan.subject,
            "phase": self.phase.value,
            "tested": {str(number): list(tested) for number, tested in self.tested.items()},
            "events": [[event.kind, event.parameters] for event in self.events],
            "pruned": self.pruned,
        }
        tensors, facts["fit"] = self.fit.state()
        tensors |= {f"mask/{name}": tensor for name, tensor in self.mask.items()}
        return snapshots.encode(tensors, facts, self.plan.device)

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if facts["subject"] != self.plan.subject:
            raise InvariantBroken("the snapshot was taken in another cycle: start this one anew")
        self.phase, self.pruned = Phase(facts["phase"]), facts["pruned"]
        self.tested = {int(number): Arrival(*tested) for number, tested in facts["tested"].items()}
        self.events[:] = [Event(kind, parameters) for kind, parameters in facts["events"]]
        self.mask = Mask({name: tensors[f"mask/{name}"].to(self.plan.device) for name in self.prunable})
        self.fit = self._new_fit()
        self.fit.restore(tensors, facts["fit"])


# -- reports -----------------------------------------------------------------------------------------------------------


def _pruning_report(run: _Run, before: Mask, ranking: Ranking) -> dict[str, Any]:
    plan, after, selection = run.plan, run.mask, ranking.selection
    recipe = plan.recipe
    return {
        "stage": run.step.stage,
        "step": run.pruned,
        "steps": len(run.steps),
        "optimizer_step": run.fit.step,
        "criterion": recipe.criterion.name,
        "schedule": recipe.schedule.name,
        "pace": recipe.pace.name,
        "distribution": recipe.distribution.name,
        "target_density": run.step.density,
        "planned": run.steps[run.pruned - 1][1],
        "realised_density": after.density,
        "kept": after.kept,
        "total": after.total,
        "layers": [
            {"name": new.name, "kept_before": old.kept, "kept": new.kept, "total": new.total}
            for old, new in zip(before.layers, after.layers, strict=True)
        ],
        "score_quantiles": list(selection.quantiles),
        "threshold": selection.threshold,
        **_sample_report(plan, ranking.positions, run.pruned - 1),
        **agreement_report(ranking.agreement),
        "remedies": list(ranking.remedies),
        "mask_digest_before": before.digest(),
        "mask_digest_after": after.digest(),
    }


def _sample_report(plan: Plan, positions: Tensor | None, index: int) -> dict[str, Any]:
    if positions is None:
        return {"scored": "gradients of training", "batchnorm_mode": "train"}
    ids = np.sort(plan.training.ids[positions.numpy()]).astype(">u8")
    return {
        "scored": "a sample of the training examples" if len(ids) else "weights alone",
        "sample_digest": "sha256:" + hashlib.sha256(ids.tobytes()).hexdigest(),
        "sample_size": len(ids),
        "batchnorm_mode": "eval",
        "seed": plan.seed(f"scores-{index}"),
    }


def _training_report(run: _Run) -> dict[str, Any]:
    plan, fit = run.plan, run.fit
    options, selected = plan.recipe.training, fit.best
    return {
        "stage": run.step.stage,
        "depth": plan.depth,
        "megabatches": list(plan.trained),
        "examples": len(plan.training),
        "epochs": fit.epoch,
        "steps": fit.step,
        "stopped_early": fit.stopped,
        "optimizer": options.optimizer.name,
        "training_loss": fit.loss,
        "select": options.select,
        "selected_epoch": selected.epoch + 1 if selected else fit.epoch,
        "selection_examples": len(plan.selection) if plan.selection else 0,
        "selection_accuracy": selected.accuracy if selected else None,
        "selection_loss": selected.loss if selected else None,
        "kept": run.mask.kept,
        "planned": run.planned,
        "epochs_checked": fit.epoch,
        "seed": plan.recipe.seed,
        **({"evaluation_overlap": plan.left_out} if plan.given.evaluation is not None else {}),
    }


def _remembered(best: Mapping[int, float], asked: Container[int]) -> dict[int, float]:
    """The ``LONGEST`` megabatches to remember: those that are still asked first, then the newest."""
    kept = sorted(best, key=lambda number: (number in asked, number))[-LONGEST:]
    return {number: best[number] for number in sorted(kept)}


# -- networks as arrays ------------------------------------------------------------------------------------------------


def _exported(network: nn.Module, mask: Mask) -> dict[str, npt.NDArray[Any]]:
    """The network's ``state_dict`` as arrays of their own, +0.0 where pruned."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
    for name, kept in mask.arrays().items():
        arrays[name][~kept] = 0
    return arrays


def _check_finite(network: nn.Module) -> None:
    broken = [name for name, tensor in network.state_dict().items() if not is_finite(tensor.detach().cpu().numpy())]
    if broken:
        raise TrainingDiverged(f"{', '.join(broken[:8])} became infinite or NaN: lower training.learning_rate")
