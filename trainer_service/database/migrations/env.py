"""Alembic's entry point: runs the migrations on the connection that `trainer_service.database.database` passes."""

from __future__ import annotations

from alembic import context

from trainer_service.database.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
