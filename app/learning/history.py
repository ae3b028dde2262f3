"""History: what a version hands on about its ancestry, beside weights and masks.

Knows: past accuracies and densities, breaches in a row, whether pruning is held, moments of past inputs. Must never
know: how any of it was measured, or what is done about it.

Laws:
    * A history is a value: a cycle makes a new one, and a rollback returns to the old one by itself.
    * ``History.from_document(history.document())`` is the same history. Its size is bounded for any length of stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.learning.moments import Moments

LONGEST = 256
"""Ancestors, and past megabatches, that a history remembers."""


@dataclass(frozen=True)
class Ancestor:
    """One version of the lineage: its stage and density, its accuracy on validation examples, its generalization gap;
    None of a version that was made before gaps were remembered.
    """

    stage: int
    density: float
    accuracy: float
    examples: int
    gap: float | None = None


@dataclass(frozen=True)
class Hold:
    """Pruning is held since a guardrail tripped.

    Attributes:
        rule: the guardrail's name, as in ``app.domain.Trip``.
        reason: why it tripped, in words.
        passes: versions in a row that have passed it since.
        needed: how many must.
    """

    rule: str
    reason: str
    passes: int
    needed: int

    def __str__(self) -> str:
        return f"held since {self.rule} tripped ({self.reason}): {self.passes} of {self.needed} passes"


@dataclass(frozen=True)
class History:
    """What a lineage remembers.

    Attributes:
        arrived: examples of all megabatches that it has taken in.
        ancestors: oldest first, the newest ``LONGEST``.
        best: best accuracy ever on each past megabatch's validation examples, by its number.
        breaches: breaches in a row so far, by guardrail; a rule that passed is absent.
        holds: why pruning is held, one for each guardrail that has not recovered; empty when it is not.
        evaluation_errors, evaluation_examples: sums over the lineage of misclassified and of all evaluation examples.
        moments: of all training rows that it has taken in, where the normalisation is ``running``.
    """

    arrived: int = 0
    ancestors: tuple[Ancestor, ...] = ()
    best: Mapping[int, float] = field(default_factory=dict)
    breaches: Mapping[str, int] = field(default_factory=dict)
    holds: tuple[Hold, ...] = ()
    evaluation_errors: int = 0
    evaluation_examples: int = 0
    moments: Moments | None = None

    @property
    def held(self) -> str | None:
        """Why pruning is held, in words; None when it is not."""
        return "; ".join(map(str, self.holds)) or None

    def pardoned(self) -> History:
        """The same without breaches and holds: of a version that was promoted although its guardrails tripped."""
        return replace(self, breaches={}, holds=())

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {
            "best": {str(number): accuracy for number, accuracy in sorted(self.best.items())},
            "moments": self.moments.document() if self.moments else None,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> History:
        """What ``document`` gave."""
        fields = {"moments": None, **document}  # a document of a version that knew none has none
        return cls(
            **fields
            | {
                "ancestors": tuple(Ancestor(**ancestor) for ancestor in fields["ancestors"]),
                "best": {int(number): accuracy for number, accuracy in fields["best"].items()},
                "holds": tuple(Hold(**hold) for hold in fields["holds"]),
                "moments": Moments.from_document(fields["moments"]) if fields["moments"] else None,
            }
        )
