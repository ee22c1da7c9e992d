"""Tenants' shares of the workers, and indexes ordered by tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "tenant_shares",
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("virtual_time", sa.Double, nullable=False),
        sa.Column("clock", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenant_shares"),
    )
    op.execute(
        "INSERT INTO tenant_shares (tenant, weight, virtual_time, clock) "
        "SELECT DISTINCT tenant, 1.0, 0.0, 0.0 FROM jobs"
    )
    op.drop_index("ix_jobs_state_queue_key", "jobs")
    op.create_index("ix_jobs_state_tenant_queue_key", "jobs", ["state", "tenant", "queue_key"])
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index(
        "ix_jobs_queue", "jobs", ["state", "trained", "base_model", "tenant", "solo", "queue_key", "id", "not_before"]
    )
