"""Triggers: when a cycle starts.

Knows: counts and cron expressions. Must never know: the clock.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, Union

from croniter import croniter
from pydantic import Field, model_validator

from app.learning.recipe.options import Options


class EveryMegabatches(Options):
    """A cycle whenever this many eligible megabatches wait."""

    name: Literal["megabatches"] = "megabatches"
    every: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="Megabatches per cycle.")


class Cron(Options):
    """A cycle at these times (UTC), when an eligible megabatch waits. Missed times coalesce into one."""

    name: Literal["cron"] = "cron"
    expression: str = Field(
        description="Five cron fields: minute, hour, day of month, month, day of week.", examples=["0 2 * * *"]
    )

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if len(self.expression.split()) != 5 or not croniter.is_valid(self.expression):
            raise ValueError("must be five cron fields, such as '0 2 * * *' for 02:00 UTC every day")
        return self


class Manual(Options):
    """Cycles only on request (`POST .../cycles`)."""

    name: Literal["manual"] = "manual"


Trigger = Annotated[Union[EveryMegabatches, Cron, Manual], Field(discriminator="name")]
