"""The audit pages: entries as rows, and one entry with all that it says.

Knows: how an entry is put into words and its document into text. Must never know: HTTP, or how an entry is proved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from app.api.web.speech import Speech
from app.api.web.telling import Told, tell
from app.domain import AuditEntry
from app.service.attestation import Attested

_PARTS = ("inputs", "parameters", "outputs", "code")
"""What a document may say beside who, when and why; a part that is empty is not shown."""


@dataclass(frozen=True, slots=True)
class Row:
    """An entry in the list."""

    entry: AuditEntry
    told: Told


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry's page.

    Attributes:
        parts: (name, text) of what the document says beside who, when and why.
        document: the whole, as it was hashed.
        request: under which request it was written; empty: none.
        older: whether there is an entry before it.
    """

    entry: AuditEntry
    told: Told
    parts: Sequence[tuple[str, str]]
    document: str
    request: str
    proof: Attested
    older: bool


def rows_of(entries: Sequence[AuditEntry], t: Speech) -> list[Row]:
    """Entries as rows."""
    return [Row(entry, tell(entry, t)) for entry in entries]


def shown(entry: AuditEntry, proof: Attested, t: Speech) -> Shown:
    """An entry, ready for its template."""
    parts = [(part, _text(entry.document[part])) for part in _PARTS if entry.document.get(part)]
    request = str(entry.document.get("request_id") or "")
    return Shown(entry, tell(entry, t), parts, _text(entry.document), request, proof, entry.seq > 1)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
