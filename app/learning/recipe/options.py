"""What all options of a recipe have in common.

Knows: how options are validated. Must never know: torch, or any one option.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """One choice of a recipe: immutable; an unknown key is an error; no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
