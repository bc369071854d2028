"""keys with limits"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("rate", sa.Double(), nullable=False, server_default="0")
        )
        batch_op.add_column(
            sa.Column("burst", sa.Integer(), nullable=False, server_default="0")
        )
        batch_op.create_unique_constraint(
            "uq_api_key_name", ["project_id", "name"]
        )


def downgrade() -> None:
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        batch_op.drop_constraint("uq_api_key_name", type_="unique")
        batch_op.drop_column("burst")
        batch_op.drop_column("rate")
