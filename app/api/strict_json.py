"""Strict JSON: bodies are read under a limit and mean one thing only.

Knows: which JSON texts are refused: over 1 MiB, not UTF-8, duplicate keys, NaN and infinities, more than 32 levels,
text that a database cannot keep. Must never know: what a body is for.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from app.api.problems import BODY_TOO_LARGE, MALFORMED_JSON, UNSUPPORTED_MEDIA, HttpProblem, escape
from app.api.strict_query import StrictRoute

MAX_BYTES = 1024 * 1024
MAX_LEVELS = 32
MAX_DIGITS = 400
"""Of an integer: more than the largest 64-bit float has."""


class JsonRequest(Request):
    """A request whose JSON body is read and parsed strictly. Streaming bodies pass untouched."""

    async def body(self) -> bytes:
        """The whole body, at most ``MAX_BYTES``, which must be declared as JSON when there is any."""
        if not hasattr(self, "_body"):
            declared = self.headers.get("content-length", "")
            if declared.isdecimal() and int(declared[:20]) > MAX_BYTES:
                raise _too_large()
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > MAX_BYTES:
                    raise _too_large()
            self._body = bytes(read)
        if self._body:
            _check_declared(self.headers.get("content-type", ""), self.headers.get("content-encoding", "identity"))
        return self._body

    async def json(self) -> Any:
        """The parsed body."""
        return parse(await self.body())


class JsonRoute(StrictRoute):
    """A strict route that reads its JSON body through ``JsonRequest``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a strict request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strictly


def parse(body: bytes) -> Any:
    """One JSON value.

    Raises:
        HttpProblem: 400, with the pointer where there is one.
    """
    if body.startswith(codecs.BOM_UTF8):
        raise _malformed("it begins with a byte order mark: send it without")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except RecursionError:
        raise _malformed(f"nested more than {MAX_LEVELS} levels deep") from None
    except UnicodeDecodeError:
        raise _malformed("not UTF-8") from None
    except ValueError as error:
        raise _malformed(str(error)) from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Refuse depth and text that cannot be stored; without recursion, since the depth is not known yet."""
    waiting: list[tuple[Any, str, int]] = [(value, "", 0)]
    while waiting:
        found, pointer, level = waiting.pop()
        if level > MAX_LEVELS:
            raise _malformed(f"nested more than {MAX_LEVELS} levels deep")
        if isinstance(found, str):
            _check_text(found, pointer)
        elif isinstance(found, dict):
            for key, inner in found.items():
                _check_text(key, pointer)
                waiting.append((inner, f"{pointer}/{escape(key)}", level + 1))
        elif isinstance(found, list):
            waiting.extend((inner, f"{pointer}/{index}", level + 1) for index, inner in enumerate(found))


def _check_text(text: str, pointer: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _malformed("text holds half of a surrogate pair", pointer) from None
    if "\0" in text:
        raise _malformed("text holds a NUL character", pointer)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:100]!r} stands twice in one object")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON: send null, or leave the key out")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large for a 64-bit float")
    return value


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, and {MAX_DIGITS} are the most that is read")
    return int(text)


def _check_declared(content_type: str, encoding: str) -> None:
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise HttpProblem(
            UNSUPPORTED_MEDIA,
            "send the JSON body with `Content-Type: application/json`",
            headers={"Accept": "application/json"},
        )
    if encoding.strip().lower() not in ("", "identity"):
        raise HttpProblem(
            UNSUPPORTED_MEDIA,
            "send the body as it is, without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )


def _too_large() -> HttpProblem:
    return HttpProblem(BODY_TOO_LARGE, f"a JSON body may have at most {MAX_BYTES} bytes")


def _malformed(why: str, pointer: str | None = None) -> HttpProblem:
    faults = [] if pointer is None else [{"in": "body", "pointer": pointer, "detail": why}]
    return HttpProblem(MALFORMED_JSON, f"the body is not usable JSON: {why}", errors=faults)
