"""The audit log: immutable facts, and the tree over them.

Knows: how an entry and the log's head look. Must never know: how entries are hashed or checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.wire import TIME, Page, Time, example

_ENTRY = {
    "seq": 12,
    "time": TIME,
    "kind": "alias.moved",
    "actor": "local",
    "request_id": "4f1c",
    "model": "gas-sensors",
    "document": {"seq": 12, "kind": "alias.moved", "parameters": {"alias": "champion", "from": 4, "to": 5}},
    "leaf": "0f" * 32,
}


class AuditEntry(BaseModel):
    """One immutable fact."""

    model_config = example(_ENTRY)

    seq: int = Field(description="Place in the log, from 0 or 1, without gaps.")
    time: Time = Field(description="When it was written.")
    kind: str = Field(description="What happened, such as `version.published`.")
    actor: str = Field(description="Who asked for it.")
    request_id: str | None = Field(description="Under which request.")
    model: str | None = Field(description="Name of the model; null where none is concerned.")
    document: dict[str, Any] = Field(
        description="The canonical entry as it was hashed: floats and wide integers as strings."
    )
    leaf: str = Field(description="RFC 6962 leaf hash of the canonical document, in hex.")

    @classmethod
    def from_domain(cls, entry: domain.AuditEntry) -> Self:
        """From the domain's value."""
        return cls(
            seq=entry.seq,
            time=entry.time,
            kind=entry.kind,
            actor=entry.actor,
            request_id=entry.document.get("request_id"),
            model=entry.model,
            document=dict(entry.document),
            leaf=entry.leaf,
        )


class AuditEntries(Page[AuditEntry]):
    """Entries, oldest first."""


class AuditTrail(BaseModel):
    """What the log says about one version."""

    items: list[AuditEntry] = Field(
        description="Entries of the cycle that made it and of what happened to it since, oldest first."
    )

    @classmethod
    def from_domain(cls, entries: Iterable[domain.AuditEntry]) -> Self:
        """From the domain's values."""
        return cls(items=[AuditEntry.from_domain(entry) for entry in entries])


class LogHead(BaseModel):
    """The log's last state."""

    model_config = example({"size": 13, "root": "a7" * 32})

    size: int = Field(description="Number of entries.")
    root: str = Field(description="RFC 6962 Merkle root over their leaf hashes, in hex.")

    @classmethod
    def from_domain(cls, head: domain.LogHead) -> Self:
        """From the domain's value."""
        return cls(size=head.size, root=head.root)


class VerifiedLog(LogHead):
    """The log's last state, recomputed from every entry."""

    model_config = example({"size": 13, "root": "a7" * 32, "verified": True})

    verified: Literal[True] = Field(True, description="A log that does not hold is a problem document instead.")
