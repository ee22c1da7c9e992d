"""The memory of workers while they train, by base model."""

from __future__ import annotations


class MemoryUse:
    """The largest use that this replica has seen since its start. Used in the event loop."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def observe(self, base_model: str, num_jobs: int, used_bytes: int) -> None:
        """Records a worker's memory while it runs `num_jobs` jobs; ignores a worker that only holds the model."""
        if num_jobs:
            self._most[base_model] = max(used_bytes, self._most.get(base_model, 0))

    def most_bytes(self, base_model: str) -> int | None:
        """The largest use with at least one job, including the model; None before the first."""
        return self._most.get(base_model)
