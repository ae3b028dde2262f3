"""``espalier recipe``: look at a model's recipe, compare its revisions, try the next one, put it in force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from espalier.commands.models import Assignments, Preset, RecipeFile, TargetDensity, describe, flat, recipe_of
from espalier.console import clock, line, plural, share, size, when
from espalier.recipes import RecipeChange, RecipePreview
from espalier.session import ModelName, Reason, Session, command, group

_BARS = 40


def register(app: typer.Typer) -> None:
    """Add the commands."""
    recipe = group(app, "recipe", "Recipes: show, history, diff, preview, revise.")
    command(recipe, "show")(show)
    command(recipe, "history")(history)
    command(recipe, "diff")(diff)
    command(recipe, "preview")(preview)
    command(recipe, "revise")(revise)


def show(
    session: Session,
    name: ModelName,
    revision: Annotated[
        int | None, typer.Option(min=1, help="Which revision.", show_default="the one in force")
    ] = None,
) -> None:
    """Show a model's recipe, choice by choice, as --set takes them."""
    found = session.client.recipes.get(name, revision)
    rows: dict[str, object] = {
        "recipe": f"revision {found.revision}: {describe(found.recipe)}",
        "digest": found.digest,
        "in force since": when(found.created_at),
    }
    rows |= {f"  {path}": json.dumps(value, ensure_ascii=False) for path, value in flat(found.recipe)}
    session.pairs(found, rows)


def history(session: Session, name: ModelName) -> None:
    """List the revisions of a model's recipe, newest first."""
    found = list(session.client.recipes.list(name))
    rows = [(one.revision, describe(one.recipe), one.digest, when(one.created_at)) for one in found]
    session.table(found, ("revision", "recipe", "digest", "in force since"), rows, "none")


def diff(
    session: Session,
    name: ModelName,
    before: Annotated[int, typer.Argument(metavar="REVISION", min=1, help="A revision.")],
    after: Annotated[int, typer.Argument(metavar="REVISION", min=1, help="Another one.")],
) -> None:
    """Show what differs between two revisions of a model's recipe."""
    found = session.client.recipes.compare(name, before, after)
    if session.as_json:
        session.document(found)
        return
    _changes(session, found.changes, f"revisions {before} and {after} say the same")


def preview(
    session: Session,
    name: ModelName,
    preset: Preset = None,
    target_density: TargetDensity = None,
    assignments: Assignments = None,
    recipe: RecipeFile = None,
) -> None:
    """Show what a revision would do: what differs, the planned densities, and what the next cycle may take."""
    found = session.client.recipes.preview(name, recipe_of(recipe, preset, target_density, assignments))
    if session.as_json:
        session.document(found)
        return
    _changes(session, found.changes, "nothing differs from the recipe in force")
    for text in _told(found):
        line(session.console, text)


def revise(
    session: Session,
    name: ModelName,
    reason: Reason,
    preset: Preset = None,
    target_density: TargetDensity = None,
    assignments: Assignments = None,
    recipe: RecipeFile = None,
) -> None:
    """Put the next revision of a model's recipe in force. The network stays, and so do weights, mask and stage."""
    done = session.client.recipes.revise(name, recipe_of(recipe, preset, target_density, assignments), reason)
    parts = [f"{name}: revision {done.revision} is in force, {plural(len(done.changes), 'choice')} changed"]
    if done.superseded_cycles:
        parts.append(f"{plural(len(done.superseded_cycles), 'open cycle')} superseded")
    if done.queued_cycle is not None:
        parts.append(f"cycle {done.queued_cycle} queued for what waits")
    session.result(done, "; ".join(parts))


def _changes(session: Session, changes: Sequence[RecipeChange], empty: str) -> None:
    rows = [(c.pointer[1:].replace("/", "."), _value(c.before), _value(c.after)) for c in changes]
    session.table(changes, ("choice", "before", "after"), rows, empty)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _told(found: RecipePreview) -> list[str]:
    """The schedule drawn, a bar a cycle, and what else a person asks before they say yes."""
    lines = [f"density now {share(found.density)} (stage {found.stage}), target {share(found.target)}"]
    lines += [
        f"  +{point.cycle:<3} {share(point.density):>7} {'█' * max(1, round(point.density * _BARS))}"
        for point in found.planned[:_BARS]
    ]
    if len(found.planned) > _BARS:
        lines.append(f"  ... {len(found.planned) - _BARS} more cycles, to {share(found.planned[-1].density)}")
    if not found.planned:
        lines.append("  nothing falls any more")
    if (estimate := found.estimate) is not None:
        took = "" if estimate.seconds is None else f"about {clock(estimate.seconds)} of pruning and training, "
        lines.append(f"next cycle: {took}a checkpoint of about {size(estimate.checkpoint_bytes)}")
    if found.superseded_cycles:
        numbers = ", ".join(map(str, found.superseded_cycles))
        lines.append(f"open cycles that would be superseded: {numbers}")
    return lines
