"""Recipes: what a revision changes, what it leaves, and that a preview promises what a cycle then does."""

from __future__ import annotations

import pytest

from app.domain import CHAMPION, CycleState, CycleTrigger
from app.errors import InvalidRecipe, RecipeUnchanged, UnknownModel, UnknownRevision
from app.learning.recipe import Recipe
from app.service import history, models, recipes, release
from app.service.recipes import Change, changes_of
from tests.service.conftest import ACTOR, RECIPE, House


def revise(house: House, document: dict[str, object]) -> recipes.Revised:
    return recipes.revise_recipe(house.store, "gas", document, reason="10 % costs too much", actor=ACTOR)


def test_differences_are_told_by_pointer() -> None:
    before = {"a": {"b": 1, "c~/d": [1, 2]}, "gone": 1}
    after = {"a": {"b": 1, "c~/d": [2]}, "new": {"x": 1}}
    assert changes_of(before, before) == ()
    assert changes_of(before, after) == (
        Change("/a/c~0~1d", [1, 2], [2]),
        Change("/gone", 1, None),
        Change("/new", None, {"x": 1}),
    )


def test_a_revision_is_merged_onto_the_recipe_in_force(house: House) -> None:
    house.create()
    done = revise(house, {"schedule": {"stages": 6}})
    assert done.changes == (Change("/schedule/stages", 4, 6),)
    assert (done.revision.revision, done.superseded, done.queued) == (2, (), None)
    found = recipes.get_recipe(house.store, "gas", None)
    assert found == done.revision and found.document["network"]["hidden"] == [16]
    assert recipes.get_recipe(house.store, "gas", 1).document["schedule"]["stages"] == 4
    assert models.describe_model(house.store, "gas").model.recipe_digest == found.digest


def test_a_preset_takes_the_place_of_all_but_what_lasts(house: House) -> None:
    house.create(recipe={**RECIPE, "validation_share": 0.2})
    done = revise(house, {"preset": "dense"})
    assert done.revision.document["schedule"]["name"] == "constant"
    assert done.revision.document["validation_share"] == 0.2
    assert done.revision.document["network"] == Recipe.resolve(RECIPE).document()["network"]
    assert done.revision.document["training"]["epochs"] == Recipe.resolve({"preset": "dense"}).training.epochs


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"network": {"hidden": [32]}}, "/network"),
        ({"preset": "dense", "network": {"name": "mlp"}}, "/network"),
        ({"validation_share": 0.3}, "/validation_share"),
        ({"initial_weights": "sha256:" + "0" * 64}, "/initial_weights"),
        ({"schedule": {"stages": 0}}, "/schedule/stages"),
        ({"shedule": {}}, "/shedule"),
        ({"preset": "nothing"}, "/preset"),
    ],
)
def test_what_cannot_be_revised_is_named_and_changes_nothing(
    house: House, document: dict[str, object], pointer: str
) -> None:
    house.create()
    before = history.log_head(house.store)
    for ask in (revise, lambda house, document: recipes.preview_recipe(house.store, "gas", document)):
        with pytest.raises(InvalidRecipe) as caught:
            ask(house, document)
        assert [found for found, _ in caught.value.errors] == [pointer]
    assert history.log_head(house.store) == before


def test_a_revision_that_says_nothing_new_is_refused(house: House) -> None:
    house.create()
    with pytest.raises(RecipeUnchanged, match="revision 1 .* says that already"):
        revise(house, {"schedule": {"stages": 4}})


def test_unknown_ones_are_named(house: House) -> None:
    house.create()
    with pytest.raises(UnknownRevision, match="no recipe revision 2"):
        recipes.get_recipe(house.store, "gas", 2)
    with pytest.raises(UnknownRevision):
        recipes.compare_recipes(house.store, "gas", 1, 2**31 - 1)
    with pytest.raises(UnknownModel):
        recipes.list_recipes(house.store, "other", after=None, limit=1)


def test_revisions_are_listed_and_compared(house: House) -> None:
    house.create()
    for stages in (5, 6):
        revise(house, {"schedule": {"stages": stages}})
    first = recipes.list_recipes(house.store, "gas", after=None, limit=2)
    assert [found.revision for found in first.items] == [3, 2]
    rest = recipes.list_recipes(house.store, "gas", after=int(first.next or 0), limit=2)
    assert [found.revision for found in rest.items] == [1] and rest.next is None
    assert recipes.compare_recipes(house.store, "gas", 3, 1) == (Change("/schedule/stages", 6, 4),)


def test_the_log_says_what_was_changed_and_why(house: House) -> None:
    house.create()
    revise(house, {"training": {"epochs": 4}})
    entry = history.audit_entries(house.store, model="gas", after=None, limit=10, kind="recipe.revised").items[0]
    told = entry.document["parameters"]
    assert told["recipe_revision"] == 2
    assert told["changes"] == [{"pointer": "/training/epochs", "before": 3, "after": 4}]
    assert told["recipe_digest"] == recipes.get_recipe(house.store, "gas", 2).digest
    assert entry.document["reason"] == "10 % costs too much" and entry.actor == "tester"


def test_open_cycles_are_superseded_and_what_waits_is_trained_under_the_new_revision(house: House) -> None:
    house.create()
    house.grow(1)
    house.upload(seed=2)
    house.upload(seed=3)
    done = revise(house, {"training": {"epochs": 2}})
    assert [cycle.number for cycle in done.superseded] == [2, 3]
    assert done.queued is not None and done.queued.trigger is CycleTrigger.RECIPE and done.queued.through == 3
    ended = house.cycle()
    assert ended is not None and ended.state is CycleState.PUBLISHED and ended.number == done.queued.number
    version = release.get_version(house.store, "gas", CHAMPION).version
    assert (version.number, version.recipe_revision, version.recipe_digest) == (2, 2, done.revision.digest)
    assert history.examine(house.store) == []


def test_a_preview_changes_nothing_and_promises_what_the_cycle_does(house: House) -> None:
    house.create()
    house.grow(2)
    before = history.log_head(house.store)
    asked = {"schedule": {"name": "factor", "target": 0.2, "stages": 4}}
    seen = recipes.preview_recipe(house.store, "gas", asked)
    assert history.log_head(house.store) == before
    champion = release.get_version(house.store, "gas", CHAMPION).version
    assert (seen.stage, seen.density, seen.target) == (2, champion.density, 0.2)
    assert [point.cycle for point in seen.points] == list(range(1, len(seen.points) + 1))
    assert seen.points[-1].density == pytest.approx(0.2)
    assert seen.estimate is not None and seen.estimate.basis == 2
    assert 0 < seen.estimate.checkpoint_bytes <= champion.checkpoint_bytes

    revise(house, asked)
    for point in seen.points:
        house.upload(seed=10 + point.cycle)
        house.cycle()
        made = release.get_version(house.store, "gas", str(2 + point.cycle)).version
        assert (made.stage, made.target_density) == (point.stage, pytest.approx(point.density, abs=1 / made.total))


def test_a_higher_target_lets_nothing_grow_back(house: House) -> None:
    house.create(recipe={**RECIPE, "schedule": {"name": "one-shot", "target": 0.3}})
    house.grow(1)
    seen = recipes.preview_recipe(house.store, "gas", {"schedule": {"name": "factor", "target": 0.5, "stages": 2}})
    assert seen.points == ()
    revise(house, {"schedule": {"name": "factor", "target": 0.5, "stages": 2}})
    house.upload(seed=2)
    house.cycle()
    one, two = (release.get_version(house.store, "gas", ref).version for ref in ("1", "2"))
    assert two.kept == one.kept


def test_a_preview_before_the_first_version(house: House) -> None:
    house.create()
    seen = recipes.preview_recipe(house.store, "gas", {"schedule": {"name": "factor", "target": 0.25, "stages": 2}})
    assert (seen.stage, seen.density, seen.estimate, seen.superseded) == (0, 1.0, None, ())
    assert [(point.stage, round(point.density, 6)) for point in seen.points] == [(1, 0.5), (2, 0.25)]
    assert recipes.preview_recipe(house.store, "gas", {"preset": "dense"}).points == ()


def test_time_is_estimated_from_what_was_measured(house: House) -> None:
    house.create(recipe={**RECIPE, "training": {**RECIPE["training"], "least_steps": 0}})
    house.grow(1)
    once, twice = (
        recipes.preview_recipe(house.store, "gas", {"training": {"epochs": epochs}}).estimate for epochs in (3, 6)
    )
    assert once is not None and twice is not None and once.seconds and twice.seconds
    assert twice.seconds == pytest.approx(2 * once.seconds)
