"""Guardrails: from what the rules found to a verdict, with a memory that keeps noise from flapping.

Knows: findings, breaches in a row, what each rule asks for when it trips. Must never know: what a rule looks at
(``rules``), or how an action is carried out.

Laws:
    * A rule trips at its ``trip_after``-th breach in a row along a lineage. A breach before that is told in the
      verdict, and withholds nothing.
    * A watch (``watches``) that trips with ``hold`` withholds nothing: what has changed must be learned to recover from
      it. It holds pruning, in the same cycle where it is known on arrival.
    * A rule that trips with ``hold`` or ``restore`` holds pruning until ``recover_after`` versions of the lineage in a
      row have passed it; a version that is withheld is no part of the lineage and counts for none.
    * The verdict passes when no rule that withholds trips. Where several do, the strictest action decides, and the
      reasons list all.
    * Notes (what a rule could not look at) are reasons too, and withhold nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.domain import ACTIONS, HOLDING, Trip, Verdict
from app.learning.drift import Drift
from app.learning.history import History, Hold
from app.learning.recipe import Divergence, GapChange
from app.learning.recipe.guardrails import named_rules
from app.learning.rules import RULES, Evidence, Finding
from app.learning.watches import ON_ARRIVAL, on_arrival

__all__ = ["Evidence", "Judgement", "diverged", "held_on_arrival", "hold_since", "judge"]


@dataclass(frozen=True)
class Judgement:
    """The verdict, what each rule found, and what the lineage remembers of it.

    Attributes:
        verdict: on the candidate.
        rules: per rule: name, passed, tripped, breaches in a row, figures.
        trips: the rules that tripped, in the recipe's order.
        breaches: breaches in a row, this one included, by rule; one that passed is absent.
        holds: what holds pruning from now on.
    """

    verdict: Verdict
    rules: tuple[dict[str, Any], ...]
    trips: tuple[Trip, ...] = ()
    breaches: Mapping[str, int] = field(default_factory=dict)
    holds: tuple[Hold, ...] = ()


def judge(guardrails: Sequence[Any], evidence: Evidence) -> Judgement:
    """Apply every guardrail of the recipe to a candidate.

    Reasons of rules that tripped come first, then breaches that have not tripped yet, then the others, then the notes.
    """
    answers = [_asked(rule, options, evidence) for rule, options in named_rules(guardrails)]
    trips = tuple(answer.trip for answer in answers if answer.trips)
    withholding = [answer.trip for answer in answers if answer.withholds]
    reasons = [f"{a.rule}: {a.words}" for a in sorted(answers, key=_rank) if a.words]
    return Judgement(
        verdict=Verdict(
            not withholding, (*reasons, *evidence.notes), _strictest(withholding).action if withholding else ""
        ),
        rules=tuple(answer.report for answer in answers),
        trips=trips,
        breaches={answer.rule: answer.breaches for answer in answers if answer.breaches},
        holds=_holds(answers, evidence.history, published=not withholding),
    )


def held_on_arrival(guardrails: Sequence[Any], history: History, drift: Mapping[int, Drift]) -> str | None:
    """Why the density is to be held in this cycle by what has arrived, in words; None where it is not.

    Args:
        guardrails: of the recipe.
        history: of the lineage before the cycle.
        drift: how far each new megabatch lies from the past, by number.
    """
    asked = [(rule, o) for rule, o in named_rules(guardrails) if type(o) in ON_ARRIVAL and o.then in HOLDING]
    answers = [_Answer(rule, o, on_arrival(o, drift), history.breaches.get(rule, 0)) for rule, o in asked]
    return "; ".join(f"{a.rule} tripped ({a.words})" for a in answers if a.trips) or None


def diverged(guardrails: Sequence[Any], reason: str) -> Trip | None:
    """The trip of a cycle that made no version, since its training became infinite or NaN.

    Args:
        guardrails: of the recipe.
        reason: what happened, in words.

    Returns:
        The strictest trip whose action is another attempt, ``retry`` or ``hold``; None where no rule asks for one.
    """
    asking = [
        Trip(rule, options.then, 1, options.recover_after, reason)
        for rule, options in named_rules(guardrails)
        if isinstance(options, Divergence) and options.then in ("retry", "hold")
    ]
    return _strictest(asking) if asking else None


def hold_since(trip: Trip) -> Hold:
    """What holds pruning once a rule has tripped."""
    return Hold(trip.rule, trip.reason, 0, trip.recover_after)


def _asked(rule: str, options: Any, evidence: Evidence) -> _Answer:
    return _Answer(rule, options, RULES[options](options, evidence), evidence.history.breaches.get(rule, 0))


@dataclass(frozen=True)
class _Answer:
    """One rule's finding, in the light of the breaches before it."""

    rule: str
    options: Any
    finding: Finding
    before: int

    @property
    def breaches(self) -> int:
        return 0 if self.finding.passed else self.before + 1

    @property
    def trips(self) -> bool:
        return bool(self.breaches >= self.options.trip_after)

    @property
    def withholds(self) -> bool:
        """Whether it trips, and its version is withheld for it."""
        watches = (*ON_ARRIVAL, GapChange)
        return self.trips and not (type(self.options) in watches and self.options.then in HOLDING)

    @property
    def trip(self) -> Trip:
        options = self.options
        return Trip(self.rule, options.then, self.breaches, options.recover_after, self.words, self.finding.figures)

    @property
    def words(self) -> str:
        if self.finding.passed or self.options.trip_after == 1:
            return self.finding.reason
        if self.trips:
            return f"{self.finding.reason} (breached {self.breaches} times in a row)"
        return f"{self.finding.reason} (breached {self.breaches} of {self.options.trip_after} times before it trips)"

    @property
    def report(self) -> dict[str, Any]:
        found = {"passed": self.finding.passed, "tripped": self.trips, "breaches": self.breaches}
        return {"name": self.rule} | found | self.finding.figures


def _strictest(trips: Sequence[Trip]) -> Trip:
    return max(trips, key=lambda trip: ACTIONS.index(trip.action))


def _rank(answer: _Answer) -> int:
    return 0 if answer.trips else 1 if answer.breaches else 2


def _holds(answers: Sequence[_Answer], before: History, *, published: bool) -> tuple[Hold, ...]:
    """What holds pruning after a candidate; a rule that the recipe no longer has holds nothing."""
    held = {hold.rule: hold for hold in before.holds}
    after = []
    for answer in answers:
        hold, needed = held.get(answer.rule), answer.options.recover_after
        if answer.trips and answer.options.then in HOLDING:
            after.append(hold_since(answer.trip))
        elif hold is not None:
            passes = (hold.passes + published) * answer.finding.passed
            if passes < needed:
                after.append(replace(hold, passes=passes, needed=needed))
    return tuple(after)
