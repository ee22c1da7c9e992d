"""Who computes what in the next step. Imports no torch; times and tokens come in, a plan of plain data goes out.

waiting --schedule--> running --finish--> gone
   ^                     |
   +------ preempt ------+      (its tokens stay, its keys and values are computed again)

A step gives every running decode one position, then fills what is left of the token budget with prefill, by rank (priority, then
arrival), in chunks (Sarathi, Agrawal et al. 2023): a long input never stalls running streams. When the KV memory is spent, the lowest
rank gives way (vLLM's preemption by recomputation).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference_service.engine.request import FinishReason
from inference_service.engine.rows import BLOCK_TOKENS, Acquired, Content, IntegrityError, may_share
from inference_service.engine.sequence import Sequence

WORTH_WAITING_TOKENS = 32
"""A step more costs about as much as so many positions of prefill."""
MAX_POSTPONED = 32
"""Looking further down the queue would cost more time than it saves."""


@dataclass(frozen=True)
class Chunk:
    """Positions `[start, start + count)` of one sequence to compute. `branches` are candidates that each continue from the last of them.

    A branch's last token is only scored, never fed, so a branch takes one position less than it has tokens.
    """

    sequence: Sequence
    row: int
    start: int
    count: int
    samples: bool
    """Whether the last position's logits choose the next token."""
    branches: tuple[tuple[int, ...], ...] = ()

    @property
    def num_positions(self) -> int:
        return self.count + sum(len(branch) - 1 for branch in self.branches)

    @property
    def end(self) -> int:
        """One past the last slot that is written."""
        return self.start + self.num_positions


@dataclass(frozen=True)
class StepPlan:
    """`ops` are done in order, then all chunks in one forward pass; chunks of one position come first, by row.

    What an op is, is between the pool that plans it and the runner that does it; each has the `row` that it is for.
    """

    chunks: tuple[Chunk, ...]
    ops: tuple[Any, ...]

    @property
    def num_positions(self) -> int:
        return sum(chunk.num_positions for chunk in self.chunks)


class Pool(Protocol):
    """The books of a KV cache: `rows.RowPool`, or `blocks.BlockPool` for a paged one."""

    max_blocks: int
    max_length: int
    reuse: bool
    across_tenants: bool

    @property
    def rows(self) -> Items[Any]:
        """Each has a `holder`."""
        ...

    @property
    def num_held(self) -> int: ...

    @property
    def held_blocks(self) -> int: ...

    def acquire(self, content: Content, length: int) -> Acquired | None: ...

    def extend(self, index: int, length: int) -> tuple[Any, ...] | None: ...

    def advance(self, index: int, length: int) -> None: ...

    def release(self, index: int, *, keep: bool = True) -> None: ...

    def forget(self, prefix_id: str) -> None: ...

    def forget_all(self) -> None: ...

    def check_integrity(self) -> None: ...


@dataclass
class Scheduler:
    pool: Pool
    max_tokens_per_step: int
    block_tokens: int = BLOCK_TOKENS
    """Of the pool's blocks."""
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    num_preemptions: int = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: s.rank)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def waiting_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.waiting)

    def schedule(self, now: float) -> StepPlan:
        """Plan one step. Changes the books as if the step were done, except `num_computed`: `complete` does that."""
        self._ops: list[Any] = []
        budget, preempted_before = self.max_tokens_per_step, self.num_preemptions
        chunks: list[Chunk] = []
        decodes = [s for s in self.running if s.num_uncomputed == 1 and not s.is_score]
        prefills = [s for s in self.running if s.num_uncomputed > 1 or s.is_score]
        for sequence in [*decodes, *prefills]:
            if budget <= 0:
                break
            chunk = self._continue(sequence, budget)
            if chunk is not None:
                chunks.append(chunk)
                budget -= chunk.num_positions
        for sequence in self._ready():
            if budget <= 0 or self.num_preemptions > preempted_before:
                break
            chunk = self._start(sequence, budget, now)
            if chunk is None:
                break
            chunks.append(chunk)
            budget -= chunk.num_positions
        alive = [chunk for chunk in chunks if chunk.sequence.row == chunk.row]
        alive.sort(key=lambda chunk: (chunk.num_positions > 1, chunk.row))
        return StepPlan(tuple(alive), tuple(self._ops))

    def complete(self, plan: StepPlan) -> None:
        """The plan's forward pass is done: its keys and values are in the rows."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.start + chunk.count
            sequence.num_scored += len(chunk.branches)
            if sequence.row is not None:
                self.pool.advance(sequence.row, sequence.num_computed)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Free all that the sequence holds, wherever it is. Its row keeps its content for reuse unless the sequence failed."""
        sequence.finish_reason = reason
        if sequence.row is not None:
            self.pool.release(sequence.row, keep=reason not in (FinishReason.ERROR, FinishReason.INTERNAL))
            sequence.row = None
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed, waiting or running."""
        return [s for s in [*self.waiting, *self.running] if s.deadline is not None and s.deadline <= now]

    def check_integrity(self) -> None:
        self.pool.check_integrity()
        if self.pool.num_held != len(self.running):
            raise IntegrityError(f"{self.pool.num_held} rows are held by {len(self.running)} running sequences")
        for sequence in self.running:
            if sequence.row is None or self.pool.rows[sequence.row].holder is not sequence:
                raise IntegrityError(f"{sequence.request_id} runs without a row of its own")
        for sequence in self.waiting:
            if sequence.row is not None or sequence.num_computed:
                raise IntegrityError(f"{sequence.request_id} waits and holds a row")
        if self.waiting != sorted(self.waiting, key=lambda s: s.rank):
            raise IntegrityError("the waiting queue is out of order")

    def _continue(self, sequence: Sequence, budget: int) -> Chunk | None:
        """The next chunk of a running sequence, preempting lower ranks for its memory. None if it had to give way itself."""
        while sequence.row is not None:
            chunk = self._chunk(sequence, sequence.row, sequence.num_computed, budget)
            ops = self.pool.extend(sequence.row, chunk.end)
            if ops is not None:
                self._ops.extend(ops)
                return chunk
            self.preempt(max(self.running, key=lambda s: s.rank))
        return None

    def _ready(self) -> Iterator[Sequence]:
        """Waiting sequences by rank, without those that find much of their input computed if they wait for this step to end.

        Requests with one instruction that arrive together would each compute it; so the first does, and the others start from its row
        a step later. Whoever they wait for runs, so they don't wait for ever.
        """
        postponed = 0
        for sequence in list(self.waiting):
            if self.pool.reuse and postponed < MAX_POSTPONED and any(self._computes_soon(other, sequence) for other in self.running):
                postponed += 1
            else:
                yield sequence

    def _computes_soon(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether a running prefill is about to compute at least WORTH_WAITING_TOKENS of what the sequence begins with."""
        done = max(0, other.num_computed - other.num_virtual)
        wanted = done + WORTH_WAITING_TOKENS
        if not may_share(other, sequence, across_tenants=self.pool.across_tenants):
            return False
        if other.num_uncomputed < WORTH_WAITING_TOKENS or wanted >= len(sequence.tokens):
            return False
        return other.tokens[:wanted] == sequence.tokens[:wanted]

    def _start(self, sequence: Sequence, budget: int, now: float) -> Chunk | None:
        """Admit a waiting sequence if a row and memory for its whole input, and one block more for each running sequence, are there."""
        headroom = len(self.running)
        idle = self.pool.max_blocks - self.pool.held_blocks
        if self.running and -(-sequence.length // self.block_tokens) + headroom > idle:
            return None
        acquired = self.pool.acquire(sequence, sequence.length)
        if acquired is None:
            return None
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._ops.extend(acquired.ops)
        sequence.row, sequence.num_computed = acquired.row, acquired.num_computed
        if sequence.started_at is None:
            sequence.started_at = now
            sequence.cached_tokens = acquired.num_computed - sequence.num_virtual
        return self._continue(sequence, budget)

    def _chunk(self, sequence: Sequence, row: int, start: int, budget: int) -> Chunk:
        """As much of the sequence as the budget takes; of a score, whole candidates once the input fits, at least one."""
        left = sequence.length - start
        if not sequence.is_score:
            count = min(left, budget)
            return Chunk(sequence, row, start, count, samples=count == left)
        # The input's last token is computed again beside every group of candidates: its logits score their first tokens.
        if left == 0:
            start, left = sequence.length - 1, 1
        if left > budget or (left == budget and left > 1):
            return Chunk(sequence, row, start, min(budget, left - 1), samples=False)
        branches: list[tuple[int, ...]] = []
        room = min(budget - left, self.pool.max_length - sequence.length)
        for candidate in sequence.candidates[sequence.num_scored :]:
            if branches and len(candidate) - 1 > room:
                break
            branches.append(candidate)
            room -= len(candidate) - 1
        return Chunk(sequence, row, start, left, samples=False, branches=tuple(branches))

    def preempt(self, victim: Sequence, *, keep: bool = True) -> None:
        """Back to the queue with its tokens. Without `keep`, what its row holds is not to be trusted."""
        if victim.row is None:
            raise IntegrityError(f"{victim.request_id} is preempted without running")
        self.pool.release(victim.row, keep=keep)
        self.running.remove(victim)
        victim.row, victim.num_computed = None, 0
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.add(victim)
