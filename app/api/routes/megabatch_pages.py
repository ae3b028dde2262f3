"""The page of megabatches: what came, how it was taken, and the dialogs that put it aside, pin it or erase it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, TOLD, ActorDep, ModelName, Number, StoreDep
from app.api.routes.pages import KINDS
from app.api.web import dialogs
from app.api.web import megabatches_page as page_shown
from app.api.web.forms import Form
from app.api.web.rendering import render, speech_of
from app.domain import MegabatchStatus
from app.service import erasure, ingest, megabatches, overview, previews

router = APIRouter(prefix="/models/{model}/megabatches", include_in_schema=False, dependencies=[TOLD])

ROWS = 50
"""Megabatches on a page."""

PART_BYTES = 4 * 1024 * 1024
"""Bytes of a file that the page sends at once."""

_Before = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]
_Retrain = Annotated[bool, Query()]


@router.get("")
def megabatches_page(name: ModelName, request: Request, store: StoreDep, before: _Before = None) -> Response:
    """Every megabatch in one row, newest first; and where files are dropped."""
    view = overview.view_megabatches(store, name, before=before, limit=ROWS)
    page = page_shown.shown(view, speech_of(request))
    return render(
        request, "megabatches.html", active="models", page=page, before=before, kinds=KINDS, part_bytes=PART_BYTES
    )


@router.get("/{number}/quarantine")
def ask_sorting(name: ModelName, number: Number, request: Request, store: StoreDep) -> Response:
    """What putting it into quarantine, or letting it out, would change."""
    return dialogs.ask(request, "sorting", name=name, p=previews.preview_sorting(store, name, number))


@router.post("/{number}/quarantine")
def do_sorting(
    name: ModelName, number: Number, request: Request, form: Form, store: StoreDep, actor: ActorDep
) -> Response:
    """Put it into quarantine, or let it out."""
    quarantine = form.needed("state") == MegabatchStatus.QUARANTINED
    change = megabatches.quarantine_megabatch if quarantine else megabatches.release_megabatch
    done = change(store, name, number, reason=form.needed("reason"), actor=actor)
    return dialogs.done(request, name, "sorted", done=done)


@router.get("/{number}/pin")
def ask_pin(name: ModelName, number: Number, request: Request, store: StoreDep) -> Response:
    """Whether every cycle is to replay it, or no longer."""
    megabatch, _ = ingest.get_megabatch(store, name, number)
    return dialogs.ask(request, "pin", name=name, megabatch=megabatch)


@router.post("/{number}/pin")
def do_pin(name: ModelName, number: Number, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Pin it, or unpin it."""
    pinned = form.needed("state") == "pinned"
    megabatches.pin_megabatch(store, name, number, pinned=pinned, reason=form.needed("reason"), actor=actor)
    return dialogs.done(request, name, "pinned" if pinned else "unpinned", number=number)


@router.get("/{number}/erase")
def ask_erasure(
    name: ModelName, number: Number, request: Request, store: StoreDep, retrain: _Retrain = False
) -> Response:
    """What erasing it would change."""
    preview = erasure.preview(store, name, erasure.Asked(megabatches=(number,), retrain=retrain))
    return dialogs.ask(request, "erasure", name=name, number=number, retrain=retrain, p=preview)


@router.post("/{number}/erase")
def do_erasure(
    name: ModelName, number: Number, request: Request, form: Form, store: StoreDep, actor: ActorDep
) -> Response:
    """Erase it for good."""
    asked = erasure.Asked(megabatches=(number,), retrain=form.given("retrain"))
    done = erasure.erase(store, name, asked, reason=form.needed("reason"), actor=actor)
    return dialogs.done(request, name, "erased", done=done)
