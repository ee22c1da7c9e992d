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
        ...

    @property
    def num_held(self) -> int: ...

    @property
    def held_blocks(self) -> int: ...

    def acquire(self, content: NewContent, length: int, prefix_ready: bool = True) -> Acquired | None: ...

    def extend(self, index: int, length: int) -> tuple[Any, ...] | None: ...

    def advance(self, index: int, length: int) -> None: ...

    def release(self, index: int, *, keep: bool = True) -> None: ...

    def forget(self, prefix_id: str) -> None: ...

    def forget_all(self) -> None: ...

    def check_integrity(self) -> None: ...
