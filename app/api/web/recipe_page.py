"""The page of a recipe: what it shows, and which revision its form asks for.

Knows: revisions and previews, in words and drawings. Must never know: HTTP, or what a revision does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.api.web.drawing import Stairs, stairs
from app.api.web.forms import Fields
from app.domain import RecipeRevision
from app.errors import InvalidRecipe
from app.learning.recipe import PRESETS
from app.service.recipes import Change, Preview

NAMES = tuple(PRESETS)
"""Presets, by name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A choice that differs, and both of its values as JSON."""

    pointer: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class RecipePage:
    """The revision that is shown, the others, and what differs between two of them.

    Attributes:
        older: number to go on from among the revisions; None: there are no more.
    """

    model: str
    shown: RecipeRevision
    text: str
    revisions: Sequence[RecipeRevision]
    older: int | None
    before: int
    after: int
    differences: Sequence[Difference]


@dataclass(frozen=True, slots=True)
class Asked:
    """A preview in words: what the dialog asks about.

    Attributes:
        document: what is sent again when it is put in force.
    """

    preview: Preview
    document: str
    differences: Sequence[Difference]
    plan: Stairs | None


def asked_of(preview: Preview, document: dict[str, Any]) -> Asked:
    """A preview as the dialog shows it."""
    values = [preview.density, *(point.density for point in preview.points)]
    plan = stairs(values, preview.target) if preview.points else None
    return Asked(preview, json.dumps(document, ensure_ascii=False), differences_of(preview.changes), plan)


def differences_of(changes: Sequence[Change]) -> list[Difference]:
    """Changes as they are read."""
    return [Difference(change.pointer, _value(change.before), _value(change.after)) for change in changes]


def text_of(document: Any) -> str:
    """A recipe as it is read."""
    return json.dumps(document, indent=1, ensure_ascii=False)


def document_of(form: Fields) -> dict[str, Any]:
    """What a form asks for: a preset, a target density, and what else differs; the last of them wins.

    Raises:
        HttpProblem, InvalidRecipe: it cannot be read.
    """
    differing = form.json("document")
    if not isinstance(differing, dict | None):
        raise InvalidRecipe('what differs must be a JSON object, such as {"schedule": {"stages": 6}}')
    found: dict[str, Any] = {}
    if preset := form.text("preset"):
        found["preset"] = preset
    if (target := form.percent("target")) is not None:
        found["schedule"] = {"target": target}
    return _laid_over(found, differing or {})


def _laid_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    schedule = over.get("schedule")
    if isinstance(schedule, dict) and "schedule" in base:
        over = {**over, "schedule": {**base["schedule"], **schedule}}
    return {**base, **over}


def _value(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False)
