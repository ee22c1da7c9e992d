"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(26), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("pausing", sa.Boolean, nullable=False),
        sa.Column("prompt", sa.String(63), nullable=False),
        sa.Column("base_model", sa.String(200), nullable=False),
        sa.Column("caller", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("effective", sa.Text, nullable=False),
        sa.Column("queue_key", sa.Double, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("trained", sa.Boolean, nullable=False),
        sa.Column("solo", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("claimed_at", sa.Double),
        sa.Column("runtime_seconds", sa.Double, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("dataset_statistics", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("result", sa.Text),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("start_time", sa.Double),
        sa.Column("end_time", sa.Double),
        sa.Column("last_event", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state_id", "jobs", ["state", "id"])
    op.create_index("ix_jobs_state_queue_key", "jobs", ["state", "queue_key"])
    op.create_index("ix_jobs_prompt_id", "jobs", ["prompt", "id"])
    op.create_index("ix_jobs_prompt_state_id", "jobs", ["prompt", "state", "id"])
    op.create_index("ix_jobs_queue", "jobs", ["state", "trained", "base_model", "queue_key"])
    op.create_index("ix_jobs_caller_state", "jobs", ["caller", "state"])
    op.create_index("uq_jobs_caller_request_id", "jobs", ["caller", "request_id"], unique=True)

    op.create_table(
        "job_annotations",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("value", sa.String(1000), nullable=False),
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.PrimaryKeyConstraint("key", "value", "job_id", name="pk_job_annotations"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_annotations_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_job_annotations_job_id", "job_annotations", ["job_id"])

    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_events"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id", ondelete="CASCADE"),
    )

    op.create_table(
        "job_files",
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "kind", name="pk_job_files"),
    )
