"""The audit log: immutable facts, and the tree over them.

Knows: how an entry and the log's head look. Must never know: how entries are hashed or checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.wire import TIME, Page, Time, example
from app.service import history

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


class LogKeys(BaseModel):
    """The public keys of the log."""

    model_config = example({"keys": ["espalier-1f2e3d4c+0a1b2c3d+Aa4P9lSx6nIQ0oF8r2l0oVqXv1bB8mXn3b3cQf2lq1Zk"]})

    keys: list[str] = Field(description="C2SP verifier keys (`<name>+<hash>+<key>`); the first is the present one.")


class Inclusion(BaseModel):
    """That an entry is in the log."""

    model_config = example({"seq": 2, "leaf": "0f" * 32, "size": 3, "root": "a7" * 32, "path": ["5c" * 32, "11" * 32]})

    seq: int = Field(description="Number of the entry, from 1; its leaf index is one less.")
    leaf: str = Field(description="Leaf hash of the entry, in hex.")
    size: int = Field(description="Entries of the log that it is proved to be in.")
    root: str = Field(description="Merkle root at that size, in hex; trust the one in a signed checkpoint.")
    path: list[str] = Field(description="Hashes in hex, from the leaf's neighbour up (RFC 9162, 2.1.3).")

    @classmethod
    def from_domain(cls, proof: history.Inclusion) -> Self:
        """From the service's answer."""
        path = [item.hex() for item in proof.path]
        return cls(seq=proof.seq, leaf=proof.leaf, size=proof.size, root=proof.root.hex(), path=path)


class Consistency(BaseModel):
    """That the log continues an older one."""

    model_config = example(
        {"first": 2, "second": 3, "first_root": "0f" * 32, "second_root": "a7" * 32, "path": ["5c" * 32]}
    )

    first: int = Field(description="Entries of the older log.")
    second: int = Field(description="Entries of the younger one.")
    first_root: str = Field(description="Merkle root of the older one, in hex.")
    second_root: str = Field(description="Merkle root of the younger one, in hex.")
    path: list[str] = Field(description="Hashes in hex (RFC 9162, 2.1.4).")

    @classmethod
    def from_domain(cls, proof: history.Consistency) -> Self:
        """From the service's answer."""
        return cls(
            first=proof.first,
            second=proof.second,
            first_root=proof.first_root.hex(),
            second_root=proof.second_root.hex(),
            path=[item.hex() for item in proof.path],
        )


class VerifiedLog(LogHead):
    """The log's last state, recomputed from every entry."""

    model_config = example({"size": 13, "root": "a7" * 32, "verified": True})

    verified: Literal[True] = Field(True, description="A log that does not hold is a problem document instead.")
