"""The trainer's thread pools for blocking calls: one pool per external system, so that a system that hangs delays no
other calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from shared.process.call_pool import CallPool

HEALTH_SECONDS = 5.0
"""Time limit of health checks."""
_DATASET_SECONDS = 600.0
"""Parsing the largest dataset takes minutes on a busy processor."""


def _slow(name: str, num_threads: int) -> CallPool:
    return CallPool(name, max_threads=num_threads, timeout_seconds=_DATASET_SECONDS)


def _health(system: str) -> CallPool:
    return CallPool(f"{system}_health", max_threads=1, timeout_seconds=HEALTH_SECONDS)


@dataclass(frozen=True)
class TrainerPools:
    """All pools of the trainer. If two pools call the same system, a full one doesn't affect the other."""

    job_database: CallPool = field(default_factory=lambda: CallPool("job_database", max_threads=8))
    job_files: CallPool = field(default_factory=lambda: CallPool("job_files", max_threads=4))
    """Checkpoints and trained results: files beside SQLite, rows of PostgreSQL."""
    prompt_store: CallPool = field(default_factory=lambda: CallPool("prompt_store", max_threads=16))
    """Requests to the prompt store, and jobs that start or publish."""
    prompt_store_watch: CallPool = field(default_factory=lambda: CallPool("prompt_store_watch", max_threads=4))
    """Polls of all WatchPrompts calls."""
    datasets: CallPool = field(default_factory=lambda: _slow("datasets", 6))
    """The service's dataset directory."""
    dataset_roots: CallPool = field(default_factory=lambda: _slow("dataset_roots", 4))
    """Directories that callers name in URIs, often on another machine."""
    requests: CallPool = field(default_factory=lambda: _slow("requests", 4))
    """Parsing of large requests, which can take minutes of processor time."""
    job_checks: CallPool = field(default_factory=lambda: _slow("job_checks", 2))
    """Checks of new jobs against datasets and tokenizer, which can take minutes of processor time."""
    webhooks: CallPool = field(default_factory=lambda: CallPool("webhooks", max_threads=50))
    """HTTP requests to the endpoints of webhooks, a thread for each: slow ones delay no other."""
    usage: CallPool = field(default_factory=lambda: CallPool("usage", max_threads=2))
    """Usage, in the prompt store and the job database."""
    job_database_health: CallPool = field(default_factory=lambda: _health("job_database"))
    prompt_store_health: CallPool = field(default_factory=lambda: _health("prompt_store"))

    @classmethod
    def of(cls, store_timeout_seconds: float, database_timeout_seconds: float) -> TrainerPools:
        """Pools with the time limits of the settings."""
        return cls(
            job_database=CallPool("job_database", max_threads=8, timeout_seconds=database_timeout_seconds),
            job_files=CallPool("job_files", max_threads=4, timeout_seconds=database_timeout_seconds),
            prompt_store=CallPool("prompt_store", max_threads=16, timeout_seconds=store_timeout_seconds),
            prompt_store_watch=CallPool("prompt_store_watch", max_threads=4, timeout_seconds=store_timeout_seconds),
            usage=CallPool(
                "usage", max_threads=2, timeout_seconds=2 * (store_timeout_seconds + database_timeout_seconds)
            ),
        )

    @property
    def all(self) -> tuple[CallPool, ...]:
        """Every pool."""
        return tuple(getattr(self, item.name) for item in fields(self))

    def close(self) -> None:
        """Closes all pools without waiting for calls that hang."""
        for pool in self.all:
            pool.close()
