"""Refusals: a form that was refused is shown again, filled in as it was sent, with what is wrong beside its field.

Knows: which question each form answers, and which field an error is about. Must never know: what a question asks; its
own route does.

Laws:
    * The question is put anew: what it says would happen is what would happen now.
    * What cannot be asked again is refused as everything else is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from starlette.types import Message

from app import errors
from app.api.web.forms import MOST_BYTES, SENT, Fields
from app.api.web.rendering import HEADERS, REFUSED, root_of, wants_fragment

_STATUSES = frozenset({400, 404, 409, 412, 422})
"""What another answer to the question may mend."""

_FIELDS: Mapping[type[Exception], str] = {
    errors.InvalidWebhook: "url",
    errors.InvalidName: "name",
    errors.KeyNameTaken: "name",
    errors.UnknownModel: "models",
    errors.InvalidRecipe: "document",
}

_SEEN = frozenset({"reason", "name", "models", "url", "kinds", "description", "target", "document"})
"""Fields that have a place for what is wrong with them."""

_ELSEWHERE = (
    (re.compile(r"/keys|/webhooks"), "GET", r"\g<0>/new"),
    (re.compile(r"(/models/[^/]+/recipe)/preview"), "GET", r"\1"),
    (re.compile(r"/models/[^/]+/recipe"), "POST", r"\g<0>/preview"),
)
"""Forms whose question stands under another path than they are sent to: that path, and how it is asked for there."""

_CHOOSING = ("to", "retrain")
"""Fields that say what a question is about."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a form was refused, and what it held.

    Attributes:
        field: that the reason is about; empty: the form as a whole.
        empty: the field must not be left empty.
    """

    status: int
    detail: str
    request_id: str
    field: str
    empty: bool
    fields: Fields


async def asked_again(request: Request, error: Exception, problem: Mapping[str, Any]) -> Response | None:
    """The question of a form that was refused, filled in; None where there is no form, or nothing to ask.

    Args:
        request: that brought the form.
        error: why it was refused.
        problem: the same as a problem document.
    """
    fields = request.scope.get(SENT)
    if fields is None or REFUSED in request.scope or problem["status"] not in _STATUSES:
        return None
    path = request.scope["path"].removeprefix(root_of(request.scope))
    method, where = "GET", path
    for pattern, way, question in _ELSEWHERE:
        if found := pattern.fullmatch(path):
            method, where = way, found.expand(question)
    if wants_fragment(request) and path.endswith("/recipe/preview"):
        return None  # the form stands on its page still, behind the dialog that says why
    refused = _refused(error, problem, fields)
    return await _answer(request, method, where, refused)


def _refused(error: Exception, problem: Mapping[str, Any], fields: Fields) -> Refused:
    about = next((name for kind, name in _FIELDS.items() if isinstance(error, kind) and fields.given(name)), "")
    pointed = next((str(fault.get("pointer", ""))[1:] for fault in problem["errors"]), "")
    field = next((name for name in (about, pointed) if name in _SEEN), "")
    empty = field == pointed != "" and not fields.text(field, most=MOST_BYTES)
    return Refused(problem["status"], problem["detail"], problem["request_id"], field, empty, fields)


async def _answer(request: Request, method: str, path: str, refused: Refused) -> Response | None:
    chosen = [(name, value) for name in _CHOOSING for value in refused.fields.texts(name)]
    full = f"{root_of(request.scope)}{path}"
    scope = {
        **{key: value for key, value in request.scope.items() if key not in ("route", "endpoint", "path_params")},
        "method": method,
        "path": full,
        "raw_path": full.encode(),
        "query_string": urlencode(chosen).encode(),
        REFUSED: refused,
    }
    begun: list[int] = []
    body = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            begun.append(message["status"])
        body.extend(message.get("body", b""))

    await request.app.router(scope, receive, send)
    return HTMLResponse(bytes(body), refused.status, HEADERS) if begun == [200] else None
