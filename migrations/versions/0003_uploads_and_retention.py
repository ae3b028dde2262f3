"""Resumable uploads, idempotency keys, versions whose bytes were swept, and what keeps lists fast as they grow: partial
indexes, which versions hold pruning, and which entries are about what.

Revision: 0003
Follows: 0002
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")

PARTIAL = (
    ("ix_cycles_queue", "cycles", ["id", "model_id"], "state = 'queued'"),
    ("ix_megabatches_quarantined", "megabatches", ["model_id", "number"], "status = 'quarantined'"),
    ("ix_megabatches_pinned", "megabatches", ["model_id", "number"], "pinned = true"),
    ("ix_versions_published", "versions", ["model_id", "number"], "status = 'published'"),
    ("ix_versions_holding", "versions", ["model_id", "held_on", "number"], "holds = true"),
)
PLAIN = (
    ("recipes", ["initial_weights"]),
    ("leases", ["snapshot"]),
    ("cycles", ["model_id", "through", "attempt", "number"]),
    ("alias_moves", ["model_id", "alias", "moved_at", "revision"]),
)
SUBJECTS = {"cycle": ("cycle",), "version": ("version", "from", "to"), "megabatch": ("megabatch",)}
"""Whose numbers an entry's parameters may hold, and under which names."""

PAGE = 2000


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("media", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("megabatch", sa.Integer(), nullable=True),
        sa.Column("problem", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('open', 'complete', 'accepted', 'refused')", name=op.f("ck_uploads_state")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_uploads_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=71), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("actor", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"], unique=False)
    op.add_column("versions", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("versions", sa.Column("swept_reason", sa.Text(), nullable=True))
    op.add_column("versions", sa.Column("holds", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("versions", sa.Column("held_on", sa.Integer(), nullable=True))
    op.create_table(
        "audit_subjects",
        sa.Column("model", NAME, nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.CheckConstraint("subject IN ('cycle', 'megabatch', 'version')", name=op.f("ck_audit_subjects_subject")),
        sa.PrimaryKeyConstraint("model", "subject", "number", "seq", name=op.f("pk_audit_subjects")),
        sqlite_with_rowid=False,
    )
    _mark_what_holds()
    _index_the_log()
    for name, table, columns, where in PARTIAL:
        words = where.replace("true", "1") if op.get_context().dialect.name == "sqlite" else where
        condition = sa.text(words)
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
    for table, columns in PLAIN:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns, unique=False)
    # SQLite, which keeps no statistics here, takes the newest of two indexes that seem equally good.
    queued = sa.text("state = 'queued'")
    op.drop_index("ix_cycles_waiting", table_name="cycles")
    op.create_index("ix_cycles_waiting", "cycles", ["model_id", "id"], sqlite_where=queued, postgresql_where=queued)


def _mark_what_holds() -> None:
    """Withheld versions whose verdict holds pruning, and the champion that they left."""
    kinds = (("id", sa.Integer()), ("status", sa.String()), ("parent", sa.Integer()), ("verdict", sa.JSON()))
    marks = (sa.column("holds", sa.Boolean()), sa.column("held_on", sa.Integer()))
    versions = sa.table("versions", *(sa.column(name, kind) for name, kind in kinds), *marks)
    withheld = sa.select(versions.c.id, versions.c.parent, versions.c.verdict).where(versions.c.status == "withheld")
    for rows in _pages(withheld, versions.c.id):
        for row in rows:
            if row.verdict.get("action") in ("hold", "restore"):
                restored = row.verdict.get("restored")
                marked = {"holds": True, "held_on": row.parent if restored is None else restored}
                op.get_bind().execute(sa.update(versions).where(versions.c.id == row.id).values(marked))


def _index_the_log() -> None:
    """Every entry of a model by the cycles, versions and megabatches that it is about."""
    entries = sa.table("audit_entries", *(sa.column(name) for name in ("seq", "model", "document")))
    subjects = sa.table("audit_subjects", *(sa.column(name) for name in ("model", "subject", "number", "seq")))
    for rows in _pages(sa.select(entries).where(entries.c.model.is_not(None)), entries.c.seq):
        found = [about for row in rows for about in _about(row)]
        if found:
            op.get_bind().execute(sa.insert(subjects), found)


def _about(row: sa.Row[Any]) -> list[dict[str, Any]]:
    parameters = json.loads(row.document)["parameters"]
    named = {(subject, parameters.get(key)) for subject, keys in SUBJECTS.items() for key in keys}
    numbers = ((subject, number) for subject, number in named if type(number) is int)
    return [{"model": row.model, "subject": subject, "number": number, "seq": row.seq} for subject, number in numbers]


def _pages(wanted: sa.Select[Any], key: sa.ColumnElement[Any]) -> Iterator[Sequence[sa.Row[Any]]]:
    after = -1
    while rows := op.get_bind().execute(wanted.where(key > after).order_by(key).limit(PAGE)).all():
        yield rows
        after = getattr(rows[-1], key.key or "")


def downgrade() -> None:
    for table, columns in PLAIN:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table_name=table)
    for name, table, _columns, _where in PARTIAL:
        op.drop_index(name, table_name=table)
    op.drop_table("audit_subjects")
    op.drop_column("versions", "held_on")
    op.drop_column("versions", "holds")
    op.drop_column("versions", "swept_reason")
    op.drop_column("versions", "swept_at")
    op.drop_table("idempotency_keys")
    op.drop_table("uploads")
