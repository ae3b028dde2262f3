"""Strict queries: a parameter that nobody reads is a mistake of who sent it.

Knows: which parameters a route declares. Must never know: what one is for.

Law: a misspelt ``preview`` must not do what was to be previewed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute


class StrictRoute(APIRoute):
    """A route that refuses query parameters that it does not declare."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind a look at the query."""
        handle = super().get_route_handler()
        fields = get_flat_params(self.dependant)
        known = {field.alias for field in fields if isinstance(field.field_info, params.Query)}

        async def strictly(request: Request) -> Response:
            if unknown := request.query_params.keys() - known:
                context = {"unknown": sorted(unknown), "known": sorted(known)}
                raise RequestValidationError([{"type": "unknown_keys", "loc": ("query",), "ctx": context}])
            return await handle(request)

        return strictly
