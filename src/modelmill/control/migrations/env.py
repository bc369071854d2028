"""Runs the migrations on the engine that `Database.migrate` hands over."""

from typing import Any, Literal

from alembic import context

from modelmill.control.db import Base, Moment


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Migrations stand alone: they name the database's type, not ours."""
    return (
        "sa.DateTime()"
        if kind == "type" and isinstance(item, Moment)
        else False
    )


with context.config.attributes["engine"].connect() as connection:
    sqlite = connection.dialect.name == "sqlite"
    # it changes a table by copying and dropping it, and with the drop would delete what refers to
    # it
    if sqlite:
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
    if sqlite:
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
