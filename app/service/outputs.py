"""Outputs: what a cycle leaves, as bytes.

Knows: how a result becomes a checkpoint, a state, and the files that say what the version was made from. Must never
know: where bytes are kept, transactions, HTTP.

Law: the same inputs and the same result give the same bytes: no times, no names of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.domain import InputSpec
from app.learning.cycle import CycleResult
from app.learning.recipe import Recipe
from app.service.gathering import Work
from app.service.inputs import Inputs
from app.service.models import describe_input
from app.service.state import encode_state
from espalier.formats import checkpoint
from espalier.formats.custody import encode_answers, encode_falls, encode_samples


@dataclass(frozen=True, slots=True)
class Outputs:
    """A version's files. ``state``: what a child cycle starts from, beside the checkpoint."""

    manifest: dict[str, Any]
    checkpoint: bytes
    state: bytes
    inputs: bytes
    samples: bytes
    answers: bytes
    falls: bytes


def outputs_of(work: Work, result: CycleResult) -> Outputs:
    """Encode what a cycle came out with."""
    inputs, scaling = work.inputs, result.normalisation
    manifest = _manifest(inputs, work.given.recipe, result)
    normalisation = {"mean": scaling.mean, "std": scaling.std} if scaling else None
    after = work.before.advanced(inputs.new, result.replay, result.history.document(), inputs.pinned)
    return Outputs(
        manifest=manifest,
        checkpoint=checkpoint.encode(dict(result.arrays), dict(result.masks), manifest, normalisation),
        state=encode_state(after),
        inputs=inputs.encode(),
        samples=encode_samples(result.samples),
        answers=encode_answers(result.answers),
        falls=encode_falls(result.falls),
    )


def _manifest(inputs: Inputs, recipe: Recipe, result: CycleResult) -> dict[str, Any]:
    """What a checkpoint says of itself. No times: the same cycle gives the same bytes, killed and resumed or not."""
    return {
        "format": checkpoint.FORMAT,
        "model": inputs.model,
        "version": inputs.version,
        "parent": inputs.parent.version if inputs.parent else None,
        "parent_checkpoint": inputs.parent.checkpoint if inputs.parent else None,
        "stage": result.stage,
        "depth": result.depth,
        "cycle": inputs.cycle,
        "recipe_revision": inputs.recipe_revision,
        "recipe_digest": inputs.recipe_digest,
        "recipe": recipe.document(),
        "input": describe_input(_complete(inputs.input)),
        "network": recipe.network.model_dump(mode="json"),
        "layers": [{"name": y.name, "shape": list(y.shape), "kept": y.kept, "total": y.total} for y in result.layers],
        "density": {"target": result.target_density, "kept": result.kept, "total": result.total},
        "metrics": dict(result.metrics),
        "mask_digest": checkpoint.mask_digest(dict(result.masks)),
        "values": recipe.checkpoint.values,
        "seed": recipe.seed,
        "attempt": inputs.attempt,
        "megabatches": len(result.trained),
        "evaluation_set": inputs.evaluation.digest if inputs.evaluation else None,
        "environment": {key: value for key, value in inputs.environment.items() if key != "kernels"},
    }


def _complete(spec: InputSpec) -> InputSpec:
    assert spec.complete, "a cycle runs after the first megabatch, which completes the input spec"
    return spec
