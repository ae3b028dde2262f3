"""What trust rests on: nodes and signed checkpoints of the log, keys, sessions, erasure, protected aliases, decisions,
and what each version was made from.

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BLOBS = ("inputs", "samples", "answers", "falls")
WIDTH = 256
TRAINED, NEW = 1, 32
PARTIAL = (
    ("ix_megabatches_quarantined", "status = 'quarantined'"),
    ("ix_megabatches_pinned", "pinned = true"),
)
NEW_TABLES = (
    *("protections", "proposals", "decisions", "uses", "key_uses", "keys", "sessions"),
    *("log_nodes", "log_checkpoints"),
)

SQLITE_TRIGGERS = tuple(
    f"""
    CREATE TRIGGER {table}_refuse_{verb} BEFORE {verb.upper()} ON {table}
    BEGIN SELECT RAISE(ABORT, '{words}'); END
    """
    for table, words in (
        ("log_nodes", "the audit log only grows"),
        ("log_checkpoints", "signed checkpoints are never changed or deleted"),
    )
    for verb in ("update", "delete")
)
POSTGRESQL_TRIGGERS = tuple(
    f"""
    CREATE TRIGGER {table}_refuse_{name} BEFORE {events} ON {table}
    FOR EACH {each} EXECUTE FUNCTION refuse_head_change()
    """
    for table in ("log_nodes", "log_checkpoints")
    for name, events, each in (("change", "UPDATE OR DELETE", "ROW"), ("truncate", "TRUNCATE", "STATEMENT"))
)


def upgrade() -> None:
    _create_tables()
    for name in BLOBS:
        op.add_column("versions", sa.Column(name, sa.String(length=71), nullable=True))
        op.create_index(op.f(f"ix_versions_{name}"), "versions", [name], unique=False)
    op.add_column("log_head", sa.Column("epoch", sa.Integer(), server_default="1", nullable=False))
    op.add_column("models", sa.Column("anew_at", sa.Integer(), nullable=True))
    op.add_column("megabatches", sa.Column("erasures", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("megabatches", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    _allow("accepted", "quarantined", "erased")
    _grow_nodes()
    _find_uses()
    for trigger in SQLITE_TRIGGERS if _on_sqlite() else POSTGRESQL_TRIGGERS:
        op.execute(trigger)


def _on_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _allow(*states: str) -> None:
    """Change which states a megabatch may have. SQLite can only do that by copying the table."""
    listed = ", ".join(f"'{state}'" for state in states)
    for name, _ in PARTIAL:
        op.drop_index(name, table_name="megabatches")
    with op.batch_alter_table("megabatches") as batch:
        batch.drop_constraint(op.f("ck_megabatches_status"), type_="check")
        batch.create_check_constraint(op.f("ck_megabatches_status"), f"status IN ({listed})")
    for name, where in PARTIAL:
        condition = sa.text(where.replace("true", "1") if _on_sqlite() else where)
        columns = ["model_id", "number"]
        op.create_index(name, "megabatches", columns, sqlite_where=condition, postgresql_where=condition)


def _grow_nodes() -> None:
    """The node of every complete subtree of 256, 256 ** 2, ... leaves that the log has already."""
    entries = sa.table("audit_entries", sa.column("seq"), sa.column("leaf"))
    nodes = sa.table("log_nodes", *(sa.column(name) for name in ("level", "index", "hash")))
    found: list[list[bytes]] = [[]]
    counts = [0]
    after = 0
    while rows := op.get_bind().execute(_leaves(entries, after)).all():
        for row in rows:
            _add(nodes, found, counts, bytes.fromhex(row.leaf))
        after = rows[-1].seq


def _leaves(entries: sa.TableClause, after: int) -> sa.Select[tuple[int, str]]:
    return sa.select(entries).where(entries.c.seq > after).order_by(entries.c.seq).limit(2000)


def _find_uses() -> None:
    """Which megabatches each version was trained on, and which of them were new: so much its entry says."""
    entries = sa.table("audit_entries", *(sa.column(name) for name in ("seq", "kind", "model", "document")))
    models = sa.table("models", sa.column("id"), sa.column("name"))
    versions = sa.table("versions", sa.column("model_id"), sa.column("number"))
    uses = sa.table("uses", *(sa.column(name) for name in ("model_id", "megabatch", "version", "use")))
    told = sa.select(entries.c.seq, entries.c.document, models.c.id).join(models, models.c.name == entries.c.model)
    told = told.where(entries.c.kind.in_(("version.published", "version.withheld"))).order_by(entries.c.seq).limit(500)
    there = {tuple(row) for row in op.get_bind().execute(sa.select(versions))}
    after = 0
    while rows := op.get_bind().execute(told.where(entries.c.seq > after)).all():
        found = {key: use for row in rows for key, use in _uses(row.id, json.loads(row.document)["parameters"])}
        values = [
            {"model_id": model, "version": version, "megabatch": megabatch, "use": use}
            for (model, version, megabatch), use in found.items()
            if (model, version) in there
        ]
        if values:
            op.get_bind().execute(sa.insert(uses), values)
        after = rows[-1].seq


def _uses(model: int, said: dict[str, Any]) -> list[tuple[tuple[int, int, int], int]]:
    new = set(said.get("new", ()))
    keys = [(model, said.get("version", -1), megabatch) for megabatch in said.get("megabatches", ())]
    return [(key, TRAINED | (NEW if key[2] in new else 0)) for key in keys]


def _add(nodes: sa.TableClause, found: list[list[bytes]], counts: list[int], node: bytes, level: int = 0) -> None:
    if len(found) == level:
        found.append([])
        counts.append(0)
    found[level].append(node)
    if len(found[level]) < WIDTH:
        return
    hashes = found[level]
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
    found[level] = []
    row = {"level": level + 1, "index": counts[level], "hash": hashes[0].hex()}
    counts[level] += 1
    op.get_bind().execute(sa.insert(nodes).values(row))
    _add(nodes, found, counts, hashes[0], level + 1)


def _create_tables() -> None:
    op.create_table(
        "protections",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("approvals", sa.Integer(), nullable=False),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_protections_model_id")),
        sa.PrimaryKeyConstraint("model_id", "alias", name=op.f("pk_protections")),
    )
    op.create_table(
        "proposals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("override", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("proposed_by", sa.Text(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("approved_by", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'carried-out', 'rejected')", name=op.f("ck_proposals_state")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_proposals_model_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["versions.model_id", "versions.number"],
            name=op.f("fk_proposals_model_id_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_proposals")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_proposals_model_id_number")),
    )
    op.create_table(
        "decisions",
        sa.Column("id", BIG_KEY, nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.String(length=71), nullable=False),
        sa.Column("example", sa.String(length=255), nullable=True),
        sa.Column("answer", sa.String(length=255), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_decisions_model_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["versions.model_id", "versions.number"],
            name=op.f("fk_decisions_model_id_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    for columns in (["made_at", "id"], ["version", "made_at", "id"], ["example", "made_at", "id"]):
        op.create_index(op.f("_".join(["ix_decisions_model_id", *columns])), "decisions", ["model_id", *columns])
    op.create_table(
        "uses",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("megabatch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("use", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_uses_model_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "version"], ["versions.model_id", "versions.number"], name=op.f("fk_uses_model_id_version")
        ),
        sa.PrimaryKeyConstraint("model_id", "megabatch", "version", name=op.f("pk_uses")),
        sqlite_with_rowid=False,
    )
    columns = ["model_id", "version", "megabatch", "use"]
    op.create_index(op.f("ix_uses_model_id_version_megabatch_use"), "uses", columns)
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_keys_name")),
    )
    op.create_table(
        "key_uses",
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_key_uses_key_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_key_uses")),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"], unique=False)
    op.create_table(
        "log_nodes",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name=op.f("pk_log_nodes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_checkpoints",
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "size", name=op.f("pk_log_checkpoints")),
    )


def downgrade() -> None:
    for table in NEW_TABLES:
        op.drop_table(table)
    _allow("accepted", "quarantined")
    with op.batch_alter_table("megabatches") as batch:
        batch.drop_column("erased_at")
        batch.drop_column("erasures")
    with op.batch_alter_table("models") as batch:
        batch.drop_column("anew_at")
    op.drop_column("log_head", "epoch")
    for name in BLOBS:
        op.drop_index(op.f(f"ix_versions_{name}"), table_name="versions")
        op.drop_column("versions", name)
