"""The rows, and the only SQL names of the house.

Knows: tables, columns, constraints, indexes, how times and JSON are stored. Must never know: what a change of a row
means.

Laws:
    * Times go in aware and come out aware, in UTC; a naive one is refused.
    * At most one cycle of a model is running: a partial unique index says so, not a convention.
    * Numbers of megabatches, cycles and versions are unique within their model.
    * ``AUDITED`` lists what may not change without an audit entry; ``LOG`` what only the log itself may write.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect

_DIGEST = sa.String(71)
_HASH = sa.String(64)
_NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")  # one order of names everywhere
_WORD = sa.String(16)


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite keeps it as text of fixed width, so that its order is the order of time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC.

        Raises:
            ValueError: the time has no zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone: pass an aware datetime")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As aware UTC, whatever zone the connection is in."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _one_of(column: str, *words: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


def _model_id(*, primary_key: bool = False) -> sa.Column[int]:
    return sa.Column("model_id", sa.Integer, sa.ForeignKey("models.id"), nullable=False, primary_key=primary_key)


def _json() -> sa.JSON:
    return sa.JSON(none_as_null=True)


models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", _NAME, nullable=False, unique=True),
    sa.Column("state", _WORD, nullable=False),
    sa.Column("paused_reason", sa.Text),
    sa.Column("recipe_revision", sa.Integer, nullable=False),
    sa.Column("recipe_digest", _DIGEST, nullable=False),
    sa.Column("input", _json(), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("anew_at", sa.Integer),
    _one_of("state", "active", "paused"),
)

recipes = sa.Table(
    "recipes",
    metadata,
    _model_id(primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("document", _json(), nullable=False),
    sa.Column("initial_weights", _DIGEST, index=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

megabatches = sa.Table(
    "megabatches",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _model_id(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("status", _WORD, nullable=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("x", _DIGEST, nullable=False, index=True),
    sa.Column("y", _DIGEST, nullable=False, index=True),
    sa.Column("ids", _DIGEST, nullable=False, index=True),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("histogram", _json(), nullable=False),
    sa.Column("prequential", _json()),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("evaluation_overlap", sa.BigInteger),
    sa.UniqueConstraint("model_id", "number"),
    sa.UniqueConstraint("model_id", "digest"),
    sa.Column("erasures", _json()),
    sa.Column("erased_at", UtcDateTime),
    _one_of("status", "accepted", "quarantined", "erased"),
)

# Conditions of partial indexes are literals, not parameters: a planner uses such an index only where it sees the same
# words in a query.
QUARANTINED = megabatches.c.status == sa.literal_column("'quarantined'")
PINNED = megabatches.c.pinned == sa.true()


def _partial(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool], unique: bool = False) -> sa.Index:
    return sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_partial("ix_megabatches_quarantined", megabatches.c.model_id, megabatches.c.number, where=QUARANTINED)
_partial("ix_megabatches_pinned", megabatches.c.model_id, megabatches.c.number, where=PINNED)

evaluation_sets = sa.Table(
    "evaluation_sets",
    metadata,
    _model_id(primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("x", _DIGEST, nullable=False, index=True),
    sa.Column("y", _DIGEST, nullable=False, index=True),
    sa.Column("ids", _DIGEST, nullable=False, index=True),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("histogram", _json(), nullable=False),
    sa.Column("set_at", UtcDateTime, nullable=False),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    _model_id(),
    sa.Column("state", _WORD, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("length", sa.BigInteger),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("digest", _DIGEST),
    sa.Column("media", sa.Text),
    sa.Column("metadata", sa.Text),
    sa.Column("megabatch", sa.Integer),
    sa.Column("problem", _json()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
    _one_of("state", "open", "complete", "accepted", "refused"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("actor", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", _DIGEST),
    sa.Column("status", sa.Integer),
    sa.Column("answer", _json()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
)

cycles = sa.Table(
    "cycles",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _model_id(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", _WORD, nullable=False),
    sa.Column("trigger", _WORD, nullable=False),
    sa.Column("through", sa.Integer, nullable=False),
    sa.Column("recipe_revision", sa.Integer, nullable=False),
    sa.Column("parent", sa.Integer),
    sa.Column("version", sa.Integer),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("reason", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("evaluation_revision", sa.Integer),
    sa.UniqueConstraint("model_id", "number"),
    _one_of("state", "queued", "running", "published", "withheld", "failed", "superseded"),
)

RUNNING = cycles.c.state == sa.literal_column("'running'")
QUEUED = cycles.c.state == sa.literal_column("'queued'")

_partial("uq_cycles_one_running", cycles.c.model_id, where=RUNNING, unique=True)
_partial("ix_cycles_waiting", cycles.c.model_id, cycles.c.id, where=QUEUED)
_partial("ix_cycles_queue", cycles.c.id, cycles.c.model_id, where=QUEUED)
sa.Index(None, cycles.c.model_id, cycles.c.through, cycles.c.attempt, cycles.c.number)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("cycle_id", sa.Integer, sa.ForeignKey("cycles.id"), primary_key=True, autoincrement=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(255)),
    sa.Column("expires_at", UtcDateTime, index=True),
    sa.Column("heartbeat_at", UtcDateTime),
    sa.Column("progress", _json()),
    sa.Column("snapshot", _DIGEST, index=True),
    sa.Column("advanced", sa.Boolean, nullable=False),
    sa.Column("inputs", _json()),
    sa.CheckConstraint("(worker IS NULL) = (expires_at IS NULL)", name="held"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _model_id(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("parent", sa.Integer),
    sa.Column("cycle", sa.Integer, nullable=False),
    sa.Column("status", _WORD, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("recipe_revision", sa.Integer, nullable=False),
    sa.Column("recipe_digest", _DIGEST, nullable=False),
    sa.Column("target_density", sa.Double, nullable=False),
    sa.Column("kept", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("layers", _json(), nullable=False),
    sa.Column("metrics", _json(), nullable=False),
    sa.Column("verdict", _json(), nullable=False),
    sa.Column("checkpoint", _DIGEST, nullable=False, index=True),
    sa.Column("checkpoint_bytes", sa.BigInteger, nullable=False),
    sa.Column("dense", _DIGEST, nullable=False),
    sa.Column("dense_bytes", sa.BigInteger, nullable=False),
    sa.Column("mask_digest", _DIGEST, nullable=False),
    sa.Column("state", _DIGEST, nullable=False, index=True),
    sa.Column("megabatches", sa.Integer, nullable=False),
    sa.Column("manifest", _json(), nullable=False),
    sa.Column("report", _json()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("swept_at", UtcDateTime),
    sa.Column("swept_reason", sa.Text),
    sa.Column("holds", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("held_on", sa.Integer),
    sa.Column("inputs", _DIGEST, index=True),
    sa.Column("samples", _DIGEST, index=True),
    sa.Column("answers", _DIGEST, index=True),
    sa.Column("falls", _DIGEST, index=True),
    sa.UniqueConstraint("model_id", "number"),
    sa.UniqueConstraint("model_id", "cycle"),
    sa.ForeignKeyConstraint(["model_id", "parent"], ["versions.model_id", "versions.number"]),
    sa.ForeignKeyConstraint(["model_id", "cycle"], ["cycles.model_id", "cycles.number"]),
    sa.ForeignKeyConstraint(["model_id", "recipe_revision"], ["recipes.model_id", "recipes.revision"]),
    _one_of("status", "published", "withheld"),
)

PUBLISHED = versions.c.status == sa.literal_column("'published'")
HOLDS = versions.c.holds == sa.true()

_partial("ix_versions_published", versions.c.model_id, versions.c.number, where=PUBLISHED)
_partial("ix_versions_holding", versions.c.model_id, versions.c.held_on, versions.c.number, where=HOLDS)

aliases = sa.Table(
    "aliases",
    metadata,
    _model_id(primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("moved_at", UtcDateTime, nullable=False),
    sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.number"]),
)

alias_moves = sa.Table(
    "alias_moves",
    metadata,
    _model_id(primary_key=True),
    sa.Column("alias", _NAME, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.Integer),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("moved_at", UtcDateTime, nullable=False),
    sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.number"]),
    sa.Index(None, "model_id", "alias", "moved_at", "revision"),
)

protections = sa.Table(
    "protections",
    metadata,
    _model_id(primary_key=True),
    sa.Column("alias", _NAME, primary_key=True),
    sa.Column("approvals", sa.Integer, nullable=False),
    sa.Column("automatic", sa.Boolean, nullable=False),
    sa.Column("set_at", UtcDateTime, nullable=False),
)
"""Aliases that are not moved by one person alone, or not by the service by itself."""

proposals = sa.Table(
    "proposals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _model_id(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("alias", _NAME, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("override", sa.Boolean, nullable=False),
    sa.Column("state", _WORD, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("proposed_by", sa.Text, nullable=False),
    sa.Column("proposed_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("approved_by", _json(), nullable=False),
    sa.Column("decided_by", sa.Text),
    sa.Column("decided_at", UtcDateTime),
    sa.UniqueConstraint("model_id", "number"),
    sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.number"]),
    _one_of("state", "open", "carried-out", "rejected"),
)
"""Moves of protected aliases that wait for other people's approval."""

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    _model_id(),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("checkpoint", _DIGEST, nullable=False),
    sa.Column("example", sa.String(255)),
    sa.Column("answer", sa.String(255), nullable=False),
    sa.Column("confidence", sa.Double),
    sa.Column("made_at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Index(None, "model_id", "made_at", "id"),
    sa.Index(None, "model_id", "version", "made_at", "id"),
    sa.Index(None, "model_id", "example", "made_at", "id"),
    sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.number"]),
)
"""What clients decided with which version, as they reported it."""

uses = sa.Table(
    "uses",
    metadata,
    _model_id(primary_key=True),
    sa.Column("megabatch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("use", sa.Integer, nullable=False),
    sa.Index(None, "model_id", "version", "megabatch", "use"),
    sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.number"]),
    sqlite_with_rowid=False,
)
"""What a version's cycle did with samples of a megabatch: every ``espalier.formats.custody.Use`` of any of them."""

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", _NAME, nullable=False, unique=True),
    sa.Column("hash", _HASH, nullable=False),
    sa.Column("scopes", _json(), nullable=False),
    sa.Column("models", _json()),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
    sa.Column("revoked_reason", sa.Text),
)

key_uses = sa.Table(
    "key_uses",
    metadata,
    sa.Column("key_id", sa.String(16), sa.ForeignKey("keys.id"), primary_key=True),
    sa.Column("used_at", UtcDateTime, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("hash", _HASH, primary_key=True),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
)
"""Signed-in browsers; ``key_id`` names a row of ``keys``, or the key of the settings."""

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("kinds", _json()),
    sa.Column("models", _json()),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("secrets", _json(), nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
)
"""Addresses that are told of audit entries."""

webhook_turns = sa.Table(
    "webhook_turns",
    metadata,
    sa.Column("webhook_id", sa.Integer, sa.ForeignKey("webhooks.id"), primary_key=True, autoincrement=False),
    sa.Column("sent_through", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(255)),
    sa.Column("token", sa.BigInteger, nullable=False),
)
"""How far in the log each webhook is, and which worker sends to it now: the log is the outbox."""

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("webhook_id", sa.Integer, sa.ForeignKey("webhooks.id"), nullable=False),
    sa.Column("event", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("model", _NAME),
    sa.Column("state", _WORD, nullable=False),
    sa.Column("holds", sa.Boolean, nullable=False),
    sa.Column("once", sa.Boolean, nullable=False),
    sa.Column("attempts", _json(), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("began_at", UtcDateTime, nullable=False),
    sa.Column("next_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime, index=True),
    sa.UniqueConstraint("webhook_id", "event"),
    sa.Index(None, "webhook_id", "id"),
    _one_of("state", "pending", "delivered", "failed", "skipped"),
    sqlite_autoincrement=True,
)
"""What was sent to a webhook, is to be, or could not be."""

PENDING = deliveries.c.state == sa.literal_column("'pending'")

_partial("ix_deliveries_pending", deliveries.c.webhook_id, deliveries.c.next_at, where=PENDING)

ticks = sa.Table(
    "ticks",
    metadata,
    _model_id(primary_key=True),
    sa.Column("due_at", UtcDateTime, primary_key=True),
    sa.Column("taken_at", UtcDateTime, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("heartbeat_at", UtcDateTime, nullable=False),
)

audit_entries = sa.Table(
    "audit_entries",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("time", UtcDateTime, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("model", _NAME),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("leaf", _HASH, nullable=False),
    sa.Index(None, "model", "seq"),
    sa.Index(None, "kind", "seq"),
    sa.Index(None, "model", "kind", "seq"),
    sa.Index(None, "actor", "seq"),
    sa.Index(None, "time", "seq"),
)

audit_subjects = sa.Table(
    "audit_subjects",
    metadata,
    sa.Column("model", _NAME, primary_key=True),
    sa.Column("subject", _WORD, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    _one_of("subject", "cycle", "megabatch", "version"),
    sqlite_with_rowid=False,
)
"""Which entries are about which cycle, megabatch or version: an index of the log, and no evidence of anything."""

log_head = sa.Table(
    "log_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", _HASH, nullable=False),
    sa.Column("frontier", _json(), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="1"),
    sa.CheckConstraint("id = 1", name="single"),
)

log_nodes = sa.Table(
    "log_nodes",
    metadata,
    sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", _HASH, nullable=False),
    sqlite_with_rowid=False,
)
"""Roots of complete subtrees of 256 ** level leaves, from level 1 on: what proofs are made of without reading every
leaf.
"""

log_checkpoints = sa.Table(
    "log_checkpoints",
    metadata,
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("root", _HASH, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("signed_at", UtcDateTime, nullable=False),
)
"""Every checkpoint of the log that was signed; like entries, never changed or deleted."""

LOG = frozenset({audit_entries.name, audit_subjects.name, log_head.name, log_nodes.name})
"""Written by ``tx.audit`` alone; entries are never changed or deleted."""

EXEMPT = frozenset(
    {leases.name, ticks.name, workers.name, uploads.name, idempotency_keys.name}
    | {key_uses.name, sessions.name, log_checkpoints.name, webhook_turns.name, deliveries.name}
)
"""Heartbeats, clock ticks, bytes on their way in, events on their way out, signatures of the log: changed all the time,
and no fact about a model.
"""

AUDITED = frozenset(metadata.tables) - LOG - EXEMPT
"""A transaction that changes one of these appends to the log, or is rolled back."""

TRIGGERS = {
    "sqlite": frozenset(
        {f"{audit_entries.name}_refuse_{verb}" for verb in ("update", "delete", "replace")}
        | {f"{log_head.name}_refuse_{verb}" for verb in ("shrink", "delete", "replace")}
        | {f"{name}_refuse_{verb}" for name in ("log_nodes", "log_checkpoints") for verb in ("update", "delete")}
    ),
    "postgresql": frozenset(
        {f"{audit_entries.name}_refuse_{verb}" for verb in ("change", "truncate")}
        | {f"{log_head.name}_refuse_{verb}" for verb in ("shrink", "delete", "truncate")}
        | {f"{name}_refuse_{verb}" for name in ("log_nodes", "log_checkpoints") for verb in ("change", "truncate")}
    ),
}
"""What refuses changes of the log in the database itself, whoever asks: made by migrations."""

NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
"""Names of models and aliases. What does not match names nothing, and is never sent to the database."""

LARGEST = 2**31 - 1
"""The largest number, revision or limit that a column holds."""
