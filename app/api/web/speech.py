"""Speech: sentences and figures in the language of whoever reads.

Knows: the catalogues, and how numbers, sizes and times are written. Must never know: what a figure means.

Laws:
    * Every catalogue has the same keys. A key that is missing is an error, not an empty place.
    * Every number has its unit; no-break spaces keep them together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

CATALOGUES = Path(__file__).with_name("catalogues")
LANGUAGES = ("en", "ja")

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOTHING = "–"

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_TAG = re.compile(r"\s*([A-Za-z]{1,8})(?:-[A-Za-z0-9-]{1,20})?\s*(?:;\s*q=([0-9.]{1,5}))?\s*")


def _catalogue(language: str) -> Mapping[str, str]:
    return MappingProxyType(json.loads((CATALOGUES / f"{language}.json").read_text(encoding="utf-8")))


CATALOGUE: Mapping[str, Mapping[str, str]] = MappingProxyType({name: _catalogue(name) for name in LANGUAGES})


def preferred(accepted: str, chosen: str | None) -> str:
    """The language to speak.

    Args:
        accepted: the header Accept-Language.
        chosen: what the reader chose by hand, if they did.
    """
    if chosen in LANGUAGES:
        return chosen
    wanted: list[tuple[float, str]] = []
    for part in accepted[:500].split(","):
        found = _TAG.fullmatch(part)
        if found is not None and (language := found[1].lower()) in LANGUAGES:
            wanted.append((_weight(found[2]), language))
    return max(wanted, key=lambda pair: pair[0], default=(1.0, LANGUAGES[0]))[1]


def _weight(text: str | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return 0.0


class Speech:
    """One language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._catalogue = CATALOGUE[language]

    def __call__(self, key: str, /, **values: Any) -> str:
        """A sentence. With ``n``, a catalogue may give one form for 1 and one for the rest, divided by a bar."""
        one, bar, many = self._catalogue[key].partition("|")
        text = one if not bar or values.get("n") == 1 else many
        return text.format(**values) if values else text

    def marked(self, key: str, /, **values: Any) -> Markup:
        """A sentence with markup in some of its values; what is none is escaped."""
        return Markup(self._catalogue[key]).format(**values)  # noqa: S704 - the catalogues are our own

    def knows(self, key: str) -> bool:
        """Whether the catalogue has this key."""
        return key in self._catalogue

    def under(self, group: str) -> dict[str, str]:
        """The texts of a group, by what follows its name."""
        return {key[len(group) + 1 :]: text for key, text in self._catalogue.items() if key.startswith(f"{group}.")}

    # -- figures -------------------------------------------------------------------------------------------------------

    def number(self, value: float | None, digits: int = 0) -> str:
        """A plain number, with thousands apart."""
        return NOTHING if value is None or not isfinite(value) else f"{value:,.{digits}f}".replace("-", MINUS)

    def percent(self, share: float | None, digits: int = 1) -> str:
        """A share, in percent."""
        return NOTHING if share is None else f"{self.number(100 * share, digits)}{NBSP}%"

    def density(self, share: float | None) -> str:
        """A density in percent of weights kept; small ones with more digits."""
        return self.percent(share, 1 if share is None or share >= 0.01 else 2)

    def points(self, share: float | None, digits: int = 1, *, signed: bool = False) -> str:
        """A difference of shares, in percentage points."""
        if share is None:
            return NOTHING
        rounded = round(100 * share, digits) + 0.0  # never minus zero
        sign = "+" if signed and rounded > 0 else ""
        return f"{sign}{self.number(rounded, digits)}{NBSP}{self('unit.points')}"

    def size(self, bytes: int | None) -> str:
        """Bytes, in powers of 1,000."""
        if bytes is None:
            return NOTHING
        value, unit = float(bytes), 0
        while value >= 999.5 and unit < len(_SIZES) - 1:
            value, unit = value / 1000, unit + 1
        return f"{self.number(value, 0 if unit == 0 or value >= 99.95 else 1)}{NBSP}{_SIZES[unit]}"

    def times(self, factor: float | None) -> str:
        """How many times as much."""
        return NOTHING if factor is None else f"{self.number(factor, 1)}{NBSP}×"

    def p_value(self, p: float) -> str:
        """A p-value with its sign of relation: none is ever zero."""
        return f"p{NBSP}{'<' if p < 0.001 else '='}{NBSP}{self.number(max(p, 0.001), 3)}"

    def latency(self, milliseconds: float | None) -> str:
        """A time too short for a clock, to two figures or the whole millisecond."""
        if milliseconds is None:
            return NOTHING
        digits = 3 if milliseconds < 0.1 else 2 if milliseconds < 1 else 1 if milliseconds < 10 else 0
        return f"{self.number(milliseconds, digits)}{NBSP}{self('unit.milliseconds')}"

    def lasting(self, seconds: float | None) -> str:
        """A length of time, as on a clock."""
        if seconds is None:
            return NOTHING
        if 0 < seconds < 10:
            return f"{seconds:.1f}{NBSP}{self('unit.seconds')}"
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

    def listed(self, numbers: Sequence[int], most: int = 12) -> str:
        """Numbers, runs of them drawn together: 1–4, 7."""
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        texts = [str(first) if first == last else f"{first}–{last}" for first, last in runs[:most]]
        return ", ".join([*texts, *(["…"] if len(runs) > most else [])])

    def when(self, moment: datetime | None) -> Markup:
        """A time. The browser rewrites it to its own zone; without scripts it is in UTC and says so."""
        if moment is None:
            return escape(NOTHING)
        utc = moment.astimezone(UTC)
        return Markup('<time datetime="{}">{}</time>').format(
            utc.isoformat(timespec="seconds"), f"{utc:%Y-%m-%d %H:%M}{NBSP}UTC"
        )
