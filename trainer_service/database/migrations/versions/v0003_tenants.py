"""Jobs belong to tenants. An older job belongs to the tenant named like its caller."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tenant", sa.String(200), nullable=False, server_default=""))
    op.execute("UPDATE jobs SET tenant = caller")
    op.create_index("ix_jobs_tenant_state", "jobs", ["tenant", "state"])
