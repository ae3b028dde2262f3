from __future__ import annotations

import pytest

from app.learning import recipe
from app.learning.architectures import BUILDERS
from app.learning.criteria import CRITERIA
from app.learning.guardrails import RULES
from app.learning.recipe.faults import choices
from app.learning.registry import Registry
from app.learning.replay import POLICIES
from app.learning.schedules import SCHEDULES


def test_finds_by_type_of_options() -> None:
    registry: Registry[str] = Registry("thing")
    registry.register(int)("whole")
    registry.register(float)("real")
    assert registry[3] == "whole" and registry[0.5] == "real"
    assert 3 in registry and "x" not in registry


def test_an_unknown_type_lists_the_known_ones() -> None:
    registry: Registry[str] = Registry("thing")
    registry.register(int)("whole")
    with pytest.raises(LookupError, match="no thing is registered for str; registered: int"):
        registry["x"]


def test_one_implementation_each() -> None:
    registry: Registry[str] = Registry("thing")
    registry.register(int)("whole")
    with pytest.raises(ValueError, match="thing int is registered already"):
        registry.register(int)("other")


@pytest.mark.parametrize(
    ("registry", "union"),
    [
        (SCHEDULES, recipe.Schedule),
        (CRITERIA, recipe.Criterion),
        (POLICIES, recipe.Replay),
        (RULES, recipe.Guardrail),
        (BUILDERS, recipe.Network),
    ],
)
def test_every_option_of_the_recipe_is_carried_out(registry: Registry[object], union: object) -> None:
    kinds = set(choices(union).values()) - {recipe.Custom}  # custom networks bring their own factory
    assert kinds and kinds == set(registry._implementations)
