"""Strict queries: a parameter that nobody reads is a mistake of who sent it, and so is one that is said twice.

Knows: which parameters a route declares. Must never know: what one is for.

Law: a misspelt ``preview`` must not do what was to be previewed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, get_args, get_origin

from fastapi import Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute


class StrictRoute(APIRoute):
    """A route that refuses query parameters that it does not declare, and several of one that it reads once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind a look at the query."""
        handle = super().get_route_handler()
        fields = get_flat_params(self.dependant)
        declared = [field for field in fields if isinstance(field.field_info, params.Query)]
        known = {field.alias for field in declared}
        single = {field.alias for field in declared if not _is_list(field.field_info.annotation)}

        async def strictly(request: Request) -> Response:
            if unknown := request.query_params.keys() - known:
                context = {"unknown": sorted(unknown), "known": sorted(known)}
                raise RequestValidationError([{"type": "unknown_keys", "loc": ("query",), "ctx": context}])
            given = Counter(name for name, _ in request.query_params.multi_items())
            if repeated := sorted(name for name in single if given[name] > 1):
                raise RequestValidationError(
                    [
                        {"type": "repeated", "loc": ("query", name), "msg": "given several times: give it once"}
                        for name in repeated
                    ]
                )
            return await handle(request)

        return strictly


def _is_list(annotation: Any) -> bool:
    """Whether a parameter's type, or a branch of it, is a list."""
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))
