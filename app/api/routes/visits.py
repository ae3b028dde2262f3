"""Visits: a person signs in and out, chooses language and theme; and the files that pages are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Cookie, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import ActorDep, KeyringDep, SettingsDep, StoreDep
from app.api.middleware import COOKIE, address_of
from app.api.routes.sessions import is_secure, set_session
from app.api.web.assets import IMMUTABLE, SERVED
from app.api.web.forms import Form, local_path
from app.api.web.rendering import LANGUAGE_COOKIE, THEME_COOKIE, THEMES, render, root_of
from app.api.web.speech import LANGUAGES
from app.domain import Scope
from app.errors import KeyRequired, NotFound, TooManyRequests
from app.service import access

router = APIRouter(include_in_schema=False)

_YEAR = 365 * 24 * 3600
_Next = Annotated[str, Query(max_length=2000)]


@router.get("/static/{name}")
def static_file(name: str, request: Request) -> Response:
    """A style sheet, a script or an icon; its name changes with its content."""
    asset = SERVED.get(name)
    if asset is None:
        raise NotFound("there is no such file: the page was made by another version of this service; load it anew")
    headers = {"Cache-Control": IMMUTABLE, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, media_type=asset.media, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.body, media_type=asset.media, headers=headers)


@router.get("/sign-in")
def sign_in_page(request: Request, keyring: KeyringDep, next: _Next = "/") -> Response:
    """Where a key is shown. A service without keys needs none."""
    if keyring.open:
        return RedirectResponse(f"{root_of(request.scope)}{local_path(next)}", 303)
    return render(request, "sign_in.html", next=local_path(next), refusal="")


@router.post("/sign-in")
def sign_in_here(request: Request, form: Form, store: StoreDep, settings: SettingsDep, keyring: KeyringDep) -> Response:
    """Begin a session with the key, and go on to where the person wanted to."""
    key, address, wanted = form.text("key"), address_of(request.scope), local_path(form.text("next"))
    if not keyring.ready(key, address):
        keyring.refresh()
    try:
        caller = keyring.admit(key or None, address)
    except KeyRequired:
        return render(request, "sign_in.html", status=401, next=wanted, refusal="sign_in.refused")
    except TooManyRequests:
        return render(request, "sign_in.html", status=429, next=wanted, refusal="sign_in.too_often")
    if not caller.may(Scope.READ):
        return render(request, "sign_in.html", status=403, next=wanted, refusal="sign_in.no_read")
    begun = access.sign_in(store, keyring, caller, seconds=settings.session_seconds)
    response = _go_to(request, wanted)
    set_session(response, begun.text, int((begun.expires_at - datetime.now(UTC)).total_seconds()), is_secure(request))
    return response


@router.post("/sign-out")
def sign_out_here(
    request: Request,
    store: StoreDep,
    keyring: KeyringDep,
    actor: ActorDep,
    session: Annotated[str | None, Cookie(alias=COOKIE)] = None,
) -> Response:
    """End the session."""
    if session is not None:
        access.sign_out(store, keyring, session, actor=actor)
    response = _go_to(request, "/sign-in")
    set_session(response, "", 0, is_secure(request))
    return response


@router.post("/preferences")
def set_preferences(request: Request, form: Form) -> Response:
    """Keep a choice of language or theme in the browser; an empty theme follows the machine's."""
    response = _go_to(request, local_path(form.text("next")))
    language, theme = form.text("language"), form.text("theme")
    if language in LANGUAGES:
        _keep(request, response, LANGUAGE_COOKIE, language)
    if form.given("theme"):
        _keep(request, response, THEME_COOKIE, theme if theme in THEMES else "")
    return response


def _go_to(request: Request, path: str) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}{path}", 303, {"Cache-Control": "no-store"})


def _keep(request: Request, response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, _YEAR, path="/", secure=is_secure(request), httponly=True, samesite="lax")
