"""Usage by hour, and how far each replica's journal was added to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    prompt = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
    key = ("hour", "tenant", "caller", "prompt", "version", "base_model")
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("caller", sa.String(200), nullable=False),
        sa.Column("prompt", prompt, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("base_model", sa.String(200), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("virtual_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        sa.Column("worker_seconds", sa.Double, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(*key, name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_tenant_hour", "usage_hours", ["tenant", "hour"])
    op.create_table(
        "usage_lives",
        sa.Column("life", sa.String(32), nullable=False),
        sa.Column("next_number", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("life", name="pk_usage_lives"),
    )
