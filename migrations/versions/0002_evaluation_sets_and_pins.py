"""Evaluation sets, pinned megabatches, reports of versions, and what a claim pins beside its recipe and parent.

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BLOBS = ("x", "y", "ids")


def upgrade() -> None:
    op.create_table(
        "evaluation_sets",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        *(sa.Column(name, sa.String(length=71), nullable=False) for name in _BLOBS),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("histogram", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_evaluation_sets_model_id")),
        sa.PrimaryKeyConstraint("model_id", "revision", name=op.f("pk_evaluation_sets")),
    )
    for name in _BLOBS:
        op.create_index(op.f(f"ix_evaluation_sets_{name}"), "evaluation_sets", [name], unique=False)
    op.add_column("megabatches", sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("megabatches", sa.Column("evaluation_overlap", sa.BigInteger(), nullable=True))
    op.add_column("cycles", sa.Column("evaluation_revision", sa.Integer(), nullable=True))
    op.add_column("versions", sa.Column("report", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("leases", sa.Column("inputs", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("leases", "inputs")
    op.drop_column("versions", "report")
    op.drop_column("cycles", "evaluation_revision")
    op.drop_column("megabatches", "evaluation_overlap")
    op.drop_column("megabatches", "pinned")
    op.drop_table("evaluation_sets")
