"""Runs the migrations on the engine that `Database.migrate` hands over."""

from alembic import context

from modelmill.control.db import Base

with context.config.attributes["engine"].connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
