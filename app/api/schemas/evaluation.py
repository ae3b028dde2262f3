"""Evaluation sets: labelled examples that are never trained on.

Knows: how the set in force looks. Must never know: how its overlap with the megabatches is counted.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from app.api.schemas.inputs import by_class
from app.api.schemas.wire import OTHER_DIGEST, TIME, Digest, Time, example
from app.service import evaluation

_EVALUATION = {
    "model": "gas-sensors",
    "revision": 1,
    "digest": OTHER_DIGEST,
    "examples": 500,
    "bytes": 260_000,
    "histogram": {"ethanol": 260, "ethylene": 240},
    "shape": [128],
    "dtype": "float32",
    "overlap": 0,
    "set_at": TIME,
}


class EvaluationSet(BaseModel):
    """A fixed labelled set that is never trained on."""

    model_config = example(_EVALUATION)

    model: str = Field(description="Name of the model.")
    revision: int = Field(description="Counts the sets that the model has had, from 1; a cycle pins one.")
    digest: Digest = Field(description="Of the decoded arrays, however they were packed; it stands in manifests.")
    examples: int = Field(description="How many examples.")
    bytes: int = Field(description="Size of the decoded arrays.")
    histogram: dict[str, int] = Field(description="Examples per class name.")
    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    overlap: int = Field(
        description="How many examples of all megabatches together are in it too, and are left out of training."
    )
    set_at: Time = Field(description="Since when it is in force.")

    @classmethod
    def from_domain(cls, view: evaluation.EvaluationView) -> Self:
        """From the service's view."""
        found = view.found
        return cls(
            model=found.model,
            revision=found.revision,
            digest=found.digest,
            examples=found.examples,
            bytes=found.bytes,
            histogram=by_class(found.histogram, view.input),
            shape=None if view.input.shape is None else list(view.input.shape),
            dtype=view.input.dtype,
            overlap=view.overlap,
            set_at=found.set_at,
        )
