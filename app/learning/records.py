"""Records: which samples a cycle used and for what, what its version answers, and when each weight fell.

Knows: rows, answers and masks of one cycle, and the words of ``espalier.formats.custody``. Must never know: how any of
it was computed, or where it is kept.

Laws:
    * A row that the optimizer saw is told as such, and no other; the same holds for rows that scores were computed on.
    * Nothing is computed anew: answers are those that the version was judged by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.learning.evaluation import Evaluation
from app.learning.mask import Mask
from app.learning.plan import Plan
from app.learning.replay import Buffer
from app.learning.rows import Examples, Rows
from espalier.formats.custody import EVALUATION, FALLEN_BEFORE, KEPT_WEIGHT, VALIDATION, Answers, Falls, Samples, Use
from espalier.formats.megabatch import is_validation

Chosen = npt.NDArray[np.bool_]
Asked = tuple[Rows, Evaluation | None] | None


def used(plan: Plan, shown: Chosen, scored: Chosen, kept: Buffer) -> Samples:
    """What was done with every sample.

    Args:
        plan: of the cycle.
        shown: which training rows the optimizer saw: (n,) bool.
        scored: which of them scores were computed on: (n,) bool.
        kept: rows of megabatches in the replay buffer after the cycle, by number.
    """
    trained, ranked = (plan.training.by_megabatch(rows, plan.trained) for rows in (shown, scored))
    replayed = {number: rows for number, rows in plan.buffer.items() if number not in plan.given.new}
    parts = {Use.TRAINED: trained, Use.SCORED: ranked, Use.REPLAYED: replayed, Use.KEPT: kept, Use.TEST: plan.unused}
    return {examples.number: _uses(plan, examples, parts) for examples in plan.megabatches}


def _uses(
    plan: Plan, examples: Examples, parts: dict[Use, Buffer]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    number, ids = examples.number, np.asarray(examples.ids)
    use = np.full(len(ids), Use.NEW if number in plan.given.new else 0, dtype=np.uint8)
    use[is_validation(ids, plan.recipe.validation_share)] |= np.uint8(Use.VALIDATION)
    for flag, rows in parts.items():
        if number in rows:
            use[rows[number]] |= np.uint8(flag)
    order = np.lexsort([use, ids])
    order = order[use[order] > 0]
    return ids[order], use[order]


def answered(validation: Asked = None, evaluation: Asked = None) -> Answers:
    """Answers to validation examples and to the evaluation set, each as (rows, answers to them), where there are any.

    A probability that is no number, of logits that are infinite, is told as 0.
    """
    parts = [(code, *asked) for code, asked in ((VALIDATION, validation), (EVALUATION, evaluation)) if asked]
    found = [(code, rows, answers) for code, rows, answers in parts if answers is not None]
    confidence = [np.nan_to_num(answers.confidence, nan=0.0) for _, _, answers in found]
    return Answers(
        ids=np.concatenate([np.empty(0, np.uint64), *(rows.ids for _, rows, _ in found)]),
        labels=np.concatenate([np.empty(0, np.int64), *(answers.labels for _, _, answers in found)]),
        answers=np.concatenate([np.empty(0, np.int64), *(answers.predicted for _, _, answers in found)]),
        confidence=np.concatenate([np.empty(0, np.float32), *confidence]),
        source=np.concatenate([np.empty(0, np.uint8), *(np.full(len(a), code, np.uint8) for code, _, a in found)]),
    )


def standing(mask: Mask) -> Falls:
    """Of weights before the first pruning step of a cycle: kept, or fallen in an ancestor."""
    return {
        name: np.where(kept, np.uint16(KEPT_WEIGHT), np.uint16(FALLEN_BEFORE)) for name, kept in mask.arrays().items()
    }


def fell(falls: Falls, before: Mask, after: Mask, step: int) -> None:
    """Write down, in place, which weights a pruning step took.

    Args:
        step: of the cycle, from 1.
    """
    for name, kept in before.items():
        falls[name].reshape(-1)[np.flatnonzero((kept & ~after[name]).cpu().numpy())] = step
