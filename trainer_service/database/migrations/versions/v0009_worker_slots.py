"""The number of workers that each replica may have, since replicas share one limit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "worker_slots",
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("lacking", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_worker_slots"),
    )
