"""Every error has one row in the table of problems, and every row is sound."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from app import errors
from app.api import problems
from app.api.problems import TABLE, Kind

TUS_CHECKSUM = 460
"""tus uses a status that no registry knows."""

ROOT = Path(__file__).resolve().parents[2]


def _below(kind: type[errors.EspalierError]) -> Iterator[type[errors.EspalierError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _below(child)


def test_every_error_is_in_the_table() -> None:
    assert set(TABLE) == set(_below(errors.EspalierError))


def test_the_drawing_shows_every_error() -> None:
    missing = [kind.__name__ for kind in _below(errors.EspalierError) if kind.__name__ not in (errors.__doc__ or "")]
    assert not missing


def test_every_error_says_what_it_means() -> None:
    assert not [kind.__name__ for kind in _below(errors.EspalierError) if not kind.__doc__]


def test_kinds_are_told_apart_by_slug() -> None:
    kinds = [*TABLE.values(), *(kind for kind in vars(problems).values() if isinstance(kind, Kind))]
    slugs = [kind.slug for kind in kinds]
    assert len(set(slugs)) == len(slugs)
    for kind in kinds:
        assert kind.slug.replace("-", "").isalnum() and kind.slug == kind.slug.lower()
        assert kind.status == TUS_CHECKSUM or 400 <= HTTPStatus(kind.status) < 600
        assert kind.title[0].isupper() and not kind.title.endswith(".")


def test_what_can_be_tried_again_says_when() -> None:
    for kind, row in TABLE.items():
        later = row.status in (423, 429, 503) or kind is errors.KeyInUse
        assert ("Retry-After" in row.headers) == later, kind


def test_status_codes_stand_in_the_api_alone() -> None:
    """Nothing below the API knows HTTP."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        if path.parts[len(ROOT.parts) + 1] in ("api", "cli", "demo"):
            continue
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not imported & {"fastapi", "starlette", "http", "httpx", "uvicorn"}, path
