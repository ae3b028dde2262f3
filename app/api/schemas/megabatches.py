"""Megabatches: uploaded sets of labelled examples.

Knows: how a megabatch and the champion's test on it look. Must never know: how its arrays were packed or are kept.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.inputs import by_class
from app.api.schemas.reports import DRIFT, Drift
from app.api.schemas.wire import DIGEST, TIME, Digest, Page, Time, example

_MEGABATCH = {
    "model": "gas-sensors",
    "number": 5,
    "status": "accepted",
    "pinned": False,
    "digest": DIGEST,
    "examples": 2300,
    "bytes": 1_196_000,
    "histogram": {"ethanol": 1300, "ethylene": 1000},
    "shape": [128],
    "dtype": "float32",
    "prequential": {"version": 4, "accuracy": 0.672, "loss": 1.1, "examples": 2300, "drift": DRIFT},
    "evaluation_overlap": 0,
    "cycle": 5,
    "received_at": TIME,
}


class Prequential(BaseModel):
    """How the champion did on a megabatch before it trained on it."""

    version: int = Field(description="The champion of that time.")
    accuracy: float = Field(description="Share of right answers; examples of classes that it does not know are wrong.")
    loss: float | None = Field(
        description="Mean cross-entropy over examples of classes that it knows; null when there are none."
    )
    examples: int = Field(description="How many examples it was tested on.")
    drift: Drift | None = Field(
        description="How far the megabatch lies from what that champion's lineage had taken in; null where it was not "
        "watched."
    )

    @classmethod
    def from_domain(cls, tested: domain.Prequential) -> Self:
        """From the domain's value."""
        return cls(
            version=tested.version,
            accuracy=tested.accuracy,
            loss=tested.loss,
            examples=tested.examples,
            drift=None if tested.drift is None else Drift.model_validate(tested.drift),
        )


class Megabatch(BaseModel):
    """One uploaded, immutable set of labelled examples."""

    model_config = example(_MEGABATCH)

    model: str = Field(description="Name of the model.")
    number: int = Field(description="Number, in order of arrival, from 1.")
    status: domain.MegabatchStatus = Field(
        description="`accepted`; `quarantined`: not trained on until it is released; `erased`: its values are gone."
    )
    pinned: bool = Field(description="Whether every cycle replays it, whatever the replay policy keeps.")
    digest: Digest = Field(description="Of the decoded arrays as they were accepted, however they were packed.")
    examples: int = Field(description="How many examples; of an erased megabatch, how many it had.")
    bytes: int = Field(description="Size of the decoded arrays.")
    histogram: dict[str, int] = Field(description="Examples per class name.")
    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    prequential: Prequential | None = Field(
        description="How the champion did on it on arrival; null until a cycle has tested it."
    )
    evaluation_overlap: int | None = Field(
        description="How many of its examples are in the evaluation set too, and are left out of training; null "
        "without an evaluation set."
    )
    cycle: int | None = Field(None, description="The cycle that this upload set off; null elsewhere.")
    received_at: Time = Field(description="When it was accepted.")
    erased_at: Time | None = Field(None, description="When values of it were last erased; null: all are there.")

    @classmethod
    def from_domain(
        cls, megabatch: domain.Megabatch, spec: domain.InputSpec, cycle: domain.Cycle | None = None
    ) -> Self:
        """From the domain's values; ``cycle`` is the one that its upload set off."""
        return cls(
            model=megabatch.model,
            number=megabatch.number,
            status=megabatch.status,
            pinned=megabatch.pinned,
            digest=megabatch.digest,
            examples=megabatch.examples,
            bytes=megabatch.bytes,
            histogram=by_class(megabatch.histogram, spec),
            shape=None if spec.shape is None else list(spec.shape),
            dtype=spec.dtype,
            prequential=None if megabatch.prequential is None else Prequential.from_domain(megabatch.prequential),
            evaluation_overlap=megabatch.evaluation_overlap,
            cycle=None if cycle is None else cycle.number,
            received_at=megabatch.received_at,
            erased_at=megabatch.erased_at,
        )


class Megabatches(Page[Megabatch]):
    """Megabatches in order of arrival."""
