"""Erasures: what is to go for good, what went, and what follows; and quarantine, which takes nothing away.

Knows: how they look on the wire. Must never know: where values lie, or which version is clean.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from app import domain
from app.api.dependencies import MAX_NUMBER
from app.api.schemas.aliases import Alias
from app.api.schemas.megabatches import Megabatch
from app.api.schemas.wire import DIGEST, TIME, Asked, Digest, example
from app.service import erasure, megabatches

MOST_ID = 2**64 - 1

_RETRAIN = (
    "Also move the champion to its nearest ancestor that took in nothing of this, and train anew on what is left; "
    "where there is no such ancestor, the next cycle begins afresh."
)


def _expect_id(text: str) -> str:
    if int(text) > MOST_ID:
        raise ValueError(f"an id is at most {MOST_ID}")
    return text


SampleId = Annotated[str, Field(pattern=r"^[0-9]{1,20}$"), AfterValidator(_expect_id)]
"""A 64-bit id as text: programs that read JSON numbers as doubles would change it."""


class NewErasure(Asked):
    """What is to go for good, and why."""

    model_config = example(
        {"megabatches": [5], "reason": "the customer withdrew consent", "retrain": True},
        {"samples": ["1099511627776"], "reason": "request 4711", "preview": True},
    )

    megabatches: list[Annotated[int, Field(ge=1, le=MAX_NUMBER)]] = Field(
        [], max_length=erasure.MOST_MEGABATCHES, description="Numbers of megabatches that go whole."
    )
    samples: list[SampleId] = Field(
        [],
        max_length=erasure.MOST_SAMPLES,
        description="Ids of single examples; each goes from every megabatch and every evaluation set that holds it.",
    )
    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)
    retrain: bool = Field(False, description=_RETRAIN)
    preview: bool = Field(False, description="Only say what it would do; nothing is changed.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.megabatches and not self.samples:
            raise PydanticCustomError("nothing", "name megabatches or samples that are to be erased")
        return self

    def asked(self) -> erasure.Asked:
        """The domain's value."""
        return erasure.Asked(tuple(self.megabatches), tuple(map(int, self.samples)), self.retrain)


class Gone(BaseModel):
    """What went from one megabatch."""

    megabatch: int = Field(description="Its number.")
    digest: Digest = Field(description="Of its arrays as they were accepted; the same content again is refused.")
    erased: int = Field(description="How many examples went.")
    left: int = Field(description="How many are left; 0: it is a tombstone now.")


_GONE = {"megabatch": 5, "digest": DIGEST, "erased": 2300, "left": 0}
_ALIAS = {"model": "gas-sensors", "name": "champion", "version": 4, "revision": 6, "moved_at": TIME}


class Erased(BaseModel):
    """What an erasure did, or would do. Values go; versions that learnt from them stay."""

    model_config = example(
        {
            "model": "gas-sensors",
            "preview": False,
            "megabatches": [_GONE],
            "evaluation_examples": 0,
            "absent": [],
            "already": [],
            "versions": [5, 6],
            "aliases": {"champion": 6},
            "clean": 4,
            "champion": _ALIAS,
            "anew": False,
            "superseded_cycles": [7],
            "queued_cycle": 8,
            "shared": [],
            "pending": False,
        }
    )

    model: str = Field(description="Name of the model.")
    preview: bool = Field(description="Whether this only says what would happen.")
    megabatches: list[Gone] = Field(description="From which megabatches something went; empty: nothing was changed.")
    evaluation_examples: int = Field(description="How many examples went from the evaluation set in force.")
    absent: list[str] = Field(description="Ids that nothing holds, because nothing ever did, or they are erased.")
    already: list[int] = Field(description="Megabatches that were named and had been erased before.")
    versions: list[int] = Field(
        description="Versions that took in a megabatch of these, by their own cycle or an ancestor's; they stay, and "
        "carry its influence."
    )
    aliases: dict[str, int] = Field(description="Aliases that named such a version before this, and which.")
    clean: int | None = Field(
        description="The champion's nearest ancestor, or itself, that took in nothing of it; null: there is none."
    )
    champion: Alias | None = Field(description="Where the champion was moved; null: it stayed.")
    anew: bool = Field(description="Whether the next cycle begins afresh, since no ancestor is clean.")
    superseded_cycles: list[int] = Field(description="Open cycles that ended, or would.")
    queued_cycle: int | None = Field(description="The cycle that trains on what is left; null: none was needed.")
    shared: list[Digest] = Field(
        description="Files that stay, since another row names the very same bytes: such as the same labels."
    )
    pending: bool = Field(description="Whether some bytes could not be removed yet; a worker goes on with it.")

    @classmethod
    def from_domain(cls, model: str, done: erasure.Erased, *, preview: bool) -> Self:
        """From what the service did, or would do."""
        return cls(
            model=model,
            preview=preview,
            megabatches=[
                Gone(megabatch=one.megabatch, digest=one.digest, erased=one.erased, left=one.left)
                for one in done.megabatches
            ],
            evaluation_examples=done.evaluation,
            absent=[str(id) for id in done.absent],
            already=list(done.already),
            versions=list(done.versions),
            aliases=dict(done.aliases),
            clean=done.clean,
            champion=None if done.champion is None else Alias.from_domain(done.champion),
            anew=done.anew,
            superseded_cycles=_numbers(done.superseded),
            queued_cycle=None if done.queued is None else done.queued.number,
            shared=list(done.shared),
            pending=done.pending,
        )


class SortedMegabatch(BaseModel):
    """A megabatch that was put into quarantine or let out of it, and what came of that."""

    megabatch: Megabatch = Field(description="As it is now.")
    superseded_cycles: list[int] = Field(description="Open cycles that ended, since they stood on other ground.")
    queued_cycle: int | None = Field(description="The cycle in their place; null: none was open, or nothing is left.")

    @classmethod
    def from_domain(cls, done: megabatches.Sorted) -> Self:
        """From what the service did."""
        return cls(
            megabatch=Megabatch.from_domain(done.megabatch, done.input),
            superseded_cycles=_numbers(done.superseded),
            queued_cycle=None if done.queued is None else done.queued.number,
        )


def _numbers(cycles: tuple[domain.Cycle, ...]) -> list[int]:
    return [cycle.number for cycle in cycles]
