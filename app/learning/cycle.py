"""One cycle: test the champion, score, prune, retrain, evaluate, judge. ``run_cycle`` is the method on one screen.

Knows: the order of things, and what each of them leaves behind. Must never know: HTTP, SQL, files, the clock.

Laws:
    * The same input gives the same result; no global state is read, and torch's generators are left as they were.
    * A cycle that is stopped at any call of its observer and resumed from the snapshot offered there gives the same
      bits: arrays, masks, metrics and events.
    * Masks are nested along a lineage; the counted density is the planned one, to the weight; the scored weights are
      the parent's. Each is checked where it could break, and a breach raises ``InvariantBroken``.
    * The champion is tested on a new megabatch before anything is learned from it, and a guardrail may hold the density
      by what it meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch

from app.domain import Event, Phase, Verdict
from app.errors import InvalidWeights, InvariantBroken
from app.learning import guardrails
from app.learning.architectures import prunable_parameters
from app.learning.course import Course
from app.learning.history import History
from app.learning.mask import Mask
from app.learning.metrics import Arrival
from app.learning.normalisation import NormalisationState, fixed_state
from app.learning.plan import CycleInput, Parent, Plan, starting_network
from app.learning.records import answered, standing
from app.learning.reports import exported
from app.learning.result import CycleResult, Observer
from app.learning.rows import Examples
from app.learning.snapshot import snapshot_fits
from espalier.formats.custody import Falls

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
    "pruned_to",
    "run_cycle",
    "snapshot_fits",
]


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
        course = Course(plan, observe, snapshot, events)

        if course.at(Phase.ARRIVAL) and given.parent:  # what production saw: before anything is learned
            champion = plan.champion(course.network)
            for number in sorted(given.new - course.drift.keys()):
                course.meet(number, champion)
            course.heed()

        if course.at(Phase.PRUNE):
            course.begin()
        for when, kept in course.to_come():
            course.train_to(when)
            course.prune(kept)
        if course.at(Phase.TRAIN):
            course.train_to(course.fit.steps)
            course.end_training()

        course.at(Phase.JUDGE)
        measured = course.measure()
        judgement = guardrails.judge(given.recipe.guardrails, course.evidence(measured))
        return course.result(measured, judgement)


def pruned_to(
    given: CycleInput, step: int, *, device: torch.device, observe: Observer
) -> tuple[tuple[Event, ...], Falls]:
    """The same cycle as far as one of its pruning steps: what had happened by then, and which weights had fallen.

    Args:
        given, device, observe: as for ``run_cycle``, which also says what it raises.
        step: from 1; one beyond the last is the last.
    """
    events = list[Event]()
    with _carried(events):
        course = Course(Plan(given, device), observe, None, events)
        course.at(Phase.PRUNE)
        course.begin()
        for when, kept in islice(course.to_come(), step):
            course.train_to(when)
            course.prune(kept)
    return tuple(events), course.falls


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
        arrays=exported(network, mask), masks=mask.arrays(), normalisation=fixed_state(given.input), stage=0, depth=0,
        target_density=1.0, layers=mask.layers, kept=mask.kept, total=mask.total, metrics={}, verdict=Verdict(True),
        prequential={}, events=(), trained=(), replay={}, history=History(), report={}, samples={}, answers=answered(),
        falls=standing(mask),
    )  # fmt: skip
