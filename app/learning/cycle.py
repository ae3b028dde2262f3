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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.domain import Layer, Phase, Progress, Verdict
from app.errors import InvalidWeights, InvariantBroken, TrainingDiverged
from app.learning import criteria, guardrails
from app.learning import snapshot as snapshots
from app.learning.architectures import prunable_parameters
from app.learning.mask import Mask, Selection, top_k
from app.learning.normalisation import NormalisationState, fixed_state
from app.learning.plan import CycleInput, Parent, Plan, is_finite, starting_network
from app.learning.rows import Examples
from app.learning.schedules import kept_at
from app.learning.snapshot import snapshot_fits
from app.learning.training import Evaluation, Fit, evaluate, minibatch_bounds

__all__ = [
    "CycleInput",
    "CycleResult",
    "Event",
    "Examples",
    "NormalisationState",
    "Observer",
    "Parent",
    "Tested",
    "initial_version",
    "run_cycle",
    "snapshot_fits",
]

# -- what goes in and what comes out -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One thing that happened, as plain JSON values; it becomes an audit entry."""

    kind: str
    parameters: dict[str, Any]


class Tested(NamedTuple):
    """The champion on a megabatch before it trained on it."""

    accuracy: float
    loss: float
    examples: int


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
        assignments: numbers of the megabatches in the replay buffer after this cycle.
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
    prequential: dict[int, Tested]
    events: tuple[Event, ...]
    assignments: tuple[int, ...]


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
    """
    plan = Plan(given, device)
    run = _Run(plan, observe, snapshot)

    if run.at(Phase.ARRIVAL) and given.parent:  # what production saw: before anything is learned
        for number in sorted(given.untested - run.tested.keys()):
            answers = evaluate(run.network, plan.megabatch(number), run.pulse)
            run.tested[number] = Tested(answers.accuracy, answers.loss, len(answers))

    if run.at(Phase.PRUNE):
        planned = min(run.mask.kept, kept_at(plan.target_density, run.mask.total))
        if planned < run.mask.kept:
            sample = plan.sample()
            scores = run.score(sample)
            selection = top_k(scores, run.mask, planned)
            run.prune(selection, sample)

    fit = run.fit()
    if run.at(Phase.TRAIN):
        fit.run(run.pulse)
        run.record("network.trained", _training_report(plan, fit))

    run.at(Phase.JUDGE)
    training = evaluate(run.network, plan.training, run.pulse)
    candidate = plan.candidate_answers(run.network, run.pulse)
    champion = plan.champion_answers(run.pulse)
    judgement = guardrails.judge(
        given.recipe.guardrails,
        guardrails.Evidence(_right(candidate), _right(champion) if given.parent else None, run.mask.layers, plan.notes),
    )
    metrics = _metrics(run, fit, training, candidate, champion)
    run.record("cycle.judged", {"passed": judgement.verdict.passed, "reasons": list(judgement.verdict.reasons),
                                "rules": list(judgement.rules), "metrics": metrics})  # fmt: skip
    return run.result(metrics, judgement.verdict)


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
        prequential={}, events=(), assignments=(),
    )  # fmt: skip


# -- what is known so far ----------------------------------------------------------------------------------------------


_PHASES = tuple(Phase)


class _Run:
    """What is known so far in one cycle, and the snapshot of it that an observer may take."""

    def __init__(self, plan: Plan, observe: Observer, snapshot: bytes | None) -> None:
        self.plan, self._observe = plan, observe
        self.network = plan.network()
        self.prunable = prunable_parameters(self.network)
        self.phase, self.events, self.tested = Phase.ARRIVAL, list[Event](), dict[int, Tested]()
        parent = plan.given.parent
        self.mask = Mask.from_arrays(parent.masks, self.prunable) if parent else Mask.full(self.prunable)
        if not self.mask.holds(self.prunable):
            raise InvariantBroken("the parent's pruned weights are not zero")
        self._fit: Fit | None = None
        self._saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if snapshot is not None:
            self._restore(*snapshots.decode(snapshot))

    def at(self, phase: Phase) -> bool:
        """Enter a phase, unless a snapshot was taken later; says whether there is work to do in it."""
        if _PHASES.index(phase) < _PHASES.index(self.phase):
            return False
        self.phase = phase
        self.pulse()
        return True

    def pulse(self, loss: float | None = None) -> None:
        """Let the observer look."""
        fit = self._fit
        self._observe(
            Progress(
                self.phase, fit.epoch if fit else 0, self.plan.recipe.training.epochs,
                fit.step if fit else 0, fit.steps if fit else 0, loss, self.mask.density,
            ),
            self._snapshot,
        )  # fmt: skip

    def record(self, kind: str, parameters: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append(Event(kind, parameters))

    def score(self, sample: Tensor) -> dict[str, Tensor]:
        """Score the prunable weights on the sampled training rows, in eval mode.

        Raises:
            InvariantBroken: when what was scored is not the parent's weights.
        """
        plan = self.plan
        scores = criteria.score(
            plan.recipe.criterion, self.network, self.prunable, self._minibatches(sample), plan.seed("scores")
        )
        source = plan.given.parent.arrays if plan.given.parent else plan.given.initial
        if source is not None:
            for name, weight in self.prunable.items():
                if not np.array_equal(weight.detach().cpu().numpy(), np.asarray(source[name])):
                    raise InvariantBroken(f"the scored weights of {name} are not the trained ones")
        return scores

    def prune(self, selection: Selection, sample: Tensor) -> None:
        """Take over a new mask, set what it prunes to zero, and record the step."""
        before, self.mask = self.mask, selection.mask
        self.mask.apply(self.prunable)
        self.record("mask.pruned", _pruning_report(self.plan, before, selection, sample))

    def fit(self) -> Fit:
        """The retraining, from the start or from the snapshot."""
        plan = self.plan
        self._fit = Fit(
            self.network, self.prunable, self.mask, plan.training, plan.selection, plan.recipe.training, plan.seed
        )
        if self._saved is not None:
            self._fit.restore(*self._saved)
            self._saved = None
        return self._fit

    def result(self, metrics: dict[str, float], verdict: Verdict) -> CycleResult:
        """The candidate version.

        Raises:
            TrainingDiverged: when a tensor is not finite.
        """
        plan, mask = self.plan, self.mask
        return CycleResult(
            arrays=_exported(self.network, mask), masks=mask.arrays(), normalisation=plan.normalisation,
            stage=plan.stage, depth=plan.depth, target_density=plan.target_density, layers=mask.layers,
            kept=mask.kept, total=mask.total, metrics=metrics, verdict=verdict, prequential=dict(self.tested),
            events=tuple(self.events), assignments=plan.assignments,
        )  # fmt: skip

    def _minibatches(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        bounds = minibatch_bounds(len(positions), self.plan.recipe.training.minibatch) if len(positions) else []
        for start, end in bounds:
            yield self.plan.training.gather(positions[start:end])
            self.pulse()

    def _snapshot(self) -> bytes:
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {
            "subject": self.plan.subject,
            "phase": self.phase.value,
            "tested": {str(number): list(tested) for number, tested in self.tested.items()},
            "events": [[event.kind, event.parameters] for event in self.events],
        }
        if self._fit is not None:
            tensors, facts["fit"] = self._fit.state()
            tensors |= {f"mask/{name}": tensor for name, tensor in self.mask.items()}
        return snapshots.encode(tensors, facts, self.plan.device)

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if facts["subject"] != self.plan.subject:
            raise InvariantBroken("the snapshot was taken in another cycle: start this one anew")
        self.phase = Phase(facts["phase"])
        self.tested = {int(number): Tested(*tested) for number, tested in facts["tested"].items()}
        self.events = [Event(kind, parameters) for kind, parameters in facts["events"]]
        if "fit" in facts:
            self.mask = Mask({name: tensors[f"mask/{name}"].to(self.plan.device) for name in self.prunable})
            self._saved = tensors, facts["fit"]


# -- reports -----------------------------------------------------------------------------------------------------------


def _pruning_report(plan: Plan, before: Mask, selection: Selection, sample: Tensor) -> dict[str, Any]:
    after, recipe = selection.mask, plan.recipe
    ids = np.sort(plan.training.ids[sample.numpy()]).astype(">u8")
    return {
        "stage": plan.stage,
        "step": 1,
        "criterion": recipe.criterion.name,
        "schedule": recipe.schedule.name,
        "target_density": plan.target_density,
        "realised_density": after.density,
        "kept": after.kept,
        "total": after.total,
        "layers": [
            {"name": new.name, "kept_before": old.kept, "kept": new.kept, "total": new.total}
            for old, new in zip(before.layers, after.layers, strict=True)
        ],
        "score_quantiles": list(selection.quantiles),
        "threshold": selection.threshold,
        "sample_digest": "sha256:" + hashlib.sha256(ids.tobytes()).hexdigest(),
        "sample_size": len(ids),
        "batchnorm_mode": "eval",
        "seed": plan.seed("scores"),
        "mask_digest_before": before.digest(),
        "mask_digest_after": after.digest(),
    }


def _training_report(plan: Plan, fit: Fit) -> dict[str, Any]:
    options = plan.recipe.training
    selected = fit.best
    return {
        "stage": plan.stage,
        "depth": plan.depth,
        "megabatches": list(plan.assignments),
        "examples": len(plan.training),
        "epochs": fit.epochs,
        "steps": fit.steps,
        "optimizer": options.optimizer.name,
        "training_loss": fit.loss,
        "select": options.select,
        "selected_epoch": selected.epoch + 1 if selected else fit.epochs,
        "selection_examples": len(plan.selection) if plan.selection else 0,
        "selection_accuracy": selected.accuracy if selected else None,
        "selection_loss": selected.loss if selected else None,
        "seed": plan.recipe.seed,
    }


def _metrics(
    run: _Run, fit: Fit, training: Evaluation, candidate: Evaluation | None, champion: Evaluation | None
) -> dict[str, float]:
    metrics = {
        "train_accuracy": training.accuracy,
        "train_loss": training.loss,
        "examples_seen": float(fit.examples_seen),
        "epochs": float(fit.epochs),
        "best_epoch": float(fit.best.epoch + 1 if fit.best else fit.epochs),
    }
    if candidate is not None:
        metrics["validation_accuracy"] = candidate.accuracy
        metrics["validation_loss"] = candidate.loss
        metrics["balanced_accuracy"] = candidate.balanced_accuracy
        metrics["generalization_gap"] = training.accuracy - candidate.accuracy
    if champion is not None:
        metrics["champion_validation_accuracy"] = champion.accuracy
    if run.tested:
        examples = sum(tested.examples for tested in run.tested.values())
        right = sum(tested.accuracy * tested.examples for tested in run.tested.values())
        metrics["prequential_accuracy"] = right / examples
    return metrics


# -- networks as arrays ------------------------------------------------------------------------------------------------


def _exported(network: nn.Module, mask: Mask) -> dict[str, npt.NDArray[Any]]:
    """The network's ``state_dict`` as arrays of their own, +0.0 where pruned."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
    for name, kept in mask.arrays().items():
        arrays[name][~kept] = 0
    broken = [name for name, value in arrays.items() if not is_finite(value)]
    if broken:
        raise TrainingDiverged(f"{', '.join(broken[:8])} became infinite or NaN: lower training.learning_rate")
    return arrays


def _right(answers: Evaluation | None) -> npt.NDArray[np.bool_]:
    return answers.correct if answers is not None else np.empty(0, dtype=bool)
