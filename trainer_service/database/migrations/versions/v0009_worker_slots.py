"""Replicas share one limit of workers: how many each may have."""

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
