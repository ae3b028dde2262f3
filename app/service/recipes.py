"""Recipes: revisions of a model's recipe, and what one would do before anybody accepts it.

Knows: which revision is in force, how two differ, and what a schedule makes of the champion's density. Must never know:
HTTP, torch.

Laws:
    * A revision is immutable, and so is which one a version was made by. Nothing is ever edited.
    * A new revision supersedes the cycles that wait and run, and one cycle for all that the champion has not seen takes
      their place, under the new revision. The network, and which examples are validated on, stay.
    * A preview changes nothing. It is made by the functions that a cycle uses, so it cannot promise anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.domain import Actor, Cycle, CycleTrigger, Model, Page, RecipeRevision, Version
from app.errors import Conflict, RecipeUnchanged
from app.learning.history import History
from app.learning.recipe import ByExamples, Constant, Recipe, Training, final_density
from app.learning.schedules import Standing, advance, kept_at
from app.service.release import replace_open_cycles
from app.service.state import champion_of, state_of
from app.store.database import Store, Transaction

_MOST_POINTS = 200
_WEIGHTS = 10**9
"""Weights that a plan is drawn for; how many there are is only known once a network was built."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One choice that differs: JSON pointer, and its values; None also where one recipe has no such key."""

    pointer: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Point:
    """The density that a schedule plans for after so many more cycles."""

    cycle: int
    stage: int
    density: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the next cycle may take, scaled from the version that it starts from.

    Attributes:
        seconds: of pruning and training; None where that version says nothing of its own.
        checkpoint_bytes: of the next version's sparse checkpoint.
        basis: number of that version.
    """

    seconds: float | None
    checkpoint_bytes: int
    basis: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a revision would do.

    Attributes:
        revision: the number that it would have.
        changes: what differs from the recipe in force.
        points: the planned densities, from the next cycle on, each cycle pruning and none held; as far as they fall.
        density, stage: where the champion stands; 1.0 and 0 before the first one.
        target: the schedule's final density.
        estimate: None before the first version.
        superseded: numbers of the cycles that would end.
    """

    revision: int
    recipe: Recipe
    changes: tuple[Change, ...]
    density: float
    stage: int
    target: float
    points: tuple[Point, ...]
    estimate: Estimate | None
    superseded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Revised:
    """What a revision did."""

    revision: RecipeRevision
    changes: tuple[Change, ...]
    superseded: tuple[Cycle, ...]
    queued: Cycle | None


def get_recipe(store: Store, name: str, revision: int | None) -> RecipeRevision:
    """A revision of a model's recipe; None is the one in force.

    Raises:
        UnknownModel, UnknownRevision: with the remedy.
    """
    with store.reading() as tx:
        return tx.ledger.recipe(name, revision)


def list_recipes(store: Store, name: str, *, after: int | None, limit: int) -> Page[RecipeRevision]:
    """Revisions, newest first."""
    with store.reading() as tx:
        return tx.ledger.recipes(tx.ledger.model(name), after, limit)


def compare_recipes(store: Store, name: str, before: int, after: int) -> tuple[Change, ...]:
    """What differs between two revisions.

    Raises:
        UnknownModel, UnknownRevision: with the remedy.
    """
    with store.reading() as tx:
        first, second = (tx.ledger.recipe(name, number) for number in (before, after))
    return changes_of(first.document, second.document)


def preview_recipe(store: Store, name: str, document: Mapping[str, Any]) -> Preview:
    """What a revision would do. Changes nothing.

    Args:
        document: what differs from the recipe in force, or a preset plus what differs from that.

    Raises:
        InvalidRecipe: as ``revise_recipe`` would.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        present, revised = _revised(tx, model, document)
        champion = champion_of(tx, name)
        open_cycles = tx.ledger.open_cycles(model)
        done = _done(tx, name, champion)
    line = _line(store, champion)
    points = tuple(_points(revised, line))
    return Preview(
        revision=model.recipe_revision + 1,
        recipe=revised,
        changes=changes_of(present.document(), revised.document()),
        density=line.density,
        stage=line.stage,
        target=final_density(revised.schedule),
        points=points,
        estimate=_estimate(champion, done, revised, points),
        superseded=tuple(cycle.number for cycle in open_cycles),
    )


def revise_recipe(
    store: Store, name: str, document: Mapping[str, Any], *, reason: str, actor: Actor, seen: int | None = None
) -> Revised:
    """Put the next revision of a model's recipe in force.

    Args:
        document: what differs from the recipe in force, or a preset plus what differs from that.
        reason: in words, for the log.
        seen: the revision that was in force when this was decided; None: whichever.

    Raises:
        Conflict: another revision than ``seen`` is in force.
        InvalidRecipe: it cannot work, or changes what stays for the life of a model.
        RecipeUnchanged: it says what is in force.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        if seen not in (None, model.recipe_revision):
            raise Conflict(
                f"revision {model.recipe_revision} of the recipe of {name!r} was put in force meanwhile, and you saw "
                f"{seen}: look at the preview again"
            )
        present, revised = _revised(tx, model, document)
        changes = changes_of(present.document(), revised.document())
        if not changes:
            raise RecipeUnchanged(
                f"revision {model.recipe_revision} of the recipe of {name!r} says that already: nothing was changed"
            )
        model = tx.ledger.revise_recipe(model, revised.document(), revised.digest)
        tx.audit.append(
            "recipe.revised",
            model=name,
            reason=reason,
            parameters={
                "recipe": revised.document(),
                "recipe_digest": revised.digest,
                "recipe_revision": model.recipe_revision,
                "changes": [{"pointer": c.pointer, "before": c.before, "after": c.after} for c in changes],
            },
        )
        superseded, queued = replace_open_cycles(store, tx, model, CycleTrigger.RECIPE, "the recipe was revised")
        return Revised(tx.ledger.recipe(name), changes, superseded, queued)


def changes_of(before: Any, after: Any, pointer: str = "") -> tuple[Change, ...]:
    """What differs between two documents, by JSON pointer (RFC 6901), in order. Lists are compared whole."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        same = before == after
        return () if same else (Change(pointer, _told(before), _told(after)),)
    keys = dict.fromkeys([*before, *after])
    return tuple(
        change
        for key in keys
        for change in changes_of(before.get(key, _ABSENT), after.get(key, _ABSENT), f"{pointer}/{_escaped(key)}")
    )


def _told(value: Any) -> Any:
    return None if value is _ABSENT else value


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _revised(tx: Transaction, model: Model, document: Mapping[str, Any]) -> tuple[Recipe, Recipe]:
    present = Recipe.resolve(tx.ledger.recipe(model.name).document)
    return present, present.revised(document)


@dataclass(frozen=True, slots=True)
class _Line:
    """Where the champion's lineage stands: ``each`` megabatch has brought so many examples on average."""

    stage: int = 0
    density: float = 1.0
    arrived: int = 0
    each: int = 0


def _line(store: Store, champion: Version | None) -> _Line:
    if champion is None:
        return _Line()
    state = state_of(store.blobs, champion)
    arrived = History.from_document(state.history).arrived if state.history else 0
    each = round(arrived / max(1, len(state.seen)))
    return _Line(champion.stage, champion.kept / champion.total, arrived, each)


def _points(recipe: Recipe, line: _Line) -> Iterator[Point]:
    """One point a cycle, while anything can still fall."""
    stage, density = line.stage, line.density
    target = final_density(recipe.schedule)
    if isinstance(recipe.schedule, Constant) or (isinstance(recipe.schedule, ByExamples) and not line.each):
        return
    for cycle in range(1, _MOST_POINTS + 1):
        if density <= target:
            return
        # No history: nobody has seen the accuracies yet that might hold density back.
        standing = Standing(stage, kept_at(density, _WEIGHTS), _WEIGHTS, line.arrived + cycle * line.each)
        step = advance(recipe.schedule, standing)
        stage, density = step.stage, step.density
        yield Point(cycle, stage, density)


def _done(tx: Transaction, name: str, champion: Version | None) -> Mapping[str, Any]:
    """What the log says of the champion's training: steps, examples."""
    if champion is None:
        return {}
    found = (e for e in tx.audit.about(name, [("cycle", champion.cycle)]) if e.kind == "network.trained")
    entry = next(found, None)
    return entry.document["parameters"] if entry else {}


def _estimate(
    champion: Version | None, done: Mapping[str, Any], recipe: Recipe, points: tuple[Point, ...]
) -> Estimate | None:
    if champion is None:
        return None
    density = points[0].density if points else champion.kept / champion.total
    smaller = density * champion.total / max(1, champion.kept)
    return Estimate(
        _seconds(champion, done, recipe), round(champion.checkpoint_bytes * min(1.0, smaller)), champion.number
    )


def _seconds(champion: Version, done: Mapping[str, Any], recipe: Recipe) -> float | None:
    steps, examples = done.get("steps"), done.get("examples")
    spent = champion.metrics.get("train_seconds"), champion.metrics.get("prune_seconds", 0.0)
    if not steps or not examples or spent[0] is None:
        return None
    return (spent[0] + spent[1]) / int(steps) * _steps(recipe.training, int(examples))


def _steps(training: Training, examples: int) -> int:
    """Optimizer steps of a cycle over so many examples."""
    each = -(-examples // training.minibatch)
    return max(training.epochs, -(-training.least_steps // each)) * each
