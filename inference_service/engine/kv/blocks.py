"""Bookkeeping of a paged KV cache: holders of blocks, shared blocks, and reuse after requests end. Knows no tensors.

A sequence's keys and values are in blocks of fixed size, listed in its row's block table (PagedAttention, Kwon et al.
2023). Blocks have reference counts: sequences with a common beginning share its whole blocks (the soft prompt's, then
the text's), and only the block in which they diverge is copied. `BlockPool` is for a paged cache what `rows.RowPool` is
for a row cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.token_hashes import HashedTokens
from inference_service.engine.kv.rows import Acquired, Content, NewContent, least_shared

NULL_BLOCK = 0
"""The padding of block tables and batches points to this block; no sequence holds it."""
REMAINS_PER_ROW = 4
"""Finished sequences to remember per row; each start of a request searches all of them."""


@dataclass(frozen=True)
class SetTable:
    """Set the row's block table to `blocks` from entry `first` on. `source` are the blocks that others have written."""

    row: int
    first: int
    blocks: tuple[int, ...]
    source: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ClearBlocks:
    """Zero blocks of a failed sequence: values that are not finite would reach the next holder through its masks."""

    row: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class CopyBlock:
    """Copy a block of which only the beginning is shared."""

    row: int
    source: int
    block: int


@dataclass(frozen=True)
class WritePrefix:
    """Write the prefix KV into the row's blocks, from slot `start` on."""

    prefix_id: str
    row: int
    start: int


BlockOp = SetTable | ClearBlocks | CopyBlock | WritePrefix


@dataclass
class BlockRow:
    """A row's holder and its block table."""

    index: int
    holder: Content | None = None
    blocks: list[int] = field(default_factory=list)
    length: int = 0
    """Slots with valid keys and values, virtual tokens included."""


@dataclass(eq=False)
class Cached(HashedTokens):
    """Blocks kept for reuse: of a released sequence, or (without tokens) of a soft prompt."""

    tenant: str
    prefix_id: str | None
    num_virtual: int
    tokens: list[int]
    blocks: list[int]
    length: int
    last_used: int
    group: str = ""


@dataclass
class BlockPool:
    """Assigns rows and blocks to sequences and plans the operations that fill them."""

    num_rows: int
    max_blocks: int
    max_length: int
    block_tokens: int
    reuse: bool = True
    """Keep blocks of finished requests for inputs with the same beginning. Blocks of soft prompts are always shared."""
    across_tenants: bool = False
    """Whether inputs may reuse blocks of other tenants."""
    rows: list[BlockRow] = field(init=False)
    held_blocks: int = field(default=0, init=False)
    """Blocks of running sequences, each counted once."""

    def __post_init__(self) -> None:
        self.rows = [BlockRow(index) for index in range(self.num_rows)]
        self._free = list(range(self.max_blocks, NULL_BLOCK, -1))
        self._references = [0] * (self.max_blocks + 1)
        self._held = [0] * (self.max_blocks + 1)
        """References from rows only."""
        self._dirty: set[int] = set()
        self._remains: list[Cached] = []
        self._prefixes: dict[str, Cached] = {}
        self._clock = 0

    @property
    def num_held(self) -> int:
        """Rows that a sequence holds."""
        return sum(row.holder is not None for row in self.rows)

    @property
    def committed_blocks(self) -> int:
        """Blocks in use, held or kept for reuse."""
        return self.max_blocks - len(self._free)

    def blocks_for(self, length: int) -> int:
        """Blocks that `length` slots take."""
        return -(-length // self.block_tokens)

    def acquire(self, content: NewContent, length: int, prefix_ready: bool = True) -> Acquired | None:
        """Assign a row with memory for `length` slots, or return None. Shares blocks with a common beginning.

        The last token is never shared: it is computed because its logits are needed. Without `prefix_ready` there is no
        prefix KV to write: virtual positions that are not shared are computed.
        """
        row = next((row for row in self.rows if row.holder is None), None)
        if row is None:
            return None
        blocks, shared_slots = self._best_match(content)
        num_whole = shared_slots // self.block_tokens
        partial = blocks[num_whole] if shared_slots % self.block_tokens else None
        row.holder, row.blocks = content, list(blocks[:num_whole])
        self._refer(row.blocks, held=True)
        fresh = self._take(self.blocks_for(length) - num_whole)
        if fresh is None:
            self._drop_row(row, keep=True)
            return None
        row.blocks += fresh
        self._refer(fresh, held=True)
        ops: list[BlockOp] = [
            SetTable(row.index, 0, tuple(row.blocks), tuple(row.blocks[:num_whole]) or None),
            *self._clear(row, fresh),
        ]
        if partial is not None:
            ops.append(CopyBlock(row.index, partial, row.blocks[num_whole]))
        row.length = shared_slots
        if prefix_ready and shared_slots < content.num_virtual and content.prefix_id is not None:
            ops.append(WritePrefix(content.prefix_id, row.index, shared_slots))
            self.advance(row.index, content.num_virtual)
        return Acquired(row.index, row.length, tuple(ops))  # type: ignore[arg-type]  # ops belong to the pool's own runner

    def extend(self, index: int, length: int) -> tuple[BlockOp, ...] | None:
        """Extend a held row to `length` slots. None if only a preemption could free the memory."""
        row = self.rows[index]
        missing = self.blocks_for(length) - len(row.blocks)
        if missing <= 0:
            return ()
        fresh = self._take(missing)
        if fresh is None:
            return None
        first = len(row.blocks)
        row.blocks += fresh
        self._refer(fresh, held=True)
        return SetTable(index, first, tuple(fresh)), *self._clear(row, fresh)

    def advance(self, index: int, length: int) -> None:
        """Record that the slots below `length` are valid."""
        row = self.rows[index]
        row.length = length
        content = row.holder
        if content is not None and content.prefix_id is not None and length >= content.num_virtual:
            self._share_prefix(content.prefix_id, content.num_virtual, row)

    def release(self, index: int, *, keep: bool = True) -> None:
        """Free a row. With `keep` its blocks stay for reuse; otherwise they are cleared before their next use."""
        row = self.rows[index]
        content, length = row.holder, row.length
        if content is None:
            raise IntegrityError(f"row {index} is released twice")
        blocks = row.blocks[: self.blocks_for(length)]
        if keep and self.reuse and length > content.num_virtual:
            self._refer(blocks, held=False)
            tokens = content.tokens[: length - content.num_virtual]
            kept = Cached(
                content.tenant, content.prefix_id, content.num_virtual, list(tokens), blocks, length, self._tick()
            )
            self._remains.append(kept)
        self._drop_row(row, keep=keep)
        while len(self._remains) > REMAINS_PER_ROW * self.num_rows:
            self._evict(min(self._remains, key=lambda cached: cached.last_used))

    def forget(self, prefix_id: str) -> None:
        """Drop all blocks kept under a prefix that is being unloaded."""
        for cached in self._cached():
            if cached.prefix_id == prefix_id:
                self._evict(cached)

    def forget_all(self) -> None:
        """Drop all blocks kept for reuse, after a step failed and may have written anything."""
        for cached in self._cached():
            self._evict(cached)
        self._dirty.update(self._free)

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent. Call it at any step boundary."""
        held = [0] * (self.max_blocks + 1)
        for row in self.rows:
            if row.holder is None and (row.blocks or row.length):
                raise IntegrityError(f"row {row.index} has blocks but no holder")
            if self.blocks_for(row.length) > len(row.blocks):
                raise IntegrityError(f"row {row.index} holds {row.length} slots in {len(row.blocks)} blocks")
            for block in row.blocks:
                held[block] += 1
        counted = list(held)
        for cached in self._cached():
            if len(cached.blocks) < self.blocks_for(cached.length):
                raise IntegrityError(f"{cached.length} slots are remembered in {len(cached.blocks)} blocks")
            for block in cached.blocks:
                counted[block] += 1
        num_held = sum(count > 0 for count in held)
        if counted != self._references or held != self._held or num_held != self.held_blocks:
            raise IntegrityError("the reference counts of blocks are wrong")
        free = set(self._free)
        used = {block for block, count in enumerate(counted) if count}
        if len(free) != len(self._free) or free & used or free | used != set(range(1, self.max_blocks + 1)):
            raise IntegrityError("a block is lost, free twice, or free and used at once")

    def _best_match(self, content: NewContent) -> tuple[Sequence[int], int]:
        """(blocks with the longest common beginning, number of slots that are shared)."""
        best: tuple[Sequence[int], int] = ((), 0)
        prefix = None if content.prefix_id is None else self._prefixes.get(content.prefix_id)
        if prefix is not None:
            prefix.last_used = self._tick()
            best = (prefix.blocks, prefix.length)
        most, limit = 0, content.num_reusable
        source: tuple[Content, BlockRow | Cached] | None = None
        places: list[tuple[Content, BlockRow | Cached]] = [(cached, cached) for cached in self._remains]
        for other, place in [*((row.holder, row) for row in self.rows if row.holder is not None), *places]:
            valid = place.length - other.num_virtual
            least = least_shared(content, other, reuse=self.reuse, across_tenants=self.across_tenants)
            if least is None or valid <= most:
                continue
            shared = content.hashes.common_length(other.hashes, min(limit, valid))
            if shared > most and shared >= least:
                most, source = shared, (other, place)
        if source is None or source[0].tokens[:most] != content.tokens[:most]:
            return best  # no match, or different tokens with the same hash
        if isinstance(source[1], Cached):
            source[1].last_used = self._tick()
        return source[1].blocks, content.num_virtual + most

    def _share_prefix(self, prefix_id: str, num_virtual: int, row: BlockRow) -> None:
        """Remember the whole blocks of virtual tokens: they are the same for all sequences of the prefix."""
        whole = num_virtual // self.block_tokens
        if whole and prefix_id not in self._prefixes:
            blocks = row.blocks[:whole]
            self._refer(blocks, held=False)
            self._prefixes[prefix_id] = Cached(
                "", prefix_id, num_virtual, [], blocks, whole * self.block_tokens, self._tick()
            )

    def _take(self, count: int) -> list[int] | None:
        """Take free blocks, evicting the least recently used kept ones as needed. None if there are not enough."""
        while len(self._free) < count:
            cached = self._cached()
            if not cached:
                return None
            self._evict(min(cached, key=lambda one: one.last_used))
        return [self._free.pop() for _ in range(count)]

    def _clear(self, row: BlockRow, blocks: Iterable[int]) -> tuple[ClearBlocks, ...]:
        dirty = tuple(block for block in blocks if block in self._dirty)
        self._dirty.difference_update(dirty)
        return (ClearBlocks(row.index, dirty),) if dirty else ()

    def _cached(self) -> list[Cached]:
        return [*self._remains, *self._prefixes.values()]

    def _evict(self, cached: Cached) -> None:
        if cached in self._remains:
            self._remains.remove(cached)
        elif cached.prefix_id is not None:
            del self._prefixes[cached.prefix_id]
        self._unrefer(cached.blocks, held=False)

    def _drop_row(self, row: BlockRow, *, keep: bool) -> None:
        if not keep:
            self._dirty.update(block for block in row.blocks if self._references[block] == 1)
        self._unrefer(row.blocks, held=True)
        row.holder, row.blocks, row.length = None, [], 0

    def _refer(self, blocks: Iterable[int], *, held: bool) -> None:
        for block in blocks:
            self._references[block] += 1
            if held:
                self._held[block] += 1
                self.held_blocks += self._held[block] == 1

    def _unrefer(self, blocks: Iterable[int], *, held: bool) -> None:
        for block in blocks:
            self._references[block] -= 1
            if held:
                self._held[block] -= 1
                self.held_blocks -= self._held[block] == 0
            if not self._references[block]:
                self._free.append(block)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
