"""Runs the migrations on the engine that `Database.migrate` hands over."""

from typing import Any, Literal

from alembic import context

from modelmill.control.db import Base, Moment


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Migrations stand alone: they name the database's type, not ours."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, Moment) else False


with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, render_item=render_item
    )
    with context.begin_transaction():
        context.run_migrations()
