"""Pages: models, a model, a version; and the parts of them that are asked for again when something happened."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, CallerDep, ModelName, Number, StoreDep
from app.api.web import model_page as model_shown
from app.api.web import version_page as version_shown
from app.api.web.models_page import row_of
from app.api.web.rendering import render, speech_of
from app.service import overview

router = APIRouter(include_in_schema=False)

ROWS = 50
"""Models on a page."""

KINDS = sorted(overview.TOLD)
"""What the pages listen to."""

_After = Annotated[str | None, Query(max_length=63)]
_Containing = Annotated[str, Query(alias="q", max_length=63)]
_Stage = Annotated[str | None, Query(max_length=16)]
_Before = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]


@router.get("/")
def home(
    request: Request, store: StoreDep, caller: CallerDep, after: _After = None, containing: _Containing = ""
) -> Response:
    """Every model in one row, and how it is."""
    wanted = containing.strip().lower()
    found = overview.glance_at_models(store, after=after, limit=ROWS, only=caller.models, containing=wanted)
    speech = speech_of(request)
    return render(
        request,
        "models_part.html" if request.headers.get("hx-target") == "models" else "models.html",
        active="models",
        rows=[row_of(glance, speech) for glance in found.page.items],
        total=found.total,
        next=found.page.next,
        after=after,
        containing=wanted,
        heard_of=found.heard_of,
        kinds=KINDS,
    )


@router.get("/models/{model}")
def model_page(name: ModelName, request: Request, store: StoreDep, before: _Before = None) -> Response:
    """One model: is it good, is it shrinking, did anything trip."""
    view = overview.view_model(store, name, before=before)
    shown = model_shown.shown(view, speech_of(request))
    return render(request, "model.html", active="models", page=shown, before=before, kinds=KINDS)


@router.get("/models/{model}/live")
def model_live(name: ModelName, request: Request, store: StoreDep, stage: _Stage = None) -> Response:
    """Those parts of a model's page that change, each to be put in the place of its former self; where the page that
    asks was made at another stage, it is to be loaded anew.
    """
    shown = model_shown.shown(overview.view_model(store, name), speech_of(request))
    if stage is not None and stage != shown.stage:
        return Response(headers={"HX-Refresh": "true"})
    return render(request, "model_live.html", page=shown, before=None)


@router.get("/models/{model}/cycle")
def cycle_live(name: ModelName, request: Request, store: StoreDep) -> Response:
    """The running cycle, as far as it is."""
    state = overview.view_queue(store, name)
    running = model_shown.running_of(state.cycle, state.queued, state.heard_of, speech_of(request))
    return render(request, "cycle_part.html", running=running, name=name)


@router.get("/models/{model}/versions/{number}")
def version_page(name: ModelName, number: Number, request: Request, store: StoreDep) -> Response:
    """One version: what it is, where it comes from, and what may be done with it."""
    shown = version_shown.shown(overview.view_version(store, name, str(number)), speech_of(request))
    return render(request, "version.html", active="models", v=shown, kinds=KINDS)
