"""Recorded sentences: reasons and errors that the service wrote down in English, in the reader's language.

Knows: that the sentences of the English catalogue that begin with ``recorded.`` are those that the service writes, with
holes for what differs. Must never know: where one was written down, or why.

Laws:
    * English is shown as it was recorded.
    * What fits no sentence is shown as it was recorded, too, and is marked as English unless it is plainly none: people
      give reasons in their own words.
    * People also write what is meant to do harm: a sentence has one hole at most that anything may stand in, so that no
      text takes long, and sentences within sentences end somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from string import Formatter

from markupsafe import Markup, escape

from app.api.web.speech import CATALOGUE, Speech

_PREFIX = "recorded."
_ENGLISH = CATALOGUE["en"]

_LONGEST = 4000
"""Characters of a text that is looked at; no sentence of the service is that long."""

_MOST = 24
"""Sentences in a row that are told apart."""

_DEEPEST = 5
"""Sentences within each other: a model that is paused, since a cycle failed, since training diverged, since ..."""

_RULES = sorted({key.split(".")[1] for key in _ENGLISH if re.fullmatch(r"reason\.[a-z-]+\.do", key)}, key=len)
_RULE = f"(?:{'|'.join(reversed(_RULES))})(?:#\\d{{1,3}})?"
_ERROR = r"(?:[A-Z][a-z]+){2,6}|OSError"
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|inf|nan)"
_NAME = r"[^\s'\"()]+"
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"[^"]*\""""
_ANYTHING = ".+"

_HOLES: Mapping[str, str] = {
    "kind": f"{_RULE}|{_ERROR}",
    "rule": _RULE,
    "rules": f"{_RULE}(?:, {_RULE})*",
    "day": r"\d{4}-\d\d-\d\d",
    "drift": "inputs|labels|accuracy",
    "part": "feature|embedding unit",
    "scopes": "[a-z ]+",
    "held": "[a-z0-9-]+(?:, [a-z0-9-]+)*",
    "versions": r"\d+(?:, \d+)*",
    "older": "(?: or older ones)?",
    "pointer": "(?:/[^/;]*)*",
    "key": _QUOTED,
    "known": r"[a-z0-9_-]+(?:, [a-z0-9_-]+)*",
    "literals": r"'[^']*'(?:, '[^']*')*",
    "pattern": r"\^\S+\$",
    "monitor": "[a-z]+",
    **dict.fromkeys(("actor", "alias", "column", "field", "head", "kinds", "layer", "leaf", "model", "name"), _NAME),
    **dict.fromkeys(("other", "root", "scope", "stored", "what", "again", "worker"), _NAME),
    **dict.fromkeys(("host", "listed", "tensors", "why"), _ANYTHING),
}
"""What may stand in a hole; a number in one that is not named here."""

_WITHIN: Mapping[str, str] = {"why": "divider.sentences", "listed": "divider.items"}
"""Holes that hold recorded sentences themselves, and what divides these."""


def heard(text: str, t: Speech) -> Markup:
    """A recorded sentence in the reader's language.

    Args:
        text: as it was recorded; several are divided by semicolons.
        t: the language.
    """
    return escape(text) if t.language == "en" else _told(text, t, "divider.sentences", 0)


def fits(text: str, *groups: str) -> bool:
    """Whether a recorded sentence is of one of these groups of the catalogue."""
    key = next((key for key, pattern in _patterns() if pattern.fullmatch(text)), "")
    return key.startswith(tuple(f"{_PREFIX}{group}" for group in groups))


def _told(text: str, t: Speech, divider: str, depth: int) -> Markup:
    """Sentences in a row, each as short as it fits: what divides them may be part of one, too."""
    parts = text.split(_ENGLISH[divider])
    if depth == _DEEPEST or len(parts) > _MOST or len(text) > _LONGEST:
        return _foreign(text)
    told: list[Markup] = []
    known = False
    while parts:
        runs = ((end, _ENGLISH[divider].join(parts[:end])) for end in range(1, len(parts) + 1))
        fitting = ((end, said) for end, run in runs if (said := _whole(run, t, depth)) is not None)
        end, said = next(fitting, (0, Markup()))
        told.append(said if end else _foreign(parts[0]))
        parts, known = parts[end or 1 :], known or end > 0
    return escape(t(divider)).join(told) if known else _foreign(text)


def _whole(text: str, t: Speech, depth: int) -> Markup | None:
    for key, pattern in _patterns():
        if found := pattern.fullmatch(text):
            return t.marked(key, **{hole: _filled(hole, value, t, depth) for hole, value in found.groupdict().items()})
    return None


def _filled(hole: str, value: str, t: Speech, depth: int) -> Markup:
    if hole in _WITHIN:
        return _told(value, t, _WITHIN[hole], depth + 1)
    return escape(t(f"{hole}.{value}") if t.knows(f"{hole}.{value}") else value)


def _foreign(text: str) -> Markup:
    plainly_not = re.search(r"[\u3040-\u30ff\u3400-\u9fff]", text) or not text
    return escape(text) if plainly_not else Markup('<span lang="en">{}</span>').format(text)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The sentences, those with the most words first: of two that fit, it is the closer one."""
    sentences = {key: list(Formatter().parse(text)) for key, text in _ENGLISH.items() if key.startswith(_PREFIX)}
    ordered = sorted(sentences, key=lambda key: -sum(len(literal) for literal, *_ in sentences[key]))
    return tuple((key, re.compile("".join(_parts(sentences[key])), re.DOTALL)) for key in ordered)


def _parts(parsed: Iterable[tuple[str, str | None, str | None, str | None]]) -> Iterator[str]:
    for literal, hole, _, _ in parsed:
        yield re.escape(literal)
        if hole is not None:
            yield f"(?P<{hole}>{_HOLES.get(hole, _NUMBER)})"
