"""What an entry of the log is about, and the sum of the index that says so.

Knows: which parameters of an entry name a cycle, a version or a megabatch. Must never know: what a kind of entry means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.domain import AuditEntry

Subject = Literal["cycle", "version", "megabatch"]

_NAMES: dict[Subject, tuple[str, ...]] = {
    "cycle": ("cycle",),
    "version": ("version", "from", "to"),
    "megabatch": ("megabatch",),
}
"""What an entry is about: the parameters that hold its number."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """Rows of the index of the log, in any order: how many, and the sum of their hashes."""

    rows: int = 0
    sum: int = 0

    def with_row(self, model: str, subject: str, number: int, seq: int) -> Indexed:
        """With one row more."""
        hashed = hashlib.sha256(f"{model} {subject} {number} {seq}".encode()).digest()
        return Indexed(self.rows + 1, (self.sum + int.from_bytes(hashed)) % 2**256)

    def with_entry(self, entry: AuditEntry) -> Indexed:
        """With all rows that an entry has."""
        grown = self
        for subject, number in subjects_of(entry.document):
            grown = grown.with_row(str(entry.model), subject, number, entry.seq)
        return grown


def subjects_of(entry: Mapping[str, Any]) -> set[tuple[Subject, int]]:
    """The cycles, versions and megabatches that an entry's document is about; of none that is about no model."""
    if entry["model"] is None:
        return set()
    parameters = entry["parameters"]
    named = ((subject, parameters.get(name)) for subject, names in _NAMES.items() for name in names)
    return {(subject, number) for subject, number in named if type(number) is int}
