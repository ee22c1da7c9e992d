"""Deadlines, whether a job has a checkpoint, the datasets of jobs, and a covering index for the queue."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpointed", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("deadline", sa.Double))
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_queue", "jobs", ["state", "trained", "base_model", "queue_key", "not_before"])
    op.create_index("ix_jobs_state_deadline", "jobs", ["state", "deadline"])
    job_datasets = op.create_table(
        "job_datasets",
        sa.Column("dataset", sa.String(90), nullable=False),
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "job_id", name="pk_job_datasets"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_datasets_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_job_datasets_job_id", "job_datasets", ["job_id"])
    rows = []
    for job_id, text in op.get_bind().execute(sa.text("SELECT id, spec FROM jobs")):
        spec = json.loads(text)
        rows += [
            {"dataset": name, "job_id": job_id}
            for name in {spec["dataset"], spec.get("validation_dataset", "")}
            if name
        ]
    if rows:
        op.bulk_insert(job_datasets, rows)
