"""Moves: dialogs that say what will happen, ask for the reason, and then say what was done.

Every question is a page of its own, too, for browsers without scripts; a script shows it as a dialog instead.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, TOLD, ActorDep, ModelName, Number, StoreDep
from app.api.web.dialogs import ask, done
from app.api.web.forms import Form
from app.api.web.rendering import speech_of
from app.api.web.verdicts import reasons_of
from app.domain import ModelState, Proposal
from app.service import cycles, models, overview, previews, promotion, release

router = APIRouter(prefix="/models/{model}", include_in_schema=False, dependencies=[TOLD])

_To = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]


# -- rollback ----------------------------------------------------------------------------------------------------------


@router.get("/rollback")
def ask_rollback(name: ModelName, request: Request, store: StoreDep, to: _To = None) -> Response:
    """Where the champion may go back to, and what that would change."""
    choices = overview.rollback_choices(store, name)
    wanted = choices[0].number if to is None and choices else to
    preview = None if wanted is None else previews.preview_rollback(store, name, wanted)
    return ask(request, "rollback", name=name, p=preview, choices=choices)


@router.post("/rollback")
def do_rollback(name: ModelName, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Go back."""
    moved = release.roll_back(
        store,
        name,
        to=str(form.number("to")),
        reason=form.needed("reason"),
        quarantine=form.numbers("quarantine"),
        expected_revision=form.number("revision"),
        actor=actor,
    )
    return done(request, name, "rollback", done=moved)


# -- promotion ---------------------------------------------------------------------------------------------------------


@router.get("/versions/{number}/promote")
def ask_promotion(name: ModelName, number: Number, request: Request, store: StoreDep) -> Response:
    """What making a version the champion would change."""
    p = previews.preview_promotion(store, name, number)
    reasons = reasons_of(p.withheld, p.classes, speech_of(request)) if p.withheld else ()
    return ask(request, "promotion", name=name, p=p, reasons=reasons)


@router.post("/versions/{number}/promote")
def do_promotion(
    name: ModelName, number: Number, request: Request, form: Form, store: StoreDep, actor: ActorDep
) -> Response:
    """Make it the champion, or propose to."""
    moved = promotion.promote(
        store,
        name,
        number,
        reason=form.needed("reason"),
        override=form.given("override"),
        expected_revision=form.number("revision"),
        actor=actor,
    )
    if isinstance(moved, Proposal):
        return done(request, name, "proposed", proposal=moved)
    return done(request, name, "promotion", done=moved)


@router.get("/proposals/{number}/decide")
def ask_decision(name: ModelName, number: Number, request: Request, store: StoreDep) -> Response:
    """What was proposed, by whom, and what approving it would change."""
    proposal = promotion.get_proposal(store, name, number)
    needed = promotion.protection_of(store, name, proposal.alias).needed
    return ask(request, "decision", name=name, proposal=proposal, needed=needed)


@router.post("/proposals/{number}/decide")
def do_decision(
    name: ModelName, number: Number, request: Request, form: Form, store: StoreDep, actor: ActorDep
) -> Response:
    """Approve or reject it."""
    decide = promotion.approve if form.needed("decision") == "approve" else promotion.reject
    proposal = decide(store, name, number, reason=form.needed("reason"), actor=actor)
    return done(request, name, "decided", proposal=proposal)


# -- training ----------------------------------------------------------------------------------------------------------


@router.get("/train")
def ask_cycle(name: ModelName, request: Request, store: StoreDep) -> Response:
    """Whether to train now."""
    return ask(request, "cycle", name=name, summary=models.describe_model(store, name))


@router.post("/train")
def do_cycle(name: ModelName, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Enqueue a cycle."""
    cycle = cycles.request_cycle(store, name, reason=form.text("reason") or None, actor=actor)
    return done(request, name, "cycle", cycle=cycle)


@router.get("/pause")
def ask_pause(name: ModelName, request: Request, store: StoreDep) -> Response:
    """Whether to stop starting cycles, or to start them again."""
    return ask(request, "pause", name=name, summary=models.describe_model(store, name))


@router.post("/pause")
def do_pause(name: ModelName, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Pause or resume."""
    change = models.resume_model if form.needed("state") == ModelState.ACTIVE else models.pause_model
    model = change(store, name, reason=form.needed("reason"), actor=actor)
    return done(request, name, "paused" if model.state is ModelState.PAUSED else "resumed")
