"""Verdicts: why guardrails held something back, in the reader's language, from the figures that they wrote down.

Knows: which figure of which guardrail is a share, a difference or a count. Must never know: how a rule decides.

Law: what it has no sentence or no figures for is told as it was recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from app.api.web.recorded import fits, heard
from app.api.web.speech import Speech
from app.service.overview import Judged

_SHARES = frozenset(
    {
        *("accuracy", "upper_bound", "worst_accuracy", "worst_upper_bound", "train_accuracy", "validation_accuracy"),
        *("density", "thinnest_density", "agreement"),
    }
)
_POINTS = frozenset({"drop", "loss", "gap"})
_DIGITS = frozenset({"p_value", "statistic", "first_loss", "last_loss", "effect", "limit"})
_IN_POINTS = frozenset({"accuracy-drop", "forgetting", "generalization-gap"})
"""Rules whose limit is a difference of shares; that of the others is a share, but for one that is a factor."""

DIVERGENCE = "divergence"

_RULE = re.compile(r"[a-z-]+(#\d+)?: ")
"""How a reason begins that is about a rule; others are notes."""

_HARMLESS = ("unjudged", "breach.early")
"""Reasons of rules that did not trip."""


def reasons_of(judged: Judged, classes: Sequence[str], t: Speech) -> list[Markup]:
    """The reasons of a verdict.

    Args:
        judged: as they were recorded.
        classes: names of the model's classes.
        t: the language.
    """
    found = {rule["name"]: rule for rule in judged.rules if not rule["passed"]}
    told = []
    for text in judged.reasons:
        rule = found.get(text.partition(": ")[0])
        said = rule and why(rule["name"], rule, t, limit=judged.limits.get(rule["name"]), classes=classes)
        if rule and said and not rule["tripped"]:
            said += " " + t("reason.not_yet", n=rule["breaches"])
        told.append(escape(said) if said else heard(text, t))
    return told


def tripped(recorded: Sequence[str]) -> str:
    """Names of the rules that tripped, by the recorded reasons of a verdict."""
    about = [(text.partition(": "), text) for text in recorded]
    return ", ".join(name for (name, _, reason), text in about if _RULE.match(text) and not fits(reason, *_HARMLESS))


def why(
    rule: str, figures: Mapping[str, Any], t: Speech, *, limit: float | None = None, classes: Sequence[str] = ()
) -> str | None:
    """Why a rule was breached; None where it has no sentence, or not the figures for it.

    Args:
        rule: its name; the second of a kind has a number behind it.
        figures: what it rests on.
        t: the language.
        limit: what the recipe accepts.
        classes: names of the model's classes.
    """
    kind = rule.partition("#")[0]
    if not t.knows(f"reason.{kind}"):
        return None
    try:
        told = {name: _figure(kind, name, value, classes, t) for name, value in figures.items()}
        what = t(f"reason.{kind}", **told)
    except (KeyError, ValueError, TypeError):  # figures of another version of this service
        return None
    accepted = "" if limit is None else t("reason.limit", limit=_limit(kind, limit, t))
    return t("reason.whole", rule=rule, what=what, limit=accepted, remedy=t(f"reason.{kind}.do"))


def _figure(kind: str, name: str, value: Any, classes: Sequence[str], t: Speech) -> str:
    if name in _SHARES:
        return t.percent(float(value))
    if name in _POINTS or (kind == "prequential-drop" and name == "effect"):
        return t.points(float(value))
    if name in _DIGITS:
        return t.number(float(value), 3)
    if name == "worst_class":
        return classes[value] if value < len(classes) else str(value)
    if isinstance(value, list):
        return str(len(value))
    return t.number(value) if type(value) is int and not name.startswith("worst_megabatch") else str(value)


def _limit(kind: str, limit: float, t: Speech) -> str:
    if kind == DIVERGENCE:
        return t.times(limit)
    return t.points(limit) if kind in _IN_POINTS else t.percent(limit)
