"""Durations, as people write them on a command line: 90d, 12h, 30m, 45s, 4w."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta | None:
    """What a text means; None where it is no duration."""
    found = re.fullmatch(r"(0|[1-9][0-9]{0,4})([smhdw])", text)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
