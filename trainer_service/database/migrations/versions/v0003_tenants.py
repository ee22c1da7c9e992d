"""Jobs belong to tenants. A job from before belongs to the tenant that its caller is by itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tenant", sa.String(200), nullable=False, server_default=""))
    op.execute("UPDATE jobs SET tenant = caller")
    op.create_index("ix_jobs_tenant_state", "jobs", ["tenant", "state"])
