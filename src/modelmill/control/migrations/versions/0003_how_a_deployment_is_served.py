"""how a deployment is served"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("options", sa.JSON(), nullable=False, server_default="{}")
        )
        batch_op.add_column(
            sa.Column(
                "variants", sa.JSON(), nullable=False, server_default="[]"
            )
        )
        batch_op.add_column(
            sa.Column(
                "loaded", sa.Boolean(), nullable=False, server_default=sa.true()
            )
        )
        batch_op.add_column(
            sa.Column(
                "asleep",
                sa.Boolean(),
                nullable=False,
                server_default=sa.false(),
            )
        )
        batch_op.add_column(
            sa.Column("note", sa.String(), nullable=False, server_default="")
        )
    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("batch", sa.Integer(), nullable=False, server_default="0")
        )
        batch_op.add_column(
            sa.Column(
                "threads", sa.Integer(), nullable=False, server_default="1"
            )
        )
        batch_op.add_column(
            sa.Column(
                "memory", sa.BigInteger(), nullable=False, server_default="0"
            )
        )
    revisions = sa.table("revision", sa.column("id"), sa.column("value"))
    op.bulk_insert(revisions, [{"id": 2, "value": 1}, {"id": 3, "value": 1}])


def downgrade() -> None:
    op.execute("DELETE FROM revision WHERE id > 1")
    with op.batch_alter_table("replica", schema=None) as batch_op:
        for name in ("memory", "threads", "batch"):
            batch_op.drop_column(name)
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        for name in ("note", "asleep", "loaded", "variants", "options"):
            batch_op.drop_column(name)
