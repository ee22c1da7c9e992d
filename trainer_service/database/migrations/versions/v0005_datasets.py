"""Datasets belong to tenants, older ones to the tenants of their jobs; ended jobs are thinned and removed."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# Sizes and numbers of examples are filled in later from the files. The time without use begins now, so an upgrade
# removes no dataset at once.
_ADOPT = """
INSERT INTO datasets (tenant, dataset, size_bytes, num_examples, task, num_labels, create_time, last_use_time)
SELECT jobs.tenant, job_datasets.dataset, 0, 0, '', 0, min(jobs.create_time), :now
FROM job_datasets JOIN jobs ON jobs.id = job_datasets.job_id
GROUP BY jobs.tenant, job_datasets.dataset
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("compacted", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_jobs_tenant_end_time", "jobs", ["tenant", "end_time"])
    op.create_index("ix_jobs_compacted_end_time", "jobs", ["compacted", "end_time"])
    op.create_table(
        "datasets",
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("dataset", sa.String(90), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_examples", sa.Integer, nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("num_labels", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("last_use_time", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "dataset", name="pk_datasets"),
    )
    op.create_index("ix_datasets_dataset", "datasets", ["dataset"])
    op.create_index("ix_datasets_last_use_time", "datasets", ["last_use_time"])
    op.get_bind().execute(sa.text(_ADOPT), {"now": time.time()})
