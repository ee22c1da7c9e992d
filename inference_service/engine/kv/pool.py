"""The scheduler's interface to the bookkeeping of a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from inference_service.engine.kv.rows import Acquired, NewContent


class Pool(Protocol):
    """The bookkeeping of a KV cache, implemented and described by `rows.RowPool` and `blocks.BlockPool`."""

    max_blocks: int
    max_length: int
    reuse: bool
    across_tenants: bool

    @property
    def rows(self) -> Sequence[Any]:
        """The rows; each has a `holder`."""

    @property
    def num_held(self) -> int:
        """Rows that sequences hold."""

    @property
    def held_blocks(self) -> int:
        """Blocks that sequences hold."""

    def acquire(self, content: NewContent, length: int, prefix_ready: bool = True) -> Acquired | None:
        """A row for a sequence of `length` positions; None if there is no room."""

    def extend(self, index: int, length: int) -> tuple[Any, ...] | None:
        """Room for positions up to `length`, with the operations that make it; None if there is no room."""

    def advance(self, index: int, length: int) -> None:
        """Positions below `length` are computed now."""

    def release(self, index: int, *, keep: bool = True) -> None:
        """The sequence has ended. `keep`: later sequences may reuse its positions."""

    def forget(self, prefix_id: str) -> None:
        """A prefix is unloaded: no later sequence may reuse its positions."""

    def forget_all(self) -> None:
        """No later sequence may reuse any positions."""

    def check_integrity(self) -> None:
        """Raises AssertionError if the pool's accounts contradict each other."""
