"""The log by actor and by time: what an auditor looks for is found without reading all of it.

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("actor", "time")


def upgrade() -> None:
    for column in COLUMNS:
        op.create_index(op.f(f"ix_audit_entries_{column}_seq"), "audit_entries", [column, "seq"], unique=False)


def downgrade() -> None:
    for column in COLUMNS:
        op.drop_index(op.f(f"ix_audit_entries_{column}_seq"), table_name="audit_entries")
