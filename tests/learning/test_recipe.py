from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from app.errors import InvalidRecipe
from app.learning.recipe import (
    PRESETS,
    App,
    AtStart,
    ExactReading,
    FullReplay,
    Global,
    Multistep,
    Recipe,
    Sgd,
    Snip,
    Training,
    canonical_recipe,
    final_density,
    recipe_digest,
)


def faults(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.resolve(document)
    return dict(caught.value.errors)


def test_a_part_of_an_option_is_merged_onto_the_presets_own() -> None:
    assert Recipe.resolve({"preset": "app-paper", "schedule": {"tau": 3}}).schedule == App(tau=3, stages=8)
    assert Recipe.resolve({"training": {"rate": {"warmup": 0.5}}}).training.rate.warmup == 0.5


def test_a_part_is_merged_onto_the_preset_not_onto_the_default() -> None:
    assert Recipe.resolve({"preset": "one-shot", "schedule": {"target": 0.2}}).schedule.target == 0.2
    assert list(faults({"preset": "one-shot", "schedule": {"tau": 3}})) == ["/schedule/tau"]


def test_another_name_replaces_the_whole_option() -> None:
    recipe = Recipe.resolve({"training": {"optimizer": {"name": "adamw"}}})
    assert recipe.training.optimizer.weight_decay == 1e-2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_a_document_that_resolves_to_itself(preset: str) -> None:
    recipe = Recipe.resolve({"preset": preset})
    assert Recipe.resolve(json.loads(json.dumps(recipe.document()))) == recipe


def test_the_default_is_espalier() -> None:
    recipe = Recipe.resolve(None)
    assert recipe == Recipe.resolve({"preset": "espalier"}) == Recipe()
    assert final_density(recipe.schedule) == 0.366


def test_app_paper_is_the_paper_to_the_letter() -> None:
    recipe = Recipe.resolve({"preset": "app-paper"})
    assert recipe.schedule == App(tau=4.5, stages=8) and final_density(recipe.schedule) == 0.8**4.5
    assert recipe.criterion == Snip(sample=0.2) and recipe.pace == AtStart() and recipe.replay == FullReplay()
    assert recipe.distribution == Global(floor=0)
    assert recipe.training == Training(
        epochs=50, least_steps=0, minibatch=64, learning_rate=0.1, rate=Multistep(milestones=(0.4, 0.8), factor=0.1),
        optimizer=Sgd(momentum=0.9, weight_decay=1e-4), label_smoothing=0, select="best-epoch",
        reading=ExactReading(),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "target"), [("safe", 0.366), ("balanced", 0.2), ("small", 0.1), ("tiny", 0.05)])
def test_a_target_may_be_named(name: str, target: float) -> None:
    assert Recipe.resolve({"schedule": {"target": name}}) == Recipe.resolve({"schedule": {"target": target}})


def test_the_digest_depends_on_values_alone() -> None:
    left = Recipe.resolve({"preset": "app-paper", "seed": 3, "schedule": {"tau": 4}})
    right = Recipe.resolve({"schedule": {"name": "app", "tau": 4.0, "stages": 8}, "preset": "app-paper", "seed": 3})
    assert left.digest == right.digest == recipe_digest(dict(reversed(left.document().items())))
    assert left.digest != Recipe.resolve({"preset": "app-paper", "seed": 4, "schedule": {"tau": 4}}).digest
    assert json.loads(canonical_recipe(left.document())) == left.document()


FAULTY: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "/foo", "known keys: preset, seed, network"),
    ({"preset": "q"}, "/preset", "choose one of: espalier, espalier-drift, app-paper, dense, one-shot"),
    ({"schedule": {"name": "x"}}, "/schedule", "unknown name 'x' (choose one of: app, factor, one-shot, linear"),
    ({"schedule": {"tua": 3}}, "/schedule/tua", "unknown key 'tua' (known keys: name, target, stages"),
    ({"training": {"epochz": 3}}, "/training/epochz", "known keys: epochs, least_steps, minibatch"),
    ({"training": {"optimizer": {"name": "adamw", "momentum": 1}}}, "/training/optimizer/momentum", "beta1"),
    ({"guardrails": [{}]}, "/guardrails/0", "needs a name, one of: accuracy-drop, accuracy-floor"),
    ({"guardrails": [{"name": "density-floor", "at_least": 0.1, "x/y": 1}]}, "/guardrails/0/x~1y", "at_least"),
    ({"network": {"hidden": [4, 0]}}, "/network/hidden/1", "must be at least 1"),
    (
        {"preset": "app-paper", "training": {"rate": {"milestones": [0.8, 0.4]}}},
        "/training/rate",
        "milestones must increase",
    ),
    ({"trigger": {"name": "cron", "expression": "hourly"}}, "/trigger", "five cron fields"),
    (
        {"guardrails": [{"name": "density-floor", "at_least": 0.5}]},
        "/guardrails/0/at_least",
        "no version would pass",
    ),
    ({"distribution": {"floor": 0.5}}, "/distribution/floor", "lower the floor or raise the target"),
    ({"schedule": {"target": 1.5}}, "/schedule/target", "0.1 keeps a tenth"),
    ({"schedule": {"target": "huge"}}, "/schedule/target", "safe, balanced, small, tiny"),
    ({"pace": {"share": 1.5}}, "/pace/share", "longer than it"),
    ({"training": {"epochs": 1, "select": "best-epoch"}}, "/pace/share", "leaves no whole epoch"),
    ({"training": {"averaging": {"name": "tail", "share": 0.7}}}, "/training/averaging/share", "different masks"),
    ({"training": {"averaging": {"name": "ema"}, "select": "best-epoch"}}, "/training", "set select to last"),
    ({"training": {"patience": 3}}, "/training", "patience needs select best-epoch"),
    ({"training": {"augmentation": {"flip": True}}}, "/training/augmentation", "network to cnn"),
    ({"pace": {"name": "at-start"}}, "/criterion", "set pace to ramp, or criterion to snip"),
    ({"replay": {"name": "herding"}}, "/replay", "set replay.examples or replay.bytes"),
    (
        {"network": {"name": "custom", "architecture": "a"}, "replay": {"name": "k-centre", "examples": 9}},
        "/replay",
        "set network.features",
    ),
    (
        {"criterion": {"name": "magnitude"}, "guardrails": [{"name": "mask-agreement"}]},
        "/guardrails/0",
        "set criterion to taylor or snip",
    ),
    ({"seed": 2**53}, "/seed", "less than"),
    ({"guardrails": [{"name": "class-floor", "at_least": 0.5, "x": 1}]}, "/guardrails/0/x", "known keys: then"),
    ({"training": {"learning_rate": float("nan")}}, "/training/learning_rate", "finite"),
]
"""Recipes that cannot work; where, and words of what is said about it."""


@pytest.mark.parametrize(("document", "pointer", "words"), FAULTY)
def test_a_fault_says_where_and_what_to_do(document: dict[str, Any], pointer: str, words: str) -> None:
    found = faults(document)
    assert list(found) == [pointer]
    assert words in found[pointer]


def test_of_types_to_choose_from_each_says_what_it_misses() -> None:
    assert faults({"training": {"class_weights": [1, 0]}}) == {
        "/training/class_weights": "must be one of: 'balanced'",
        "/training/class_weights/1": "must be greater than 0.0",
    }


def test_several_faults_are_told_at_once() -> None:
    assert set(faults({"seed": -1, "training": {"epochs": 0}})) == {"/seed", "/training/epochs"}


def test_many_faults_are_listed_and_a_few_of_them_told() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.resolve({"network": {"hidden": [0] * 9}})
    assert len(caught.value.errors) == 9
    assert str(caught.value).endswith("; /network/hidden/4: must be at least 1; and 4 more")


def test_the_schema_is_small_to_import() -> None:
    """The API process shows the recipe, and must not load torch for it."""
    code = (
        "import sys; before = set(sys.modules); import app.learning.recipe; "
        "print({m.partition('.')[0] for m in set(sys.modules) - before} & {'torch', 'numpy', 'sqlalchemy', 'sklearn'})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
