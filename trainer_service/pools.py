"""The trainer's thread pools for blocking calls: one pool per external system, so that a system that hangs delays no
other calls.
"""

from __future__ import annotations

from shared.process.call_pool import CallPool

HEALTH_SECONDS = 5.0
"""Time limit of health checks."""
_DATASET_SECONDS = 600.0
"""Parsing the largest dataset takes minutes on a busy processor."""


class TrainerPools:
    """All pools of the trainer. If two pools call the same system, a full one doesn't affect the other."""

    def __init__(self, store_timeout_seconds: float = 30.0, database_timeout_seconds: float = 30.0) -> None:
        def pool(name: str, num_threads: int, timeout_seconds: float) -> CallPool:
            made = CallPool(name, max_threads=num_threads, timeout_seconds=timeout_seconds)
            self._all.append(made)
            return made

        self._all: list[CallPool] = []
        self.job_database = pool("job_database", 8, database_timeout_seconds)
        self.job_files = pool("job_files", 4, database_timeout_seconds)
        """Checkpoints and trained results: files beside SQLite, rows of PostgreSQL."""
        self.prompt_store = pool("prompt_store", 16, store_timeout_seconds)
        """Requests to the prompt store, and jobs that start or publish."""
        self.prompt_store_watch = pool("prompt_store_watch", 4, store_timeout_seconds)
        """Polls of all WatchPrompts calls."""
        self.datasets = pool("datasets", 6, _DATASET_SECONDS)
        """The service's dataset directory."""
        self.dataset_roots = pool("dataset_roots", 4, _DATASET_SECONDS)
        """Directories that callers name in URIs, often on another machine."""
        self.requests = pool("requests", 4, _DATASET_SECONDS)
        """Parsing of large requests, which can take minutes of processor time."""
        self.job_checks = pool("job_checks", 2, _DATASET_SECONDS)
        """Checks of new jobs against datasets and tokenizer, which can take minutes of processor time."""
        self.webhooks = pool("webhooks", 50, 30.0)
        """HTTP requests to the endpoints of webhooks, a thread for each: slow ones delay no other."""
        self.usage = pool("usage", 2, 2 * (store_timeout_seconds + database_timeout_seconds))
        """Usage, in the prompt store and the job database."""
        self.job_database_health = pool("job_database_health", 1, HEALTH_SECONDS)
        self.prompt_store_health = pool("prompt_store_health", 1, HEALTH_SECONDS)

    @property
    def all(self) -> tuple[CallPool, ...]:
        """Every pool."""
        return tuple(self._all)

    def close(self) -> None:
        """Closes all pools without waiting for calls that hang."""
        for pool in self._all:
            pool.close()
