"""Failures: what a person sees where a program gets a problem document.

Knows: who asks as a browser does, and for a page. Must never know: why something was refused; the problem says it.

Laws:
    * Programs get problem documents, whatever they ask for. A page, or a part of one, comes to browsers alone.
    * A browser without a session is led to the sign-in page, and from there back to where it wanted to go.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.types import Scope

from app.api.problems import REQUEST_ID, problem_response
from app.api.web.refusals import asked_again
from app.api.web.rendering import render, root_of

_PROGRAMS = ("/v1", "/openapi.json", "/livez", "/readyz", "/metrics", "/static")


def answer_failure(scope: Scope, error: Exception) -> Response:
    """The answer to a request that failed: a problem document, or what a person can read of it."""
    problem = problem_response(error, scope.get(REQUEST_ID))
    request = Request(scope)
    if not _is_person(request):
        return problem
    path = _below(scope)
    if problem.status_code == 401:
        return _to_sign_in(request, path)
    document = json.loads(bytes(problem.body))
    page = render(
        request,
        "failure_part.html" if "hx-request" in request.headers else "failure.html",
        status=problem.status_code,
        problem=document,
    )
    for name in ("retry-after", "allow"):
        if name in problem.headers:
            page.headers[name] = problem.headers[name]
    return page


async def on_failure(request: Request, error: Exception) -> Response:
    """Exception handler for everything that FastAPI would answer in another shape."""
    if request.method == "POST" and _is_person(request):
        problem = problem_response(error, request.scope.get(REQUEST_ID))
        again = await asked_again(request, error, json.loads(bytes(problem.body)))
        if again is not None:
            return again
    return answer_failure(request.scope, error)


def _is_person(request: Request) -> bool:
    if _below(request.scope).startswith(_PROGRAMS):
        return False
    return "hx-request" in request.headers or "text/html" in request.headers.get("accept", "")


def _below(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(root_of(scope)) or "/"


def _to_sign_in(request: Request, path: str) -> Response:
    root, query = root_of(request.scope), request.scope["query_string"].decode("latin-1")
    wanted = f"{path}?{query}" if query else path
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": f"{root}/sign-in", "Cache-Control": "no-store"})
    if request.method in ("GET", "HEAD") and request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site: the browser kept its session back. It brings it when this very page goes on.
        return render(request, "bounce.html", to=f"{root}{wanted}")
    to = quote(wanted if request.method in ("GET", "HEAD") else "/", safe="")
    return RedirectResponse(f"{root}/sign-in?next={to}", 303, {"Cache-Control": "no-store"})
