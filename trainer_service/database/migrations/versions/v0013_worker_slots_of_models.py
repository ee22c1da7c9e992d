"""The workers of each base model that has its own limits, since replicas share those too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("worker_slots", sa.Column("base_models", sa.Text, nullable=False, server_default="{}"))
