"""Decisions on the wire: what clients decided with which version.

Knows: how a batch of them, and one of them, looks. Must never know: whether a decision was right.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.dependencies import MAX_NUMBER
from app.api.schemas.wire import DIGEST, OTHER_DIGEST, TIME, Asked, Digest, Instant, Page, Time, example
from app.service import decisions

MOST = 10_000
"""Decisions in one batch."""

_MADE = {"version": 5, "example": "line-3/000123", "answer": "dog", "confidence": 0.93, "made_at": TIME}
_KEPT = {**_MADE, "id": 1042, "checkpoint": DIGEST, "actor": "line-3", "received_at": TIME}


class NewDecision(Asked):
    """What was decided."""

    model_config = example(_MADE)

    version: int = Field(description="Number of the version that decided.", ge=0, le=MAX_NUMBER)
    example: str | None = Field(
        None, description="Your own name for what was decided about.", min_length=1, max_length=255
    )
    answer: str = Field(description="What was decided: the name of a class.", min_length=1, max_length=255)
    confidence: float | None = Field(None, description="Probability that the version gave its answer.", ge=0, le=1)
    made_at: Instant | None = Field(None, description="When; null: when the service received it.")


class NewDecisions(Asked):
    """A batch of decisions, which is kept whole or not at all."""

    model_config = example({"checkpoints": {"5": DIGEST}, "decisions": [_MADE]})

    checkpoints: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Digest] = Field(
        description="Of every version that is named below, by its number: the digest of its sparse checkpoint.",
        max_length=100,
    )
    decisions: list[NewDecision] = Field(description="In any order.", min_length=1, max_length=MOST)

    def drafts(self, now: datetime) -> list[domain.DecisionDraft]:
        """As the domain has them; those without a digest keep an empty one, which is no version's."""
        return [
            domain.DecisionDraft(
                made.version,
                self.checkpoints.get(str(made.version), ""),
                made.example,
                made.answer,
                made.confidence,
                made.made_at or now,
            )
            for made in self.decisions
        ]


class RecordedDecisions(BaseModel):
    """A batch that was kept."""

    model_config = example({"count": 1, "digest": OTHER_DIGEST, "first": 1042, "last": 1042})

    count: int = Field(description="How many decisions were kept: all of the batch.")
    digest: Digest = Field(description="Of the batch's canonical JSON; its audit entry has the same.")
    first: int = Field(description="Number of the first decision of the batch.")
    last: int = Field(description="Number of the last one.")

    @classmethod
    def from_domain(cls, kept: decisions.Recorded) -> Self:
        """From the service's answer."""
        return cls(count=kept.count, digest=kept.digest, first=kept.first, last=kept.last)


class Decision(BaseModel):
    """A decision, as it was reported."""

    model_config = example(_KEPT)

    id: int = Field(description="Its number; those of a batch follow one another.")
    version: int = Field(description="Number of the version that decided.")
    checkpoint: Digest = Field(description="Digest of that version's sparse checkpoint.")
    example: str | None = Field(description="The client's name for what was decided about.")
    answer: str = Field(description="What was decided.")
    confidence: float | None = Field(description="Probability that the version gave its answer.")
    made_at: Time = Field(description="When it was decided, by the client's clock.")
    actor: str = Field(description="Who reported it.")
    received_at: Time = Field(description="When the service received it.")

    @classmethod
    def from_domain(cls, decision: domain.Decision) -> Self:
        """From the domain's value."""
        return cls(
            id=decision.id,
            version=decision.version,
            checkpoint=decision.checkpoint,
            example=decision.example,
            answer=decision.answer,
            confidence=decision.confidence,
            made_at=decision.made_at,
            actor=decision.actor,
            received_at=decision.received_at,
        )


class Decisions(Page[Decision]):
    """Decisions, those made last first."""

    model_config = example({"items": [_KEPT], "next_cursor": None})
