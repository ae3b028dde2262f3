"""Forms: what a browser sends when a button is pressed.

Knows: URL-encoded bodies under a limit, and which paths may be gone back to. Must never know: what a form is for.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from app.api.problems import BODY_TOO_LARGE, INVALID_REQUEST, UNSUPPORTED_MEDIA, HttpProblem
from app.api.strict_json import parse

SENT = "espalier.form"
"""Where the fields of a request's form are left in an ASGI scope."""

MOST_BYTES = 64 * 1024
_MOST_FIELDS = 200
_PERCENT = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
_FORM = "application/x-www-form-urlencoded"


class Fields:
    """The fields of a form; one that may be given several times is read with ``texts``."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def text(self, name: str, *, most: int = 2000) -> str:
        """A field's text without the spaces around it; empty where it is absent."""
        found = next((value for key, value in self._pairs if key == name), "").strip()
        if len(found) > most:
            raise _wrong(name, f"{name} is longer than {most} characters: say it in fewer words")
        return found

    def json(self, name: str, *, most: int = 20_000) -> Any:
        """A field with a JSON value; None where it is empty.

        Raises:
            HttpProblem: 400 or 422, it holds something else.
        """
        found = self.text(name, most=most)
        try:
            return parse(found.encode()) if found else None
        except HttpProblem as problem:
            raise HttpProblem(problem.kind, problem.detail, errors=_faults(name, problem.detail)) from problem

    def percent(self, name: str) -> float | None:
        """A field with a number of percent, as a share; None where it is empty.

        Raises:
            HttpProblem: 422, it holds something else.
        """
        found = self.text(name).removesuffix("%").strip()
        if not found:
            return None
        if _PERCENT.fullmatch(found) is None:
            raise _wrong(name, f"{name} must be a number of percent, such as 12.5: correct it")
        return float(found) / 100

    def needed(self, name: str) -> str:
        """A field that must not be empty.

        Raises:
            HttpProblem: 422, it is.
        """
        found = self.text(name)
        if not found:
            raise _wrong(name, f"{name} is empty: fill it in, and send the form again")
        return found

    def number(self, name: str) -> int:
        """A field with a whole number.

        Raises:
            HttpProblem: 422, it holds something else.
        """
        found = self.text(name)
        if not (found.isascii() and found.isdecimal() and len(found) <= 9):
            raise _wrong(name, f"{name} must be a whole number: open the form anew")
        return int(found)

    def numbers(self, name: str) -> list[int]:
        """A field that holds whole numbers, each time that it is given."""
        return [Fields([(name, value)]).number(name) for key, value in self._pairs if key == name]

    def texts(self, name: str) -> list[str]:
        """What a field holds, each time that it is given."""
        return [value for key, value in self._pairs if key == name]

    def given(self, name: str) -> bool:
        """Whether a box was ticked."""
        return any(key == name for key, _ in self._pairs)


def _wrong(name: str, why: str) -> HttpProblem:
    return HttpProblem(INVALID_REQUEST, why, errors=_faults(name, why))


def _faults(name: str, why: str) -> list[dict[str, str]]:
    return [{"pointer": f"/{name}", "detail": why}]


async def fields_of(request: Request) -> Fields:
    """The form that a request brings; of one that was refused and is asked about again, what it brought before.

    Raises:
        HttpProblem: 413, 415, 422: it brings something else.
    """
    if isinstance(sent := request.scope.get(SENT), Fields):
        return sent
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise HttpProblem(UNSUPPORTED_MEDIA, f"send a form, with Content-Type: {_FORM}")
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > MOST_BYTES:
            raise HttpProblem(BODY_TOO_LARGE, f"a form has at most {MOST_BYTES} bytes")
    try:
        pairs = parse_qsl(read.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise HttpProblem(INVALID_REQUEST, "the form cannot be read: open the page anew") from error
    if any("\0" in key + value for key, value in pairs):
        raise HttpProblem(INVALID_REQUEST, "the form holds a character that cannot be kept: leave it out")
    fields = request.scope[SENT] = Fields(pairs)
    return fields


Form = Annotated[Fields, Depends(fields_of)]


def local_path(wanted: str) -> str:
    """Where to go on, if that is a path of this service; else its first page."""
    plain = wanted.isprintable() and "\\" not in wanted and len(wanted) <= 2000
    return wanted if plain and wanted.startswith("/") and not wanted.startswith("//") else "/"
