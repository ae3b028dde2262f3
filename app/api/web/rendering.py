"""Rendering: a template, filled for one request.

Knows: the layout's needs (who is signed in, language, theme, links under the service's prefix) and the headers of every
page. Must never know: what a page is about.

Laws:
    * No page runs a script or uses a style that is not a file of this service; the policy says so to the browser.
    * A page is for whoever asked for it: nobody keeps it.
    * Every link begins with the prefix that the service is reached under.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.types import Scope as AsgiScope

from app.api.scopes import CALLER
from app.api.web.assets import ASSETS
from app.api.web.forms import MOST_BYTES, local_path
from app.api.web.recorded import heard
from app.api.web.speech import LANGUAGES, Speech, preferred
from app.domain import Caller, Scope

TEMPLATES = Path(__file__).with_name("templates")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # without it a browser says of a form that it comes from nowhere
    "Vary": "HX-Request",
}

REFUSED = "espalier.refused"
"""Where a form's refusal is left in the ASGI scope of the question that is asked again."""

THEMES = ("light", "dark")
LANGUAGE_COOKIE = "espalier-language"
THEME_COOKIE = "espalier-theme"

_HTMX = json.dumps(
    {
        "allowEval": False,
        "allowScriptTags": False,
        "includeIndicatorStyles": False,
        "selfRequestsOnly": True,
        "historyCacheSize": 0,
        "responseHandling": [{"code": "204", "swap": False}, {"code": "...", "swap": True}],
    }
)


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation: its page, its words, and what it needs."""

    key: str
    path: str
    needs: Scope


NAVIGATION = (
    Place("models", "/", Scope.READ),
    Place("audit", "/audit", Scope.AUDIT),
    Place("keys", "/keys", Scope.ADMIN),
    Place("webhooks", "/webhooks", Scope.ADMIN),
)
"""Pages that every page links to; only those are shown that the caller may see."""


@cache
def environment() -> Environment:
    """The templates, compiled once. Everything is escaped; a name that is not there is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def speech_of(request: Request) -> Speech:
    """The language of a request."""
    return Speech(preferred(request.headers.get("accept-language", ""), request.cookies.get(LANGUAGE_COOKIE)))


def root_of(scope: AsgiScope) -> str:
    """The prefix that the service is reached under; empty for none."""
    return str(scope.get("root_path", "")).rstrip("/")


def wants_fragment(request: Request) -> bool:
    """Whether a script of a page asks for a part of it."""
    return "hx-request" in request.headers


def render(request: Request, template: str, *, status: int = 200, active: str = "", **context: Any) -> HTMLResponse:
    """A page, or a part of one.

    Args:
        request: that it answers.
        template: its name.
        status: of the answer.
        active: key of the entry of the navigation that it belongs to.
        context: what the template shows.
    """
    html = environment().get_template(template).render({**_common(request, active), **context})
    return HTMLResponse(html, status, HEADERS)


def _common(request: Request, active: str) -> dict[str, Any]:
    refused = request.scope.get(REFUSED)
    speech, root, caller = speech_of(request), root_of(request.scope), request.scope.get(CALLER)
    theme = request.cookies.get(THEME_COOKIE)
    signed_in = caller if isinstance(caller, Caller) and caller.scopes else None
    return {
        "t": speech,
        "heard": partial(heard, t=speech),
        "root": root,
        "caller": signed_in,
        "opened": signed_in is not None and not signed_in.key,
        "may": lambda scope: signed_in is not None and signed_in.may(Scope(scope)),
        "scopes": [scope.value for scope in Scope if signed_in is not None and signed_in.may(scope)],
        "theme": theme if theme in THEMES else "",
        "languages": LANGUAGES,
        "here": _here(request),
        "back": _back(request) if not refused else local_path(came) if (came := refused.fields.text("back")) else "",
        "refused": refused,
        "state": partial(_state, refused.field if refused else ""),
        "typed": lambda name, otherwise="": refused.fields.text(name, most=MOST_BYTES) if refused else otherwise,
        "chosen": lambda name, value, otherwise=False: (
            str(value) in refused.fields.texts(name) if refused else otherwise
        ),
        "navigation": [place for place in NAVIGATION if signed_in is not None and signed_in.may(place.needs)],
        "active": active,
        "asset": lambda name: f"{root}/static/{ASSETS[name].name}",
        "htmx_config": _HTMX,
        "fragment": wants_fragment(request),
    }


def _here(request: Request) -> str:
    """The page's own path below the prefix: where a form leads back to."""
    if request.method not in ("GET", "HEAD"):
        return "/"
    path = request.scope["path"].removeprefix(root_of(request.scope)) or "/"
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _state(wrong: str, name: str, *, first: bool = False) -> Markup:
    """What a field says of itself: that it is wrong, and by what; the wrong one is where the writing goes on, else the
    first.
    """
    if name == wrong:
        return Markup(' aria-invalid="true" aria-describedby="wrong-{}" autofocus').format(name)
    return Markup(" autofocus") if first and not wrong else Markup()


def _back(request: Request) -> str:
    """The page below the prefix that led to this one, where a question is cancelled to; empty: it is not known, or it
    is this one, whose form was sent.
    """
    came, root = urlsplit(request.headers.get("referer", "")), root_of(request.scope)
    path = came.path.removeprefix(root)
    asked_here = path == request.scope["path"].removeprefix(root)
    if came.netloc != request.headers.get("host") or not came.path.startswith(f"{root}/") or asked_here:
        return ""
    return local_path(f"{path}?{came.query}" if came.query else path)
