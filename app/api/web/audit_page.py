"""The audit pages: entries as rows, and one entry with all that it says.

Knows: how an entry is put into words and its document into text, and how what is looked for is written in an address.
Must never know: HTTP, or how an entry is proved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from app.api.web.speech import Speech
from app.api.web.telling import Told, tell
from app.domain import AuditEntry
from app.errors import BadInput
from app.service.attestation import Attested
from app.store.search import Sought

_PARTS = ("inputs", "parameters", "outputs", "code")
"""What a document may say beside who, when and why; a part that is empty is not shown."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What the form asks for, as it was written; empty: all. Times are in UTC."""

    model: str = ""
    kind: str = ""
    actor: str = ""
    since: str = ""
    until: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def sought(self) -> Sought:
        """What the log is asked for.

        Raises:
            BadInput: a time is none.
        """
        exact = (self.model or None, self.kind or None, self.actor or None)
        return Sought(*exact, _moment(self.since), _moment(self.until), self.text)

    def query(self, **others: object) -> str:
        """As the query of an address, with some of it as ``others`` say."""
        return urlencode({name: value for name, value in {**asdict(self), **others}.items() if value})


def _moment(written: str) -> datetime | None:
    try:
        return datetime.fromisoformat(written).replace(tzinfo=UTC) if written else None
    except ValueError as error:
        raise BadInput(f"{written} is no time: write it as 2026-03-02T09:30") from error


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
