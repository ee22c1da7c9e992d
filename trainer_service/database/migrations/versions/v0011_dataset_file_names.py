"""The name of the file that a dataset was uploaded from, and whether its tenant sent the bytes itself.

Older datasets may be copies of files that their tenant may not read, so they count as not sent.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("file_name", sa.String(255), nullable=False, server_default=""))
    op.add_column("datasets", sa.Column("sent", sa.Boolean, nullable=False, server_default=sa.false()))
