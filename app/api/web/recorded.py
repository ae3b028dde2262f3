"""Recorded sentences: reasons and errors that the service wrote down in English, in the reader's language.

Knows: that the sentences of the English catalogue that begin with ``recorded.`` are those that the service writes, with
holes for what differs. Must never know: where one was written down, or why.

Laws:
    * English is shown as it was recorded.
    * What fits no sentence is shown as it was recorded, too, and marked as English where it can be that: people give
      reasons in their own language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from string import Formatter

from markupsafe import Markup, escape

from app.api.web.speech import CATALOGUE, Speech

_PREFIX = "recorded."

_HOLES: Mapping[str, str] = {"kind": r"[A-Za-z][A-Za-z-]*(?:#\d+)?", "n": r"\d+", "days": r"[\d.]+"}
"""What may stand in a hole; anything in one that is not named here."""

_WITHIN: Mapping[str, str] = {"why": "; ", "kept": ", "}
"""Holes that hold recorded sentences themselves, and what divides these."""


def heard(text: str, t: Speech) -> Markup:
    """A recorded sentence in the reader's language.

    Args:
        text: as it was recorded; several are divided by semicolons.
        t: the language.
    """
    return escape(text) if t.language == "en" else _told(text, t, "; ")


def fits(text: str, *groups: str) -> bool:
    """Whether a recorded sentence is of one of these groups of the catalogue."""
    key = next((key for key, pattern in _patterns() if pattern.fullmatch(text)), "")
    return key.startswith(tuple(f"{_PREFIX}{group}" for group in groups))


def _told(text: str, t: Speech, divider: str) -> Markup:
    parts = text.split(divider)
    told = [_whole(part, t) for part in parts]
    if not all(told) and (whole := _whole(text, t)):
        return whole
    return escape(divider).join(said or _foreign(part) for said, part in zip(told, parts, strict=True))


def _whole(text: str, t: Speech) -> Markup | None:
    for key, pattern in _patterns():
        if found := pattern.fullmatch(text):
            return t.marked(key, **{hole: _filled(hole, value, t) for hole, value in found.groupdict().items()})
    return None


def _filled(hole: str, value: str, t: Speech) -> Markup:
    return _told(value, t, _WITHIN[hole]) if hole in _WITHIN else escape(value)


def _foreign(text: str) -> Markup:
    return Markup('<span lang="en">{}</span>').format(text) if text.isascii() and text else escape(text)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The sentences, those with the most words first: of two that fit, it is the closer one."""
    sentences = {key: list(Formatter().parse(text)) for key, text in CATALOGUE["en"].items() if key.startswith(_PREFIX)}
    ordered = sorted(sentences, key=lambda key: -sum(len(literal) for literal, *_ in sentences[key]))
    return tuple((key, re.compile("".join(_parts(sentences[key])), re.DOTALL)) for key in ordered)


def _parts(parsed: Iterable[tuple[str, str | None, str | None, str | None]]) -> Iterator[str]:
    for literal, hole, _, _ in parsed:
        yield re.escape(literal)
        if hole is not None:
            yield f"(?P<{hole}>{_HOLES.get(hole, '.+?')})"
