"""Monitors: what is watched of a megabatch as it arrives, and of the gap over versions.

Knows: which examples stand for the past, and which figures the recipe asks for. Must never know: what an alarm does.

Laws:
    * The past is what the parent's state names: the newest megabatches of its lineage among those at hand. So a
      rollback rewinds it, an erasure reaches it, and nothing of it is kept beside the megabatches themselves.
    * Samples are bounded and derived from the cycle's seeds. Of the past, an embedding sees validation examples alone:
      what a network was trained on looks different to it from what it has never seen.
    * Weights, generators and modes are as they were afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from app.learning.changes import Change, rise
from app.learning.drift import Drift, InputShift, Shift, accuracy_shift, input_shift, label_shift
from app.learning.evaluation import Evaluation
from app.learning.features import features_of
from app.learning.history import Ancestor, History
from app.learning.plan import Plan
from app.learning.recipe import AccuracyMonitor, Custom, GapMonitor, LabelMonitor
from app.learning.rows import Examples, Rows

WIDEST = 1024
"""Values of an example that ``auto`` compares one by one; of more, it compares the embedding."""

FEWEST = 20
"""Examples on either side below which inputs are not compared."""


def arrived(
    plan: Plan, number: int, answers: Evaluation, champion: nn.Module, pulse: Callable[[], None] = lambda: None
) -> Drift:
    """How far a new megabatch lies from the past.

    Args:
        plan: of the cycle, which has a parent.
        number: of the megabatch.
        answers: the champion's on all of it.
        champion: its network.
        pulse: called after every chunk that passes through the network; may raise to stop.
    """
    options, past = plan.recipe.monitoring, plan.past(plan.recipe.monitoring.past)
    return Drift(
        inputs=_inputs(plan, number, past, champion, pulse) if options.inputs.on and past else None,
        labels=_labels(plan, number, past, options.labels) if options.labels.on and past else None,
        accuracy=_accuracy(plan.given.history, answers, options.accuracy) if options.accuracy.on else None,
    )


def gap_rise(history: History, candidate: Ancestor | None, options: GapMonitor) -> Change | None:
    """How far the generalization gap has risen over a lineage, the candidate at its end.

    The noise of a gap is that of its validation accuracy, a binomial share.
    """
    if candidate is None or not options.on:
        return None
    known = [(a.gap, _noise(a)) for a in (*history.ancestors, candidate) if a.gap is not None]
    gaps, noise = [gap for gap, _ in known], [noise for _, noise in known]
    return rise(gaps, noise, slack=options.slack, limit=options.limit)


def _noise(ancestor: Ancestor) -> float:
    return float(np.sqrt(ancestor.accuracy * (1 - ancestor.accuracy) / ancestor.examples))


def _inputs(
    plan: Plan, number: int, past: Sequence[Examples], champion: nn.Module, pulse: Callable[[], None]
) -> InputShift | None:
    options, new = plan.recipe.monitoring.inputs, [plan.examples(number)]
    embedded = _embedded(plan)
    everything = [np.ones(len(examples), dtype=np.bool_) for examples in past]
    of_past = [plan.held_out(examples) for examples in past] if embedded else everything
    reference = plan.drawn(past, of_past, options.sample, f"past-{number}")
    now = plan.drawn(new, [np.ones(len(new[0]), dtype=np.bool_)], options.sample, f"arrived-{number}")
    if min(len(reference), len(now)) < FEWEST:
        return None
    both = [_embedding(plan, champion, rows, pulse) if embedded else _stored(rows) for rows in (reference, now)]
    of = "embedding" if embedded else "features"
    return input_shift(both[0], both[1], of=of, at_most=options.at_most, confidence=options.confidence)


def _embedded(plan: Plan) -> bool:
    """Whether inputs are compared as the champion sees them."""
    of, shape, network = plan.recipe.monitoring.inputs.of, plan.given.input.shape, plan.recipe.network
    assert shape is not None
    nowhere = isinstance(network, Custom) and network.features is None
    return of == "embedding" or (of == "auto" and not nowhere and int(np.prod(shape)) > WIDEST)


def _stored(rows: Rows) -> npt.NDArray[np.float32]:
    return np.concatenate([chunk.flatten(1).float().numpy() for chunk in rows.stored()])


def _embedding(plan: Plan, champion: nn.Module, rows: Rows, pulse: Callable[[], None]) -> npt.NDArray[np.float32]:
    return features_of(champion, plan.recipe.network, rows, np.arange(len(rows)), pulse)


def _labels(plan: Plan, number: int, past: Sequence[Examples], options: LabelMonitor) -> Shift:
    classes = len(plan.given.input.classes or ())
    counts = [np.bincount(np.asarray(each.y), minlength=classes) for each in (*past, plan.examples(number))]
    return label_shift(np.sum(counts[:-1], axis=0), counts[-1], at_most=options.at_most, confidence=options.confidence)


def _accuracy(history: History, answers: Evaluation, options: AccuracyMonitor) -> Shift | None:
    if not history.ancestors:
        return None
    parent, right = history.ancestors[-1], int(answers.correct.sum())
    return accuracy_shift(
        right, len(answers), round(parent.accuracy * parent.examples), parent.examples,
        at_most=options.at_most, confidence=options.confidence,
    )  # fmt: skip
