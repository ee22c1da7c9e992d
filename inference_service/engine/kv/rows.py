"""Bookkeeping of a row cache: holders of rows, committed memory, and reuse after requests end. Knows no tensors.

A row has room for the longest sequence, but only touched blocks take memory (see `kv_cache`). A released row keeps its
content until its memory is needed: the next input with the same beginning under the same prompt starts from it (as
llama.cpp reuses slots; SGLang's radix tree does it for paged caches).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.token_hashes import HashedTokens, TokenHashes

BLOCK_TOKENS = 32
MIN_SHARED_TOKENS = 8
"""With fewer common tokens, computing them is cheaper than copying."""


class Content(Protocol):
    """The content of a row: a running sequence, or the remains of an ended one."""

    tenant: str
    prefix_id: str | None
    num_virtual: int
    tokens: list[int]
    group: str
    """The completions of one input have the same group; empty: it is the only one."""

    @property
    def hashes(self) -> TokenHashes:
        """Hashes of the beginnings of `tokens`."""


class NewContent(Content, Protocol):
    """A sequence that starts."""

    @property
    def num_reusable(self) -> int:
        """The number of its first tokens whose keys and values may come from another row."""


@dataclass
class Remains(HashedTokens):
    """The content of a released row."""

    tenant: str
    prefix_id: str | None
    num_virtual: int
    tokens: list[int]
    group: str = ""


@dataclass
class Row:
    """A row's holder or remains, and its memory."""

    index: int
    holder: Content | None = None
    remains: Remains | None = None
    length: int = 0
    """Slots with valid keys and values, virtual tokens included."""
    blocks: int = 0
    """Blocks of memory touched since the row was last trimmed."""
    last_used: int = 0
    dirty: bool = False
    """Whether the last holder failed: its values may be not finite and reach the next holder through its masks."""

    @property
    def content(self) -> Content | None:
        """What the row holds: its holder, or the remains of a released one."""
        return self.holder or self.remains


@dataclass(frozen=True)
class Trim:
    """Release the row's memory from slot `first` on."""

    row: int
    first: int = 0


@dataclass(frozen=True)
class CopyPrefix:
    """Write the prefix KV into the row's first slots."""

    prefix_id: str
    row: int


@dataclass(frozen=True)
class CopyRow:
    """Copy the first `length` slots of another row, so that a common beginning is not computed again."""

    source: int
    row: int
    length: int


RowOp = Trim | CopyPrefix | CopyRow


@dataclass(frozen=True)
class Acquired:
    """A row assigned to a sequence, and the operations that prepare it."""

    row: int
    num_computed: int
    """Positions that need no computation after `ops`, virtual ones included."""
    ops: tuple[RowOp, ...]


def may_share(one: Content, other: Content, *, across_tenants: bool) -> bool:
    """Whether one sequence may start from the keys and values of the other.

    The tenant matters because the number of reused tokens, and the time they save, reveal an earlier input to a caller
    that guesses it token by token (Wu et al. 2025, "I Know What You Asked").
    """
    return one.prefix_id == other.prefix_id and (across_tenants or one.tenant == other.tenant)


def least_shared(content: Content, other: Content, *, reuse: bool, across_tenants: bool) -> int | None:
    """The least number of common tokens with which `content` may start from `other`; None: it may not.

    The completions of one input always share it.
    """
    if content.group and content.group == other.group:
        return 1
    return MIN_SHARED_TOKENS if reuse and may_share(content, other, across_tenants=across_tenants) else None


def blocks_for(length: int) -> int:
    """Blocks that `length` slots take."""
    return -(-length // BLOCK_TOKENS)


@dataclass
class RowPool:
    """Assigns rows to sequences and plans the operations that fill them."""

    num_rows: int
    max_blocks: int
    max_length: int
    """Slots of one row."""
    reuse: bool = True
    across_tenants: bool = False
    """Whether inputs may reuse rows of other tenants."""
    rows: list[Row] = field(init=False)
    _clock: int = 0

    def __post_init__(self) -> None:
        self.rows = [Row(index) for index in range(self.num_rows)]

    @property
    def num_held(self) -> int:
        """Rows that a sequence holds."""
        return sum(row.holder is not None for row in self.rows)

    @property
    def held_blocks(self) -> int:
        """Blocks of running sequences."""
        return sum(row.blocks for row in self.rows if row.holder is not None)

    @property
    def committed_blocks(self) -> int:
        """Blocks of all rows, held or kept for reuse."""
        return sum(row.blocks for row in self.rows)

    def acquire(self, content: NewContent, length: int, prefix_ready: bool = True) -> Acquired | None:
        """Assign a row with memory for `length` slots, or return None. Reuses a row with the same beginning.

        The last token is never reused: it is computed because its logits are needed. Without `prefix_ready` there is no
        prefix KV to copy: the virtual positions are computed.
        """
        source, shared = self._best_match(content)
        row = self._choose_row(source, content.num_virtual + shared)
        if row is None:
            return None
        in_place = source is row
        ops: list[RowOp] = []
        row.length = content.num_virtual + shared if in_place else 0
        row.holder, row.remains = content, None
        if row.blocks > blocks_for(length):  # a former holder was longer: release its memory
            row.blocks = blocks_for(length)
            ops.append(Trim(row.index, row.blocks * BLOCK_TOKENS))
        trims = self._reserve(row, blocks_for(length), keep=None if in_place else source)
        if trims is None:
            row.holder, row.length = None, 0
            return None
        ops.extend(trims)
        if row.dirty:
            ops.append(Trim(row.index, 0))
            row.dirty = False
        computed = content.num_virtual + shared
        if source is not None and not in_place:
            ops.append(CopyRow(source.index, row.index, computed))
        elif source is None and content.prefix_id is not None:
            if prefix_ready:
                ops.append(CopyPrefix(content.prefix_id, row.index))
            else:
                computed = 0
        row.length = computed
        self._touch(row)
        return Acquired(row.index, computed, tuple(ops))

    def extend(self, index: int, length: int) -> tuple[RowOp, ...] | None:
        """Extend a held row to `length` slots: the trims that free the memory, or None if only a preemption could."""
        trims = self._reserve(self.rows[index], blocks_for(length), keep=None)
        return None if trims is None else tuple(trims)

    def advance(self, index: int, length: int) -> None:
        """Record that the slots below `length` are valid."""
        self.rows[index].length = length
        self._touch(self.rows[index])

    def release(self, index: int, *, keep: bool = True) -> None:
        """Free a row. With `keep` it keeps its content for reuse; otherwise it is cleared for the next holder."""
        row = self.rows[index]
        content = row.holder
        row.holder = None
        if content is None:
            raise IntegrityError(f"row {index} is released twice")
        row.dirty = not keep
        if keep and self.reuse and row.length > content.num_virtual:
            tokens = content.tokens[: row.length - content.num_virtual]
            row.remains = Remains(content.tenant, content.prefix_id, content.num_virtual, tokens)
        else:
            row.length = 0

    def forget(self, prefix_id: str) -> None:
        """Drop the content of released rows under a prefix that is being unloaded."""
        for row in self.rows:
            if row.remains is not None and row.remains.prefix_id == prefix_id:
                row.remains, row.length = None, 0

    def forget_all(self) -> None:
        """Drop the content of all released rows, after a step failed and may have written anything."""
        for row in self.rows:
            if row.remains is not None:
                row.remains, row.length = None, 0

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent. Call it at any step boundary."""
        if self.committed_blocks > self.max_blocks:
            raise IntegrityError(f"{self.committed_blocks} blocks are committed of {self.max_blocks}")
        for row in self.rows:
            if row.holder is not None and row.remains is not None:
                raise IntegrityError(f"row {row.index} is held and free at once")
            if blocks_for(row.length) > row.blocks:
                raise IntegrityError(f"row {row.index} holds {row.length} slots in {row.blocks} blocks")
            if row.content is None and row.length:
                raise IntegrityError(f"row {row.index} has slots but no content")

    def _best_match(self, content: NewContent) -> tuple[Row | None, int]:
        """(row with the longest common beginning, number of common tokens); (None, 0) if no row has enough."""
        best: Row | None = None
        most, limit = 0, content.num_reusable
        for row in self.rows:
            other = row.content
            if other is None or row.length <= other.num_virtual + most:
                continue
            least = least_shared(content, other, reuse=self.reuse, across_tenants=self.across_tenants)
            if least is None:
                continue
            shared = content.hashes.common_length(other.hashes, min(limit, row.length - other.num_virtual))
            if shared > most and shared >= least:
                best, most = row, shared
        if best is None or best.content is None or best.content.tokens[:most] != content.tokens[:most]:
            return None, 0  # no match, or different tokens with the same hash
        return best, most

    def _choose_row(self, source: Row | None, shared_length: int) -> Row | None:
        """Choose the source if most of it is shared, else an empty row, else the least recently used released row."""
        free = [row for row in self.rows if row.holder is None]
        if source is not None and source.holder is None and (2 * shared_length >= source.length or len(free) == 1):
            return source
        candidates = [row for row in free if row is not source]
        if not candidates:
            return None
        return min(
            candidates,
            key=lambda row: (row.remains is not None, row.last_used if row.remains is not None else row.index),
        )

    def _reserve(self, row: Row, blocks: int, keep: Row | None) -> list[RowOp] | None:
        missing = self.committed_blocks + max(0, blocks - row.blocks) - self.max_blocks
        trims: list[RowOp] = []
        if missing > 0:
            idle = sorted(
                (r for r in self.rows if r.holder is None and r is not keep and r.blocks), key=lambda r: r.last_used
            )
            if sum(r.blocks for r in idle) < missing:
                return None
            for victim in idle:
                missing -= victim.blocks
                victim.blocks, victim.length, victim.remains, victim.dirty = 0, 0, None, False
                trims.append(Trim(victim.index))
                if missing <= 0:
                    break
        row.blocks = max(row.blocks, blocks)
        return trims

    def _touch(self, row: Row) -> None:
        self._clock += 1
        row.last_used = self._clock
