"""Reports: what a cycle leaves behind of itself, as plain JSON values, as a history and as arrays.

Knows: plan, masks, rankings and measured figures. Must never know: in which order a cycle does things, or who reads it.

Laws:
    * A report is made from what is given, and changes nothing.
    * Arrays are copies: +0.0 where pruned.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from app.errors import LearningFailed, TrainingDiverged
from app.learning.guardrails import Judgement
from app.learning.history import LONGEST, Ancestor, History
from app.learning.mask import Mask
from app.learning.metrics import Measured
from app.learning.plan import Plan, ids_digest, is_finite
from app.learning.schedules import Step
from app.learning.scoring import Ranking
from app.learning.scoring import figures as agreement_report
from app.learning.training import Fit
from espalier.errors import CheckpointMismatch
from espalier.formats.writer import rounded


def pruning_report(
    plan: Plan, step: Step, fit: Fit, steps: Sequence[tuple[int, int]], pruned: int, before: Mask, ranking: Ranking,
    scored: npt.NDArray[np.bool_],
) -> dict[str, Any]:  # fmt: skip
    """One pruning step, whole.

    Args:
        plan: of the cycle.
        step: what the cycle does to the density.
        fit: where training stands.
        steps: the pruning steps of the cycle: (optimizer steps before it, weights kept after it).
        pruned: how many of them are made, this one included.
        before: the mask that it found.
        ranking: how weights were ranked, and the mask that it made.
        scored: which training rows the scores were computed on.
    """
    recipe, selection, after = plan.recipe, ranking.selection, ranking.selection.mask
    return {
        "stage": step.stage,
        "step": pruned,
        "steps": len(steps),
        "optimizer_step": fit.step,
        "criterion": recipe.criterion.name,
        "schedule": recipe.schedule.name,
        "pace": recipe.pace.name,
        "distribution": recipe.distribution.name,
        "target_density": step.density,
        "planned": steps[pruned - 1][1],
        "realised_density": after.density,
        "kept": after.kept,
        "total": after.total,
        "layers": [
            {"name": new.name, "kept_before": old.kept, "kept": new.kept, "total": new.total}
            for old, new in zip(before.layers, after.layers, strict=True)
        ],
        "score_quantiles": list(selection.quantiles),
        "threshold": selection.threshold,
        **_sample_report(plan, fit, ranking.positions, scored, pruned - 1),
        **agreement_report(ranking.agreement),
        "remedies": list(ranking.remedies),
        "mask_digest_before": before.digest(),
        "mask_digest_after": after.digest(),
    }


def _sample_report(
    plan: Plan, fit: Fit, positions: Tensor | None, scored: npt.NDArray[np.bool_], index: int
) -> dict[str, Any]:
    """What was scored on; the seed is that of the sample, or of the epoch whose steps are the last in the gradients."""
    size = int(np.count_nonzero(scored))
    digest = plan.every_digest if size == len(scored) else ids_digest(plan.training.ids[scored])
    how, mode, purpose = "gradients of training", "train", f"epoch-{(fit.step - 1) * fit.epochs // fit.steps}"
    if positions is not None:
        how = "a sample of the training examples" if size else "weights alone"
        mode, purpose = "eval", f"scores-{index}"
    return {
        "scored": how,
        "sample_digest": digest,
        "sample_size": size,
        "batchnorm_mode": mode,
        "seed": plan.seed(purpose),
    }


def training_report(plan: Plan, step: Step, fit: Fit, mask: Mask, planned: int) -> dict[str, Any]:
    """How training went.

    Args:
        plan: of the cycle.
        step: what the cycle did to the density.
        fit: done with its last step.
        mask: that it ended under.
        planned: weights that were to be kept.
    """
    options, selected = plan.recipe.training, fit.best
    return {
        "stage": step.stage,
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
        "kept": mask.kept,
        "planned": planned,
        "epochs_checked": fit.epoch,
        "seed": plan.recipe.seed,
        **({"evaluation_overlap": plan.left_out} if plan.given.evaluation is not None else {}),
    }


def next_history(plan: Plan, stage: int, density: float, measured: Measured, judgement: Judgement) -> History:
    """What the lineage remembers after a cycle.

    Args:
        plan: of the cycle.
        stage, density: of the version that it made.
        measured: what is known of that version.
        judgement: what guardrails made of it.
    """
    before, evaluation = plan.given.history, measured.evaluation
    new = sum(len(plan.examples(number)) for number in plan.given.new)
    here = ancestor_of(stage, density, measured)
    best = {n: max(before.best.get(n, 0.0), kept.accuracy) for n, kept in measured.retained.items()}
    return History(
        arrived=before.arrived + new,
        ancestors=(*before.ancestors, *([here] if here else ()))[-LONGEST:],
        best=_remembered({**before.best, **best}, measured.retained),
        breaches=judgement.breaches,
        holds=judgement.holds,
        evaluation_errors=before.evaluation_errors + (evaluation.errors if evaluation else 0),
        evaluation_examples=before.evaluation_examples + (len(evaluation) if evaluation else 0),
        moments=plan.moments,
    )


def ancestor_of(stage: int, density: float, measured: Measured) -> Ancestor | None:
    """What is remembered of a version by those that come from it; None without validation examples."""
    answers = measured.validation
    if answers is None:
        return None
    gap = measured.training.accuracy - answers.accuracy
    return Ancestor(stage, density, answers.accuracy, len(answers), gap)


def _remembered(best: Mapping[int, float], asked: Container[int]) -> dict[int, float]:
    """The ``LONGEST`` megabatches to remember: those that are still asked first, then the newest."""
    kept = sorted(best, key=lambda number: (number in asked, number))[-LONGEST:]
    return {number: best[number] for number in sorted(kept)}


# -- networks as arrays ------------------------------------------------------------------------------------------------


def exported(network: nn.Module, mask: Mask) -> dict[str, npt.NDArray[Any]]:
    """The network's ``state_dict`` as arrays of their own, +0.0 where pruned."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
    for name, kept in mask.arrays().items():
        arrays[name][~kept] = 0
    return arrays


def rounded_as(name: str, weight: npt.NDArray[Any], values: str) -> npt.NDArray[Any]:
    """A weight, rounded to ``values``.

    Raises:
        LearningFailed: when it is too large for them.
    """
    try:
        return rounded(weight, values, name)
    except CheckpointMismatch as error:  # it says which option to change
        raise LearningFailed(str(error)) from None


def check_finite(network: nn.Module) -> None:
    """Refuse a network with a tensor that is not finite.

    Raises:
        TrainingDiverged: with the names of such tensors.
    """
    broken = [name for name, tensor in network.state_dict().items() if not is_finite(tensor.detach().cpu().numpy())]
    if broken:
        raise TrainingDiverged(f"{', '.join(broken[:8])} became infinite or NaN: lower training.learning_rate")
