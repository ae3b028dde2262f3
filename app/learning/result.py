"""Result: what a cycle comes out with, and who may look at it on the way.

Knows: the candidate version as values. Must never know: how it came about, or what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.domain import Event, Layer, Progress, Trip, Verdict
from app.learning.drift import Drift
from app.learning.history import History
from app.learning.metrics import Arrival
from app.learning.normalisation import NormalisationState
from espalier.formats.custody import Answers, Falls, Samples


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
        samples: what the cycle did with every sample that it used, by number of the megabatch.
        answers: what the version answers, as it is published, to the validation examples of every megabatch that is
            there, and to the evaluation set.
        falls: at which pruning step of the cycle each prunable weight fell.
        trips: guardrails that tripped.
        drift: how far each new megabatch lies from the past, by its number.
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
    samples: Samples
    answers: Answers
    falls: Falls
    trips: tuple[Trip, ...] = ()
    drift: dict[int, Drift] = field(default_factory=dict)


class Observer(Protocol):
    """Called at every optimizer step, evaluated chunk and change of phase; may raise to stop the cycle."""

    def __call__(self, progress: Progress, snapshot: Callable[[], bytes]) -> None:
        """Look at the progress; call ``snapshot`` for the bytes to resume from, before returning."""
        ...
