"""Replay policies: which examples of past megabatches are trained on again.

Knows: names, caps and shares. Must never know: torch, or how a policy chooses.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from app.learning.recipe.options import Options


class _Replay(Options):
    new_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of new examples among those that an epoch shows, the rest being replayed; both are repeated "
        "or left out at random to fit. null: every example once.",
    )


class _Capped(_Replay):
    examples: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="Most past examples that are kept, pinned ones not counted; null: no cap."
    )
    bytes: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="Most bytes of past examples, as stored, pinned ones not counted; null: no cap."
    )


class FullReplay(_Replay):
    """Train on every eligible megabatch so far."""

    name: Literal["full"] = "full"


class NoReplay(Options):
    """Train on the new megabatches alone; pinned ones are not replayed either."""

    name: Literal["none"] = "none"

    @property
    def new_share(self) -> None:
        """All is new."""
        return None


class LastReplay(_Replay):
    """The newest megabatches, beside the pinned ones."""

    name: Literal["last"] = "last"
    megabatches: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="Past megabatches that are replayed.")


class PinnedReplay(_Replay):
    """The pinned megabatches alone. (Every policy but `none` replays them.)"""

    name: Literal["pinned"] = "pinned"


class Reservoir(_Capped):
    """A uniform random sample of all that has arrived (Vitter 1985): every past example is kept equally often."""

    name: Literal["reservoir"] = "reservoir"


class ClassBalanced(_Capped):
    """As many past examples of each class as the cap allows, at random within a class."""

    name: Literal["class-balanced"] = "class-balanced"


class Herding(_Capped):
    """Per class, the examples whose features keep the mean nearest to the class mean (Welling 2009, iCaRL).

    Features are what the network's last linear layer sees. Needs a cap.
    """

    name: Literal["herding"] = "herding"


class KCentre(_Capped):
    """The examples that leave no other far away in feature space: greedy k-centre (Sener and Savarese 2018).

    Features are what the network's last linear layer sees. Needs a cap.
    """

    name: Literal["k-centre"] = "k-centre"


class HardestFirst(_Capped):
    """The examples with the highest loss under the network just trained. Needs a cap."""

    name: Literal["hardest-first"] = "hardest-first"


Replay = Annotated[
    Union[FullReplay, NoReplay, LastReplay, PinnedReplay, Reservoir, ClassBalanced, Herding, KCentre, HardestFirst],
    Field(discriminator="name"),
]
