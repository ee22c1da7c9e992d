"""When a job last became QUEUED, for the age of the queue. Older jobs count from their creation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("queued_at", sa.Double(), nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET queued_at = create_time")
