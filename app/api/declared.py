"""Declared: what the OpenAPI document says besides what FastAPI reads off the routes.

Knows: how problem answers, headers and the recipe stand in the document. Must never know: what a route does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from app import errors
from app.api.problems import (
    BODY_TOO_LARGE,
    INVALID_REQUEST,
    MALFORMED_JSON,
    PROBLEM_JSON,
    UNSUPPORTED_MEDIA,
    Kind,
    kind_of,
)
from app.api.schemas import Problem
from app.learning.recipe import Recipe

Responses = dict[int | str, dict[str, Any]]

JSON_BODY = (MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA)
"""What may be wrong with any JSON body."""

_ALWAYS: tuple[type[errors.EspalierError] | Kind, ...] = (
    *(INVALID_REQUEST, errors.KeyRequired, errors.ScopeMissing, errors.OtherModel),
    *(errors.TooManyRequests, errors.StoreBusy, errors.StorageFailed),
)
_COMPONENTS = "#/components/schemas/"


def problems(
    *declared: type[errors.EspalierError] | Kind, always: tuple[type[errors.EspalierError] | Kind, ...] = _ALWAYS
) -> Responses:
    """The problem answers of an operation, with those that every operation behind the key can give."""
    kinds = [item if isinstance(item, Kind) else kind_of(item) for item in (*always, *declared)]
    by_status: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {status: _response(by_status[status]) for status in sorted(by_status)}


def _response(kinds: list[Kind]) -> dict[str, Any]:
    told = "; ".join(dict.fromkeys(f"{kind.title} (`{kind.slug}`)" for kind in kinds))
    return {"description": f"{told}.", "content": {PROBLEM_JSON: {"schema": {"$ref": f"{_COMPONENTS}Problem"}}}}


def with_headers(description: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """A successful answer with headers that mean something."""
    return {
        "description": description,
        "headers": {name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in headers.items()},
    }


NOT_MODIFIED: dict[str, Any] = {"description": "The caller holds it already (`If-None-Match`)."}

OPEN: dict[str, Any] = {"security": []}
"""An operation that answers without the key."""

UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Application(FastAPI):
    """FastAPI, whose document also holds the problem, the recipe, and how a caller shows who they are."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "A key, unless the service is open."},
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": "espalier-session",
                "description": "A browser's session, from `POST /v1/session`.",
            },
        }
        document["security"] = [{"key": []}, {"session": []}, {}]
        for schema in (Problem, Recipe):
            mode = "serialization" if schema is Problem else "validation"
            # mode is one of the two literals that pydantic takes; mypy widens it to str.
            described = schema.model_json_schema(ref_template=_COMPONENTS + "{model}", mode=mode)  # type: ignore[arg-type]
            components["schemas"].update(described.pop("$defs", {}))
            components["schemas"][schema.__name__] = described
        return document
