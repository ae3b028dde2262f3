"""Keying: the page of keys; making one, whose text is shown once, and revoking one.

Every question is a page of its own, too, for browsers without scripts; a script shows it as a dialog instead.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import NAME_PATTERN, ActorDep, CallerDep, StoreDep
from app.api.idempotency import TOLD_ONCE
from app.api.routes.keys import KeyName
from app.api.web.forms import Fields, Form
from app.api.web.keys_page import rows_of
from app.api.web.rendering import render, wants_fragment
from app.domain import Scope
from app.errors import BadInput
from app.service import access

router = APIRouter(prefix="/keys", include_in_schema=False)

ROWS = 50
"""Keys on a page."""

LASTING = (30, 90, 365)
"""Days that a key may be made for; 0: for ever."""

_MOST_TEXT = 8000
_After = Annotated[str | None, Query(pattern=NAME_PATTERN)]


@router.get("")
def keys_page(request: Request, store: StoreDep, after: _After = None) -> Response:
    """Every key by name, and what it allows."""
    found = access.list_keys(store, after=after, limit=ROWS)
    part = request.headers.get("hx-target") == "keys"
    rows = rows_of(found.items, store.clock())
    template = "keys_part.html" if part else "keys.html"
    return render(request, template, active="keys", rows=rows, next=found.next, after=after)


@router.get("/new")
def ask_key(request: Request) -> Response:
    """What a key shall be called, and what it shall allow."""
    return _answer(request, "ask_key.html", all_scopes=list(Scope), lasting=LASTING)


@router.post("")
def do_key(request: Request, form: Form, store: StoreDep, caller: CallerDep, actor: ActorDep) -> Response:
    """Make it, and show its text. On a service that was open nothing is asked for again: it would lead to sign-in, and
    away from the text.
    """
    made = access.create_key(store, _wanted(form, store), caller=caller, actor=actor)
    request.scope[TOLD_ONCE] = True
    answer = _answer(request, "done_key.html", key=made.key, text=made.text)
    if caller.key:
        answer.headers["HX-Trigger"] = "espalier-changed"
    return answer


@router.get("/{key}/revoke")
def ask_revocation(name: KeyName, request: Request, store: StoreDep, caller: CallerDep) -> Response:
    """Whether to end a key, and what that ends."""
    key = access.get_key(store, name)
    return _answer(request, "ask_revocation.html", key=key, own=key.id == caller.key)


@router.post("/{key}/revoke")
def do_revocation(name: KeyName, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """End it."""
    key = access.revoke_key(store, name, reason=form.needed("reason"), actor=actor)
    answer = _answer(request, "done_revocation.html", key=key)
    answer.headers["HX-Trigger"] = "espalier-changed"
    return answer


def _answer(request: Request, part: str, **context: Any) -> Response:
    template = part if wants_fragment(request) else "dialog_page.html"
    return render(request, template, active="keys", part=part, **context)


def _wanted(form: Fields, store: StoreDep) -> access.Wanted:
    days = form.number("days")
    if days not in (0, *LASTING):
        raise BadInput(f"a key is made for {', '.join(map(str, LASTING))} days or for ever: choose one of these")
    models = [name for name in re.split(r"[\s,、]+", form.text("models", most=_MOST_TEXT)) if name]
    return access.Wanted(
        form.needed("name"),
        _scopes(form.texts("scope")),
        frozenset(models) or None,
        expires_at=store.clock() + timedelta(days=days) if days else None,
    )


def _scopes(texts: list[str]) -> frozenset[Scope]:
    try:
        return frozenset(map(Scope, texts))
    except ValueError as error:
        raise BadInput("there is no such scope: open the form anew, and choose among those it offers") from error
