"""The pages of megabatches: what came, how it was taken, its examples, and the dialogs that put it aside, pin it or
erase it.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, TOLD, ActorDep, CallerDep, ModelName, Number, StoreDep
from app.api.routes.pages import KINDS
from app.api.scopes import EXAMPLES
from app.api.web import dialogs
from app.api.web import megabatch_page as megabatch_shown
from app.api.web import megabatches_page as page_shown
from app.api.web.forms import Form
from app.api.web.pictures import layout_of, sheet
from app.api.web.rendering import render, speech_of
from app.domain import MegabatchStatus
from app.errors import CorruptBlob, MissingBlob, NotFound
from app.service import erasure, ingest, megabatches, overview, peeks, previews

router = APIRouter(prefix="/models/{model}/megabatches", include_in_schema=False, dependencies=[TOLD])

ROWS = 50
"""Megabatches on a page."""

PART_BYTES = 4 * 1024 * 1024
"""Bytes of a file that the page sends at once."""

EXAMPLES_SHOWN = 32
"""Examples on a page of one megabatch."""

CACHED = "private, max-age=3600, immutable"
"""A sheet of pictures never changes: its address names the bytes that it is drawn from. A browser keeps it for an hour
and no longer, so that what is erased is soon nowhere."""

_Before = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]
_Retrain = Annotated[bool, Query()]
_Class = Annotated[int | None, Query(alias="class", ge=0, le=MAX_NUMBER)]
_After = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]
_Of = Annotated[str, Query(max_length=80)]


@router.get("")
def megabatches_page(name: ModelName, request: Request, store: StoreDep, before: _Before = None) -> Response:
    """Every megabatch in one row, newest first; and where files are dropped."""
    view = overview.view_megabatches(store, name, before=before, limit=ROWS)
    page = page_shown.shown(view, speech_of(request))
    return render(
        request, "megabatches.html", active="models", page=page, before=before, kinds=KINDS, part_bytes=PART_BYTES
    )


@router.get("/{number}")
def megabatch_page(
    name: ModelName,
    number: Number,
    request: Request,
    store: StoreDep,
    caller: CallerDep,
    label: _Class = None,
    after: _After = None,
) -> Response:
    """One megabatch: what is known of it and, for those who may see them, its examples."""
    view, found, broken = overview.view_megabatch(store, name, number), None, False
    if caller.may(EXAMPLES) and view.megabatch.status is not MegabatchStatus.ERASED:
        try:
            found = peeks.look(store, name, number, label=label, after=after, limit=EXAMPLES_SHOWN)
        except (MissingBlob, CorruptBlob):
            broken = True  # what is known of it is told all the same
    page = megabatch_shown.shown(view, found, speech_of(request), label=label, after=after)
    return render(request, "megabatch.html", active="models", page=page, broken=broken, kinds=KINDS, needs=EXAMPLES)


@router.get("/{number}/sheet")
def megabatch_sheet(
    name: ModelName, number: Number, of: _Of, store: StoreDep, label: _Class = None, after: _After = None
) -> Response:
    """The pictures of one page's examples, one below the other in one PNG: one request, and not one an example, looks
    the rows up once and is kept whole.

    Raises:
        NotFound: the megabatch holds other bytes than ``of``, or no images.
    """
    found = peeks.look(store, name, number, label=label, after=after, limit=EXAMPLES_SHOWN)
    layout = layout_of(found.values.shape[1:])
    if layout is None or of != found.megabatch.x:
        raise NotFound("there are no such pictures: the megabatch changed since the page was made; load it anew")
    low, high = (0.0, 0.0) if found.values.dtype == np.uint8 else peeks.range_of(found.values)
    drawn = sheet(
        (found.values[row] for row in found.rows), len(found.rows), layout, float(np.min(low)), float(np.max(high))
    )
    return Response(drawn, media_type="image/png", headers={"Cache-Control": CACHED})


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
