"""Keys shared by all replicas, and prompt names in byte order, so that a name pattern is a range of the index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "service_keys",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_service_keys"),
    )
    if op.get_bind().dialect.name == "postgresql":  # SQLite always compares bytes
        op.alter_column("jobs", "prompt", type_=sa.String(63, collation="C"))
