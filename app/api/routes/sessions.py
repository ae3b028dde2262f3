"""Sessions: a browser signs in with a key, asks who it is, and signs out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Cookie, Request, Response

from app.api import schemas
from app.api.declared import JSON_BODY, OPEN, problems, with_headers
from app.api.dependencies import ActorDep, CallerDep, KeyringDep, SettingsDep, StoreDep
from app.api.headers import is_https
from app.api.idempotency import TOLD_ONCE
from app.api.middleware import COOKIE, address_of, first_of_each
from app.api.problems import CROSS_ORIGIN
from app.api.strict_json import JsonRoute
from app.service import access

router = APIRouter(prefix="/v1/session", tags=["keys"], route_class=JsonRoute)

_COOKIE = {"Set-Cookie": "The session: HttpOnly, SameSite=Strict, and Secure behind TLS."}


@router.post(
    "",
    summary="Sign in",
    openapi_extra=OPEN,
    responses={200: with_headers("Signed in.", _COOKIE), **problems(CROSS_ORIGIN, *JSON_BODY)},
)
def sign_in(
    body: schemas.SignIn,
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    keyring: KeyringDep,
) -> schemas.Session:
    """Begin a session with a key, for browsers. It ends by itself, with its key, or when it is signed out of."""
    key, address = body.key.get_secret_value(), address_of(request.scope)
    if not keyring.ready(key, address):
        keyring.refresh()
    caller = keyring.admit(key, address)
    request.scope[TOLD_ONCE] = True
    begun = access.sign_in(store, keyring, caller, seconds=settings.session_seconds)
    left = (begun.expires_at - datetime.now(UTC)).total_seconds()
    set_session(response, begun.text, int(left), is_secure(request))
    return schemas.Session.from_domain(begun.caller)


@router.get("", summary="Ask who one is", responses=problems())
def who_am_i(caller: CallerDep) -> schemas.Session:
    """Whose key or session this is, what it allows, and when it ends."""
    return schemas.Session.from_domain(caller)


@router.delete("", status_code=204, summary="Sign out", responses=problems(CROSS_ORIGIN))
def sign_out(
    request: Request,
    store: StoreDep,
    keyring: KeyringDep,
    actor: ActorDep,
    session: Annotated[str | None, Cookie(alias=COOKIE, include_in_schema=False)] = None,
) -> Response:
    """End the session that came with the request. The key goes on being valid."""
    if session is not None:
        access.sign_out(store, keyring, session, actor=actor)
    response = Response(status_code=204)
    set_session(response, "", 0, is_secure(request))
    return response


def is_secure(request: Request) -> bool:
    """Whether the caller speaks TLS, so that cookies may be kept to it."""
    return is_https(request.scope, first_of_each(request.scope["headers"]))


def set_session(response: Response, text: str, seconds: int, secure: bool) -> None:
    """Put a session into a browser; an empty one takes it away."""
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(COOKIE, text, seconds, path="/", secure=secure, httponly=True, samesite="strict")
