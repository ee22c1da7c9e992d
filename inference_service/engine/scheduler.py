"""Decides which sequences compute how many positions in the next step. Imports no torch.

waiting --schedule--> running --finish--> gone

A preempted sequence returns from running to waiting: its tokens stay, its keys and values are computed again.

A step never has more than `max_tokens_per_step` positions. They are divided between tenants by weight (`fair_share`).
Within a tenant every running decode gets one, and prefill gets the rest by rank (priority, then arrival), in chunks
(Sarathi, Agrawal et al. 2023). If the decodes don't all fit, they take turns, and prefill keeps a part. Candidates of a
score and soft prompts are computed in chunks, too.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from inference_service.engine.core import preemption
from inference_service.engine.core.fair_share import FairShares, split
from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.plan import Chunk, StepPlan, complete_chunk, is_decode, next_chunk, slots_needed
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.core.step_pace import StepPace
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.rows import BLOCK_TOKENS, RowPool, may_share

WORTH_WAITING_TOKENS = 32
"""An additional step costs about as much as this number of prefill positions."""
MAX_POSTPONED = 32
"""Waiting sequences postponed per step; a longer search would cost more time than it saves."""
PREFILL_PART = 4
"""One in this number of a tenant's positions is for prefill while prefill waits."""
MAX_SCORED_POSITIONS = 256
"""Positions of one step with logits for scores; 256 positions x 128k tokens x 4 bytes are 130 MB."""
MAX_STRETCH = 0.75
"""A step takes at most this part of the time that fair shares allow; the rest covers errors of the estimate."""
MAX_PASSED_OVER = 64
"""After this number of requests of other tenants, a request without room is not passed over any more."""


@dataclass
class Scheduler:
    """The queue, the running sequences and the plan of each step; pure bookkeeping over a pool of memory."""

    pool: RowPool | BlockPool
    max_tokens_per_step: int
    block_tokens: int = BLOCK_TOKENS
    """Positions per block of the pool."""
    prefix_ready: Callable[[str], bool] = lambda prefix_id: True
    """Whether a soft prompt's prefix KV is in memory; otherwise its first sequence computes it in its row."""
    waiting: list[RunningRequest] = field(default_factory=list)
    running: list[RunningRequest] = field(default_factory=list)
    num_preemptions: int = 0
    shares: FairShares = field(default_factory=FairShares)
    pace: StepPace = field(default_factory=StepPace)
    step: int = 0

    def add(self, sequence: RunningRequest) -> None:
        """Insert a sequence into the queue by rank."""
        insort(self.waiting, sequence, key=lambda s: s.rank)

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of all waiting sequences, candidates included."""
        return sum(sequence.cost for sequence in self.waiting)

    def schedule(self, now: float) -> StepPlan:
        """Plan one step. Updates the bookkeeping as if the step were done; only `complete` updates `num_computed`."""
        self.step += 1
        self._ops: list[Any] = []
        self._scorable = MAX_SCORED_POSITIONS
        self._weights = {s.tenant: s.weight for s in [*self.running, *self.waiting]}
        self.shares.update(self._weights, {s.tenant for s in self.waiting})
        grouped = [s for s in [*self.running, *self.waiting] if s.group]
        self._first_of_group = {s.group: s for s in sorted(grouped, key=lambda s: -s.arrival)}
        queues = self._queues()
        first = self._free_a_row(queues)
        parts = self._parts(queues)
        preempted_before = self.num_preemptions
        chunks: list[Chunk] = []
        for tenant, part in parts.items():
            for chunk in self._continue_running(tenant, part, queues.get(tenant, [])):
                chunks.append(chunk)
                parts[tenant] -= chunk.num_positions
        if self.num_preemptions == preempted_before:
            chunks += self._admit(queues, parts, first, now)
        kept = [chunk for chunk in chunks if chunk.sequence.row == chunk.row]
        kept.sort(key=lambda chunk: (bool(chunk.branch_lengths), chunk.num_positions, chunk.row))
        return StepPlan(tuple(kept), tuple(self._ops))

    def complete(self, plan: StepPlan) -> None:
        """Record that the plan's forward pass has written its keys and values."""
        for chunk in plan.chunks:
            complete_chunk(chunk)
            if chunk.sequence.row is not None:
                self.pool.advance(chunk.sequence.row, chunk.sequence.num_computed)

    def finish(self, sequence: RunningRequest, reason: FinishReason) -> None:
        """End a sequence and free its row, which keeps its content for reuse unless the sequence failed."""
        sequence.finish_reason = reason
        if sequence.row is not None:
            self.pool.release(sequence.row, keep=reason not in (FinishReason.ERROR, FinishReason.INTERNAL))
            sequence.row = None
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def expired(self, now: float) -> list[RunningRequest]:
        """Waiting and running sequences whose deadline has passed."""
        return [s for s in [*self.waiting, *self.running] if s.deadline is not None and s.deadline <= now]

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent. Call it at any step boundary."""
        self.pool.check_integrity()
        self.shares.check_integrity()
        if self.pool.num_held != len(self.running):
            raise IntegrityError(f"{self.pool.num_held} rows are held by {len(self.running)} running sequences")
        for sequence in self.running:
            if sequence.row is None or self.pool.rows[sequence.row].holder is not sequence:
                raise IntegrityError(f"{sequence.request_id} runs without its own row")
        for sequence in self.waiting:
            if sequence.row is not None or sequence.num_computed:
                raise IntegrityError(f"{sequence.request_id} waits and holds a row")
        for sequence in [*self.running, *self.waiting]:
            if sequence.num_computed > sequence.length:
                raise IntegrityError(
                    f"{sequence.request_id} has {sequence.num_computed} positions computed of {sequence.length}"
                )
            done = sequence.num_partial
            if done and tuple(sequence.tokens[sequence.num_input :]) != sequence.candidates[sequence.num_scored][:done]:
                raise IntegrityError(f"{sequence.request_id} continues from tokens that do not begin its candidate")
        if self.waiting != sorted(self.waiting, key=lambda s: s.rank):
            raise IntegrityError("the waiting queue is out of order")

    # ---- division of a step between tenants ----

    def _parts(self, queues: dict[str, list[RunningRequest]]) -> dict[str, int]:
        """Number of positions in this step for each tenant with work."""
        demands, decodes = dict.fromkeys(self._weights, 0), dict.fromkeys(self._weights, 0)
        for sequence in self.running:
            demands[sequence.tenant] += sequence.num_left
            decodes[sequence.tenant] += is_decode(sequence)
        for tenant, queue in queues.items():
            demands[tenant] += self._demand(queue)
        demands = {tenant: demand for tenant, demand in demands.items() if demand}
        total = self._limit(demands, decodes)
        return split(total, demands, self._weights, self.shares.served)

    def _demand(self, queue: list[RunningRequest]) -> int:
        """Number of positions that a tenant's waiting sequences can use now."""
        return sum(sequence.num_left for sequence in queue) if queue and self._has_room(queue[0]) else 0

    def _limit(self, demands: dict[str, int], decodes: dict[str, int]) -> int:
        """Maximum number of positions of this step.

        A step may take as long for a tenant's streams as they would take alone, divided by the tenant's share of the
        weights: as if the tenant had its own machine with that share of the speed. A tenant that is alone gets all of
        `max_tokens_per_step`; its inputs delay only its own streams.
        """
        total, limit = sum(self._weights[tenant] for tenant in demands), self.max_tokens_per_step
        if len(demands) > 1:
            for tenant in demands:
                if decodes[tenant]:
                    stretch = max(1.0, MAX_STRETCH * total / self._weights[tenant])
                    found = self.pace.positions_within(stretch * self.pace.seconds(decodes[tenant]))
                    limit = limit if found is None else min(limit, found)
        return max(limit, min(len(demands), self.max_tokens_per_step))

    def _continue_running(self, tenant: str, part: int, queue: list[RunningRequest]) -> Iterator[Chunk]:
        """Chunks of a tenant's running sequences within its part of the step.

        First decodes, those that waited longest first, then prefill by rank.
        """
        own = [s for s in self.running if s.tenant == tenant and not s.paused]
        decodes = sorted((s for s in own if is_decode(s)), key=lambda s: (s.planned_step, s.rank))
        prefills = sorted((s for s in own if not is_decode(s) and s.num_left), key=lambda s: s.rank)
        wanted = sum(s.num_left for s in prefills) + self._demand(queue)
        for_prefill = min(wanted, (part + self.step % PREFILL_PART) // PREFILL_PART)
        for sequence in [*decodes[: part - for_prefill], *prefills]:
            if part <= 0:
                break
            chunk = self._continue(sequence, part) if sequence.row is not None else None
            if chunk is not None:
                part -= chunk.num_positions
                yield chunk

    def _continue(self, sequence: RunningRequest, budget: int) -> Chunk | None:
        """The next chunk of a running sequence; preempts others if it lacks memory. None if it was preempted itself."""
        chunk = next_chunk(sequence, budget, self._scorable, self._slots(sequence))
        while chunk is not None and sequence.row is not None:
            ops = self.pool.extend(sequence.row, chunk.end)
            if ops is not None:
                self._ops.extend(ops)
                sequence.planned_step = self.step
                self._scorable -= chunk.num_logits if chunk.branches or chunk.num_input_logits else 0
                self.shares.charge(sequence.tenant, chunk.num_positions, sequence.weight)
                return chunk
            self.preempt(preemption.for_memory(self.running, self._tenant_shares()))
        return None

    # ---- start of waiting sequences ----

    def _queues(self) -> dict[str, list[RunningRequest]]:
        """Each tenant's waiting sequences by rank, without those that profit from waiting until this step ends."""
        queues: dict[str, list[RunningRequest]] = {}
        postponed = 0
        for sequence in self.waiting:
            if self._prefix_comes(sequence) or self._input_comes(sequence):
                continue
            if (
                self.pool.reuse
                and postponed < MAX_POSTPONED
                and any(self._computes_soon(other, sequence) for other in self.running)
            ):
                postponed += 1
                continue
            queues.setdefault(sequence.tenant, []).append(sequence)
        return queues

    def _computes_soon(self, other: RunningRequest, sequence: RunningRequest) -> bool:
        """Whether a running prefill will soon compute at least WORTH_WAITING_TOKENS of the sequence's beginning.

        Requests with one instruction that arrive together would each compute it. Instead, the first one does, and the
        others start from its row a step later. They only wait for running sequences, so the wait ends.
        """
        done = max(0, other.num_computed - other.num_virtual)
        wanted = done + WORTH_WAITING_TOKENS
        if wanted > sequence.num_reusable:
            return False
        if not may_share(other, sequence, across_tenants=self.pool.across_tenants):
            return False
        return other.hashes.begins_as(sequence.hashes, wanted)

    def _input_comes(self, sequence: RunningRequest) -> bool:
        """Whether another completion of the same input is computing the input, or will be the first to do so."""
        first = self._first_of_group.get(sequence.group, sequence)
        if first is sequence:
            return False
        if first.row is None:
            return first.started_at is None
        return first.num_computed < first.num_virtual + first.num_input

    def _prefix_comes(self, sequence: RunningRequest) -> bool:
        """Whether another running sequence is computing the soft prompt of this one."""
        prefix_id = sequence.prefix_id
        return (
            prefix_id is not None
            and not self.prefix_ready(prefix_id)
            and any(other.prefix_id == prefix_id and other.num_computed < other.num_virtual for other in self.running)
        )

    def _admit(
        self, queues: dict[str, list[RunningRequest]], parts: dict[str, int], first: RunningRequest | None, now: float
    ) -> Iterator[Chunk]:
        """Start waiting sequences: `first`, then repeatedly the next one of the tenant that was served least.

        Within a tenant, sequences start in the order of its queue.
        """
        passed: list[RunningRequest] = []
        preempted_before = self.num_preemptions
        while self.num_preemptions == preempted_before and not any(
            s.num_passed_over >= MAX_PASSED_OVER for s in passed
        ):
            due = [tenant for tenant in self.shares.order() if queues.get(tenant)]
            heads = [
                queues[tenant][0] for tenant in due if parts.get(tenant, 0) > 0 or not self._has_room(queues[tenant][0])
            ]
            if not heads:
                return
            sequence = first if first is not None and first in heads else heads[0]
            if not self._start(sequence, now):
                passed.append(sequence)
                del queues[sequence.tenant]
                continue
            queues[sequence.tenant].remove(sequence)
            for other in passed:
                other.num_passed_over += 1
            chunk = self._continue(sequence, parts[sequence.tenant])
            if chunk is not None:
                parts[sequence.tenant] -= chunk.num_positions
                yield chunk

    def _slots(self, sequence: RunningRequest) -> int:
        return slots_needed(sequence, self.pool.max_length, self.max_tokens_per_step)

    def _has_room(self, sequence: RunningRequest) -> bool:
        """Whether there are a row, memory for the input, and one more block for each running sequence."""
        if self.pool.num_held >= len(self.pool.rows):
            return False
        idle = self.pool.max_blocks - self.pool.held_blocks
        return not self.running or -(-self._slots(sequence) // self.block_tokens) + len(self.running) <= idle

    def _start(self, sequence: RunningRequest, now: float) -> bool:
        if not self._has_room(sequence):
            return False
        ready = sequence.prefix_id is None or (not sequence.is_load and self.prefix_ready(sequence.prefix_id))
        acquired = self.pool.acquire(sequence, self._slots(sequence), ready)
        if acquired is None:
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._ops.extend(acquired.ops)
        sequence.row, sequence.num_computed = acquired.row, acquired.num_computed
        sequence.started_step, sequence.num_passed_over = self.step, 0
        if sequence.started_at is None:
            sequence.started_at = now
            sequence.cached_tokens = max(0, acquired.num_computed - sequence.num_virtual)
        return True

    # ---- preemption ----

    def _free_a_row(self, queues: dict[str, list[RunningRequest]]) -> RunningRequest | None:
        """Preempt at most one sequence for an entitled waiting one without room, which then starts in this step."""
        for head in [queues[tenant][0] for tenant in self.shares.order() if tenant in queues]:
            if not self._has_room(head):
                victim = preemption.for_waiting(head, self.running, self._tenant_shares(), self._part, self.step)
                if victim is not None:
                    self.preempt(victim)
                    return head
        return None

    def _tenant_shares(self) -> preemption.TenantShares:
        return preemption.TenantShares.of(self.running, self._weights, len(self.pool.rows), self._memory_part)

    def _memory_part(self, sequence: RunningRequest) -> float:
        return -(-sequence.length // self.block_tokens) / self.pool.max_blocks

    def _part(self, sequence: RunningRequest) -> float:
        return max(1 / len(self.pool.rows), self._memory_part(sequence))

    def preempt(self, victim: RunningRequest, *, keep: bool = True) -> None:
        """Return a running sequence to the queue with its tokens. Without `keep`, its row's content is discarded."""
        if victim.row is None:
            raise IntegrityError(f"{victim.request_id} is preempted without running")
        self.pool.release(victim.row, keep=keep)
        self.running.remove(victim)
        victim.row, victim.num_computed = None, 0
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.add(victim)
