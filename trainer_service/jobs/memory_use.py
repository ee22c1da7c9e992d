"""The memory of workers while they train, by base model."""

from __future__ import annotations


class MemoryUse:
    """The largest use that this replica has seen since its start. Used in the event loop."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def observe(self, base_model: str, num_jobs: int, used_bytes: int) -> None:
        """Records the use of a worker with so many jobs. Without one, a worker has loaded the model and no more."""
        if num_jobs:
            self._most[base_model] = max(used_bytes, self._most.get(base_model, 0))

    def most_bytes(self, base_model: str) -> int | None:
        """The largest use with at least one job, including the model; None before the first."""
        return self._most.get(base_model)
