"""The page of a recipe: the one in force, its revisions, and the next one: drawn first, put in force then."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, TOLD, ActorDep, ModelName, StoreDep
from app.api.web import dialogs
from app.api.web import recipe_page as shown
from app.api.web.forms import Form
from app.api.web.rendering import render
from app.service import recipes

router = APIRouter(prefix="/models/{model}/recipe", include_in_schema=False, dependencies=[TOLD])

ROWS = 50
"""Revisions on a page."""

_Number = Annotated[int | None, Query(ge=1, le=MAX_NUMBER)]


@router.get("")
def recipe_page(
    name: ModelName,
    request: Request,
    store: StoreDep,
    revision: _Number = None,
    before: _Number = None,
    after: _Number = None,
    older: _Number = None,
) -> Response:
    """A revision whole, without a number the one in force; all revisions; what differs between two of them."""
    found = recipes.get_recipe(store, name, revision)
    page = recipes.list_recipes(store, name, after=older, limit=ROWS)
    second = after or found.revision
    first = before or max(1, second - 1)
    view = shown.RecipePage(
        model=name,
        shown=found,
        text=shown.text_of(found.document),
        revisions=page.items,
        older=int(page.next) if page.next else None,
        before=first,
        after=second,
        differences=shown.differences_of(recipes.compare_recipes(store, name, first, second)),
    )
    return render(request, "recipe.html", active="models", page=view, presets=shown.NAMES)


@router.post("/preview")
def ask_recipe(name: ModelName, request: Request, form: Form, store: StoreDep) -> Response:
    """What a revision would do; changes nothing."""
    document = shown.document_of(form)
    asked = shown.asked_of(recipes.preview_recipe(store, name, document), document)
    return dialogs.ask(request, "recipe", name=name, asked=asked, p=asked.preview)


@router.post("")
def do_recipe(name: ModelName, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Put the next revision in force."""
    done = recipes.revise_recipe(
        store,
        name,
        shown.document_of(form),
        reason=form.needed("reason"),
        actor=actor,
        seen=form.number("seen"),
    )
    return dialogs.done(request, name, "recipe", done=done)
