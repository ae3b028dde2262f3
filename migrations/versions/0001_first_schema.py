"""The first schema: models, megabatches, cycles, versions, aliases, and the audit log with its triggers.

Revision: 0001
Follows:
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")

SQLITE_TRIGGERS = (
    """
    CREATE TRIGGER audit_entries_refuse_update BEFORE UPDATE ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'audit entries are never changed'); END
    """,
    """
    CREATE TRIGGER audit_entries_refuse_delete BEFORE DELETE ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'audit entries are never deleted'); END
    """,
    # REPLACE deletes without firing delete triggers, but not before this one.
    """
    CREATE TRIGGER audit_entries_refuse_replace BEFORE INSERT ON audit_entries
    WHEN EXISTS (SELECT 1 FROM audit_entries WHERE seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'audit entries are never changed'); END
    """,
    """
    CREATE TRIGGER log_head_refuse_shrink BEFORE UPDATE ON log_head
    WHEN NEW.size <= OLD.size
    BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END
    """,
    """
    CREATE TRIGGER log_head_refuse_delete BEFORE DELETE ON log_head
    BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END
    """,
    """
    CREATE TRIGGER log_head_refuse_replace BEFORE INSERT ON log_head
    WHEN EXISTS (SELECT 1 FROM log_head)
    BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END
    """,
)

POSTGRESQL_TRIGGERS = (
    """
    CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'audit entries are never changed or deleted'; END $$
    """,
    """
    CREATE TRIGGER audit_entries_refuse_change BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()
    """,
    """
    CREATE TRIGGER audit_entries_refuse_truncate BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
    """,
    """
    CREATE FUNCTION refuse_head_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$
    """,
    """
    CREATE TRIGGER log_head_refuse_shrink BEFORE UPDATE ON log_head
    FOR EACH ROW WHEN (NEW.size <= OLD.size) EXECUTE FUNCTION refuse_head_change()
    """,
    """
    CREATE TRIGGER log_head_refuse_delete BEFORE DELETE ON log_head
    FOR EACH ROW EXECUTE FUNCTION refuse_head_change()
    """,
    """
    CREATE TRIGGER log_head_refuse_truncate BEFORE TRUNCATE ON log_head
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_head_change()
    """,
)


def upgrade() -> None:
    _create_tables()
    _begin_log()


def _begin_log() -> None:
    head = sa.table("log_head", *(sa.column(name) for name in ("id", "size", "root", "frontier")))
    op.execute(sa.insert(head).values(id=1, size=0, root=hashlib.sha256().hexdigest(), frontier=sa.text("'[]'")))
    on_sqlite = op.get_context().dialect.name == "sqlite"
    for trigger in SQLITE_TRIGGERS if on_sqlite else POSTGRESQL_TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    tables = (
        "aliases alias_moves versions leases ticks workers recipes megabatches cycles models log_head audit_entries"
    )
    for table in tables.split():
        op.drop_table(table)  # its triggers go with it
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_audit_change, refuse_head_change")


def _create_tables() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("model", NAME, nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("leaf", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_entries")),
    )
    op.create_index(op.f("ix_audit_entries_kind_seq"), "audit_entries", ["kind", "seq"], unique=False)
    op.create_index(op.f("ix_audit_entries_model_kind_seq"), "audit_entries", ["model", "kind", "seq"], unique=False)
    op.create_index(op.f("ix_audit_entries_model_seq"), "audit_entries", ["model", "seq"], unique=False)
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("frontier", sa.JSON(none_as_null=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_log_head_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_head")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("paused_reason", sa.Text(), nullable=True),
        sa.Column("recipe_revision", sa.Integer(), nullable=False),
        sa.Column("recipe_digest", sa.String(length=71), nullable=False),
        sa.Column("input", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('active', 'paused')", name=op.f("ck_models_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "cycles",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("through", sa.Integer(), nullable=False),
        sa.Column("recipe_revision", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'published', 'withheld', 'failed', 'superseded')",
            name=op.f("ck_cycles_state"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_cycles_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cycles")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_cycles_model_id_number")),
    )
    op.create_index(
        "ix_cycles_waiting",
        "cycles",
        ["model_id", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "uq_cycles_one_running",
        "cycles",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "megabatches",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("x", sa.String(length=71), nullable=False),
        sa.Column("y", sa.String(length=71), nullable=False),
        sa.Column("ids", sa.String(length=71), nullable=False),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("histogram", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("prequential", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('accepted', 'quarantined')", name=op.f("ck_megabatches_status")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_megabatches_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_megabatches")),
        sa.UniqueConstraint("model_id", "digest", name=op.f("uq_megabatches_model_id_digest")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_megabatches_model_id_number")),
    )
    op.create_index(op.f("ix_megabatches_ids"), "megabatches", ["ids"], unique=False)
    op.create_index(op.f("ix_megabatches_x"), "megabatches", ["x"], unique=False)
    op.create_index(op.f("ix_megabatches_y"), "megabatches", ["y"], unique=False)
    op.create_table(
        "recipes",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("document", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("initial_weights", sa.String(length=71), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_recipes_model_id")),
        sa.PrimaryKeyConstraint("model_id", "revision", name=op.f("pk_recipes")),
    )
    op.create_table(
        "ticks",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_ticks_model_id")),
        sa.PrimaryKeyConstraint("model_id", "due_at", name=op.f("pk_ticks")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "leases",
        sa.Column("cycle_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("snapshot", sa.String(length=71), nullable=True),
        sa.Column("advanced", sa.Boolean(), nullable=False),
        sa.CheckConstraint("(worker IS NULL) = (expires_at IS NULL)", name=op.f("ck_leases_held")),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_leases_cycle_id")),
        sa.PrimaryKeyConstraint("cycle_id", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_expires_at"), "leases", ["expires_at"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("recipe_revision", sa.Integer(), nullable=False),
        sa.Column("recipe_digest", sa.String(length=71), nullable=False),
        sa.Column("target_density", sa.Double(), nullable=False),
        sa.Column("kept", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("layers", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("verdict", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("checkpoint", sa.String(length=71), nullable=False),
        sa.Column("checkpoint_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dense", sa.String(length=71), nullable=False),
        sa.Column("dense_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mask_digest", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=71), nullable=False),
        sa.Column("megabatches", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('published', 'withheld')", name=op.f("ck_versions_status")),
        sa.ForeignKeyConstraint(
            ["model_id", "cycle"], ["cycles.model_id", "cycles.number"], name=op.f("fk_versions_model_id_cycle")
        ),
        sa.ForeignKeyConstraint(
            ["model_id", "parent"], ["versions.model_id", "versions.number"], name=op.f("fk_versions_model_id_parent")
        ),
        sa.ForeignKeyConstraint(
            ["model_id", "recipe_revision"],
            ["recipes.model_id", "recipes.revision"],
            name=op.f("fk_versions_model_id_recipe_revision"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_versions_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "cycle", name=op.f("uq_versions_model_id_cycle")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_versions_model_id_number")),
    )
    op.create_index(op.f("ix_versions_checkpoint"), "versions", ["checkpoint"], unique=False)
    op.create_index(op.f("ix_versions_state"), "versions", ["state"], unique=False)
    op.create_table(
        "alias_moves",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["versions.model_id", "versions.number"],
            name=op.f("fk_alias_moves_model_id_version"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_alias_moves_model_id")),
        sa.PrimaryKeyConstraint("model_id", "alias", "revision", name=op.f("pk_alias_moves")),
    )
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "version"], ["versions.model_id", "versions.number"], name=op.f("fk_aliases_model_id_version")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_aliases_model_id")),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("pk_aliases")),
    )
