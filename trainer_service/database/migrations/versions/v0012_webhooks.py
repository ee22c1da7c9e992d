"""Deliveries of webhooks, and how far the prompt store's log was read for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("endpoint", sa.String(63), nullable=False),
        sa.Column("event_id", sa.String(40), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, server_default="PENDING"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("not_before", sa.Double, nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Double, nullable=False, server_default="0"),
        sa.Column("error", sa.Text, nullable=False, server_default=""),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_webhook_deliveries"),
    )
    table = "webhook_deliveries"
    op.create_index("uq_webhook_deliveries_endpoint_event_id", table, ["endpoint", "event_id"], unique=True)
    op.create_index(
        "ix_webhook_deliveries_endpoint_state_subject_sequence", table, ["endpoint", "state", "subject", "sequence"]
    )
    op.create_index("ix_webhook_deliveries_create_time", table, ["create_time"])
    op.create_table(
        "store_cursors",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("store_id", sa.String(100), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_store_cursors"),
    )
