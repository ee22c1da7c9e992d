"""The tables, the same for SQLite and PostgreSQL. `migrations` creates them; a test compares the two.

Times are seconds since the epoch (UTC). JSON columns hold the pydantic models of `jobs.model`; fields that queries
search for have separate columns.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

PROMPT_NAME = String(63).with_variant(String(63, collation="C"), "postgresql")
"""Compared byte by byte, as in SQLite, so that the names with a common prefix are one range of an index."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("pausing", Boolean, nullable=False),
    Column("prompt", PROMPT_NAME, nullable=False),
    Column("base_model", String(200), nullable=False),
    Column("caller", String(200), nullable=False),
    Column("tenant", String(200), nullable=False),
    Column("request_id", String(128)),  # NULL if the caller gave none: NULLs don't collide in the unique index
    Column("spec", Text, nullable=False),
    Column("effective", Text, nullable=False),
    Column("queue_key", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("trained", Boolean, nullable=False),
    Column("solo", Boolean, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("owner", String(120), nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("claimed_at", Double),
    Column("runtime_seconds", Double, nullable=False),
    Column("progress", Text, nullable=False),
    Column("dataset_statistics", Text),
    Column("error", Text),
    Column("result", Text),
    Column("create_time", Double, nullable=False),
    Column("start_time", Double),
    Column("end_time", Double),
    Column("last_event", BigInteger, nullable=False),
    Column("checkpointed", Boolean, nullable=False),
    Column("deadline", Double),
    Column("compacted", Boolean, nullable=False, server_default=false()),  # its events were thinned after its end
    Index("ix_jobs_state_id", "state", "id"),
    Index("ix_jobs_state_tenant_queue_key", "state", "tenant", "queue_key"),
    Index("ix_jobs_prompt_id", "prompt", "id"),
    Index("ix_jobs_prompt_state_id", "prompt", "state", "id"),
    # Covers the queries for the queue's heads and for claims: they read no table rows.
    Index("ix_jobs_queue", "state", "trained", "base_model", "tenant", "solo", "queue_key", "id", "not_before"),
    Index("ix_jobs_caller_state", "caller", "state"),
    Index("ix_jobs_tenant_state", "tenant", "state"),
    Index("ix_jobs_state_deadline", "state", "deadline"),
    Index("ix_jobs_tenant_end_time", "tenant", "end_time"),
    Index("ix_jobs_compacted_end_time", "compacted", "end_time"),
    Index("uq_jobs_caller_request_id", "caller", "request_id", unique=True),
)

tenant_shares = Table(
    "tenant_shares",
    metadata,
    Column("tenant", String(200), primary_key=True),
    Column("weight", Double, nullable=False),
    Column("virtual_time", Double, nullable=False),
    Column("clock", Double, nullable=False),
)

job_annotations = Table(
    "job_annotations",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("value", String(1000), primary_key=True),
    Column("job_id", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_job_annotations_job_id", "job_id"),
)

job_datasets = Table(
    "job_datasets",
    metadata,
    Column("dataset", String(90), primary_key=True),
    Column("job_id", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_job_datasets_job_id", "job_id"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("tenant", String(200), primary_key=True),
    Column("dataset", String(90), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("num_examples", Integer, nullable=False),  # 0: a dataset of an older build that was not measured yet
    Column("task", String(16), nullable=False),
    Column("num_labels", Integer, nullable=False),
    Column("create_time", Double, nullable=False),
    Column("last_use_time", Double, nullable=False),
    Column("file_name", String(255), nullable=False, server_default=""),
    Column("sent", Boolean, nullable=False, server_default=false()),  # the tenant has sent the bytes itself
    Index("ix_datasets_dataset", "dataset"),
    Index("ix_datasets_last_use_time", "last_use_time"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("time", Double, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("payload", Text, nullable=False),
)

job_files = Table(
    "job_files",
    metadata,
    Column("job_id", String(26), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

job_reports = Table(
    "job_reports",
    metadata,
    Column("job_id", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

service_keys = Table(
    "service_keys",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

worker_slots = Table(
    "worker_slots",
    metadata,
    Column("owner", String(120), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("lacking", Integer, nullable=False),  # slots that the owner wants in addition
    Column("base_models", Text, nullable=False, server_default="{}"),  # JSON: of base models that have own limits
    Column("lease_until", Double, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("endpoint", String(63), nullable=False),
    Column("event_id", String(40), nullable=False),
    Column("type", String(32), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False, server_default="PENDING"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("not_before", Double, nullable=False, server_default="0"),
    Column("lease_until", Double, nullable=False, server_default="0"),
    Column("error", Text, nullable=False, server_default=""),
    Column("create_time", Double, nullable=False),
    Index("uq_webhook_deliveries_endpoint_event_id", "endpoint", "event_id", unique=True),
    Index("ix_webhook_deliveries_endpoint_state_subject_sequence", "endpoint", "state", "subject", "sequence"),
    Index("ix_webhook_deliveries_create_time", "create_time"),
)

store_cursors = Table(
    "store_cursors",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("store_id", String(100), nullable=False),
    Column("revision", BigInteger, nullable=False),
)

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", String(200), primary_key=True),
    Column("caller", String(200), primary_key=True),
    Column("prompt", PROMPT_NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("base_model", String(200), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("virtual_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("worker_seconds", Double, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Index("ix_usage_hours_tenant_hour", "tenant", "hour"),
)

usage_lives = Table(
    "usage_lives",
    metadata,
    Column("life", String(32), primary_key=True),
    Column("next_number", BigInteger, nullable=False),  # of the next segment to add; earlier ones were added
    Column("update_time", Double, nullable=False),
)
