"""Recipes: the revisions of a model's recipe, and what the next one would do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, problems, with_headers
from app.api.dependencies import MAX_NUMBER, ActorDep, CursorText, Limit, ModelName, StoreDep, decode_number
from app.api.strict_json import JsonRoute
from app.service import recipes

router = APIRouter(prefix="/v1/models/{model}", tags=["models"], route_class=JsonRoute)

_UNKNOWN = (errors.UnknownModel, errors.UnknownRevision)
_Before = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="A revision.", examples=[1])]
_After = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="Another revision.", examples=[2])]
_Revision = Annotated[
    int | None, Query(ge=1, le=MAX_NUMBER, description="Which one; without: the one in force.", examples=[1])
]


@router.get("/recipe", summary="Look at a recipe", responses=problems(*_UNKNOWN))
def get_recipe(name: ModelName, store: StoreDep, revision: _Revision = None) -> schemas.RecipeRevision:
    """The recipe in force, whole, or an earlier revision of it."""
    return schemas.RecipeRevision.from_domain(recipes.get_recipe(store, name, revision))


@router.post(
    "/recipe",
    status_code=201,
    summary="Revise a recipe",
    responses={
        201: with_headers("In force.", {"Location": "Path of the revision."}),
        **problems(errors.UnknownModel, errors.InvalidRecipe, errors.RecipeUnchanged, *JSON_BODY),
    },
)
def revise_recipe(
    name: ModelName,
    body: schemas.NewRecipe,
    request: Request,
    response: Response,
    store: StoreDep,
    actor: ActorDep,
) -> schemas.RevisedRecipe:
    """Put the next revision in force. Weights, mask and stage stay; open cycles are superseded, and one cycle for all
    that waits takes their place.
    """
    done = recipes.revise_recipe(store, name, body.recipe, reason=body.reason, actor=actor)
    root = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root}/v1/models/{name}/recipe?revision={done.revision.revision}"
    return schemas.RevisedRecipe.from_revised(done)


@router.post(
    "/recipe/preview",
    summary="Preview a recipe",
    responses=problems(errors.UnknownModel, errors.InvalidRecipe, *JSON_BODY),
)
def preview_recipe(name: ModelName, body: schemas.RecipePreviewed, store: StoreDep) -> schemas.RecipePreview:
    """What a revision would do: what differs, the densities that it plans, and what the next cycle may take. Changes
    nothing.
    """
    return schemas.RecipePreview.from_domain(recipes.preview_recipe(store, name, body.recipe))


@router.get("/recipes", summary="List revisions", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_recipes(
    name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None
) -> schemas.RecipeRevisions:
    """Every revision of a model's recipe, newest first."""
    page = recipes.list_recipes(store, name, after=decode_number("recipes", cursor), limit=limit)
    return schemas.RecipeRevisions.from_domain("recipes", page, schemas.RecipeRevision.from_domain)


@router.get("/recipes/{before}/diff/{after}", summary="Compare two revisions", responses=problems(*_UNKNOWN))
def compare_recipes(name: ModelName, before: _Before, after: _After, store: StoreDep) -> schemas.RecipeComparison:
    """Every choice that differs between two revisions."""
    changes = recipes.compare_recipes(store, name, before, after)
    shown = [schemas.RecipeChange.from_domain(change) for change in changes]
    return schemas.RecipeComparison(before=before, after=after, changes=shown)
