"""Runs migrations on the connection that ``app.store.migrate`` opened and locked; there is no other way in."""

from __future__ import annotations

from alembic import context

from app.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_server_default=True,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,  # SQLite too: the driver starts no transactions of its own here
)
with context.begin_transaction():
    context.run_migrations()
