"""Aliases: movable names of versions, and the promotions and rollbacks that move them.

Knows: how an alias, its history and what a move did look. Must never know: which version a rollback restores.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.dependencies import MAX_NUMBER, NAME_PATTERN
from app.api.schemas.versions import VERSION, Version
from app.api.schemas.wire import TIME, Asked, Page, Time, example
from app.service import promotion, release

_ALIAS = {"model": "gas-sensors", "name": "champion", "version": 5, "revision": 5, "moved_at": TIME}


class NewRollback(Asked):
    """Where the champion goes back to, and why."""

    model_config = example(
        {"reason": "line 3 was miscalibrated", "quarantine": [5]}, {"reason": "worse in production", "to": 3}
    )

    to: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        None,
        description="Number of an ancestor of the champion. Null: the nearest one without quarantined megabatches.",
    )
    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)
    quarantine: list[Annotated[int, Field(ge=1, le=MAX_NUMBER)]] = Field(
        [], max_length=10_000, description="Megabatches that must not be trained on from now on."
    )


class Alias(BaseModel):
    """A movable name of a version."""

    model_config = example(_ALIAS)

    model: str = Field(description="Name of the model.")
    name: str = Field(description="Name of the alias.")
    version: int = Field(description="The version that it points to.")
    revision: int = Field(description="Grows with every move; send it as `If-Match` to move it.")
    moved_at: Time = Field(description="When it was moved there.")
    actor: str | None = Field(None, description="With `at`: who moved it there.")
    reason: str | None = Field(None, description="With `at`: why.")

    @classmethod
    def from_domain(cls, alias: domain.Alias) -> Self:
        """From the domain's value."""
        return cls(
            model=alias.model, name=alias.name, version=alias.version, revision=alias.revision, moved_at=alias.moved_at
        )

    @classmethod
    def from_move(cls, move: domain.AliasMove) -> Self:
        """The alias as this move left it."""
        return cls(
            model=move.model,
            name=move.alias,
            version=move.version,
            revision=move.revision,
            moved_at=move.moved_at,
            actor=move.actor,
            reason=move.reason,
        )


class AliasMove(BaseModel):
    """One line of an alias's history."""

    model_config = example(
        {
            "model": "gas-sensors",
            "alias": "champion",
            "revision": 6,
            "previous": 5,
            "version": 4,
            "actor": "local",
            "reason": "line 3 was miscalibrated",
            "moved_at": TIME,
        }
    )

    model: str = Field(description="Name of the model.")
    alias: str = Field(description="Name of the alias.")
    revision: int = Field(description="Revision of the alias from this move on.")
    previous: int | None = Field(description="The version that it pointed to before.")
    version: int = Field(description="The version that it points to from this move on.")
    actor: str = Field(description="Who moved it.")
    reason: str = Field(description="Why.")
    moved_at: Time = Field(description="When.")

    @classmethod
    def from_domain(cls, move: domain.AliasMove) -> Self:
        """From the domain's value."""
        return cls(
            model=move.model,
            alias=move.alias,
            revision=move.revision,
            previous=move.previous,
            version=move.version,
            actor=move.actor,
            reason=move.reason,
            moved_at=move.moved_at,
        )


class AliasMoves(Page[AliasMove]):
    """Moves of an alias, newest first."""


class Promotion(Asked):
    """Why a version becomes the champion, and whether its verdict is overridden."""

    model_config = example(
        {"reason": "seen to work on line 3"}, {"reason": "the guardrail's set was mislabelled", "override": True}
    )

    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)
    override: bool = Field(
        False, description="Promote a version that its guardrails withheld, too; the log says `guardrail.overridden`."
    )


class NewTarget(Promotion):
    """The version that an alias points at from now on, and why."""

    model_config = example({"version": 5, "reason": "line 3 stays with it until the audit"})

    version: int = Field(description="Number of a version.", ge=0, le=MAX_NUMBER)


class Moved(BaseModel):
    """What a move of an alias did."""

    model_config = example({"alias": _ALIAS, "previous": 4})

    alias: Alias = Field(description="The alias now.")
    previous: int | None = Field(description="The version that it pointed to before; null if there was none.")

    @classmethod
    def from_domain(cls, moved: promotion.Moved) -> Self:
        """From the service's answer."""
        return cls(alias=Alias.from_domain(moved.alias), previous=moved.previous)


class RolledBack(BaseModel):
    """What a rollback did."""

    model_config = example(
        {
            "alias": _ALIAS,
            "previous": 6,
            "version": VERSION,
            "density_before": 0.2,
            "density_after": 0.25,
            "superseded_cycles": [7],
            "quarantined": [6],
            "queued_cycle": None,
        }
    )

    alias: Alias = Field(description="The champion now.")
    previous: int = Field(description="The champion before.")
    version: Version = Field(description="The version that was restored.")
    density_before: float = Field(description="Density of the champion before.")
    density_after: float = Field(description="Density of the champion now.")
    superseded_cycles: list[int] = Field(description="Cycles that were open and will not publish.")
    quarantined: list[int] = Field(description="Megabatches that were quarantined.")
    queued_cycle: int | None = Field(
        description="The cycle that was enqueued for what the restored version has not seen."
    )

    @classmethod
    def from_domain(cls, done: release.RolledBack) -> Self:
        """From the service's answer."""
        return cls(
            alias=Alias.from_domain(done.alias),
            previous=done.previous.number,
            version=Version.from_domain(done.version),
            density_before=done.previous.density,
            density_after=done.version.density,
            superseded_cycles=[cycle.number for cycle in done.superseded],
            quarantined=list(done.quarantined),
            queued_cycle=None if done.queued is None else done.queued.number,
        )
