"""The books of a paged cache with no tensors: a model of what the blocks hold, run beside the pool, finds what the
counts would not.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.blocks import BlockPool, ClearBlocks, CopyBlock, SetTable, WritePrefix
from inference_service.engine.scheduler import Scheduler
from tests.inference_service.engine.scheduling import complete, sequence

BLOCK = 8


def pool(num_rows: int = 4, max_blocks: int = 32, reuse: bool = True) -> BlockPool:
    return BlockPool(num_rows, max_blocks, max_blocks * BLOCK, BLOCK, reuse)


def start(subject: BlockPool, item: RunningRequest) -> list[object]:
    acquired = subject.acquire(item, item.length)
    assert acquired is not None
    item.row = acquired.row
    subject.advance(acquired.row, item.length)
    subject.check_integrity()
    return list(acquired.ops)


def test_whole_blocks_of_a_prompt_are_written_once_and_shared() -> None:
    subject = pool()
    first, second = sequence(1, 3, num_virtual=20), sequence(2, 3, num_virtual=20)
    assert [op.start for op in start(subject, first) if isinstance(op, WritePrefix)] == [0]
    assert [op.start for op in start(subject, second) if isinstance(op, WritePrefix)] == [16], (
        "two blocks are there, the third is not whole"
    )
    assert subject.rows[0].blocks[:2] == subject.rows[1].blocks[:2]
    assert subject.held_blocks == 4
    for item in (first, second):
        assert item.row is not None
        subject.release(item.row, keep=False)
    assert subject.held_blocks == 0
    third = sequence(3, 3, num_virtual=20)
    assert [op.start for op in start(subject, third) if isinstance(op, WritePrefix)] == [16]
    subject.forget("p")
    assert third.row is not None
    subject.release(third.row, keep=False)
    assert subject.committed_blocks == 0


def test_the_block_where_inputs_part_is_copied() -> None:
    subject = pool()
    first, second = sequence(1, 30), sequence(2, 30)
    second.tokens[:19] = first.tokens[:19]
    start(subject, first)
    ops = start(subject, second)
    copies = [op for op in ops if isinstance(op, CopyBlock)]
    assert [(copy.source, copy.block) for copy in copies] == [(subject.rows[0].blocks[2], subject.rows[1].blocks[2])]
    assert subject.rows[0].blocks[:2] == subject.rows[1].blocks[:2]


def test_blocks_of_a_failed_sequence_are_cleared_before_they_are_reused() -> None:
    subject = pool(max_blocks=4)
    bad = sequence(1, 30)
    start(subject, bad)
    assert bad.row is not None
    blocks = set(subject.rows[bad.row].blocks)
    subject.release(bad.row, keep=False)
    cleared = [op for op in start(subject, sequence(2, 30)) if isinstance(op, ClearBlocks)]
    assert {block for op in cleared for block in op.blocks} == blocks
    assert subject.rows[0].holder is not None


def test_a_lost_block_is_found() -> None:
    subject = pool()
    start(subject, sequence(1, 20))
    subject.rows[0].blocks.pop()
    with pytest.raises(IntegrityError):
        subject.check_integrity()


class Memory:
    """What each slot of each block holds, as (prefix, position, token): reads check what a kernel would
    read.
    """

    def __init__(self) -> None:
        self.tables: dict[int, list[int]] = {}
        self.slots: dict[tuple[int, int], object] = {}

    def run(self, plan: StepPlan, num_virtual: int) -> None:
        for op in plan.ops:
            match op:
                case SetTable(row, first, blocks):
                    self.tables[row] = [*self.tables.get(row, [])[:first], *blocks]
                case ClearBlocks(_, blocks):
                    for slot in [slot for slot in self.slots if slot[0] in blocks]:
                        del self.slots[slot]
                case CopyBlock(_, source, block):
                    for offset in range(BLOCK):
                        self.slots[block, offset] = self.slots.get((source, offset))
                case WritePrefix(prefix_id, row, first):
                    for position in range(first, num_virtual):
                        self.slots[self.place(row, position)] = (prefix_id, position)
        for chunk in plan.chunks:
            for position in range(chunk.start, chunk.start + chunk.count):
                self.slots[self.place(chunk.row, position)] = self.wanted(chunk.sequence, position)
        for chunk in plan.chunks:
            for position in range(chunk.start + chunk.count):
                assert self.slots[self.place(chunk.row, position)] == self.wanted(chunk.sequence, position)

    def place(self, row: int, position: int) -> tuple[int, int]:
        return self.tables[row][position // BLOCK], position % BLOCK

    @staticmethod
    def wanted(item: RunningRequest, position: int) -> object:
        if position < item.num_virtual:
            return ("p", position)
        index = position - item.num_virtual
        return (item.prefix_id, tuple(item.tokens[: index + 1]))


@settings(max_examples=80, deadline=None)
@given(
    inputs=st.lists(
        st.tuples(
            st.integers(1, 40),
            st.integers(0, 30),
            st.booleans(),
            st.integers(1, 20),
            st.integers(0, 2),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=10,
    ),
    num_rows=st.integers(1, 5),
    max_blocks=st.integers(13, 24),
    budget=st.integers(1, 60),
    reuse=st.booleans(),
)
def test_every_sequence_reads_its_own_beginning_whatever_is_shared(
    inputs: list[tuple[int, int, bool, int, int, int]], num_rows: int, max_blocks: int, budget: int, reuse: bool
) -> None:
    num_virtual = 12
    subject = Scheduler(pool(num_rows, max_blocks, reuse), budget, BLOCK)
    memory = Memory()
    arriving = []
    for index, (own, common, prompted, new, priority, at) in enumerate(inputs):
        item = sequence(index, common + own, priority=priority, num_virtual=num_virtual if prompted else 0)
        item.tokens[:common] = range(common)
        arriving.append((item, new, at))
    for step in range(6000):
        for item, _, at in arriving:
            if at == step:
                subject.add(item)
        if step > 9 and not subject.has_work:
            break
        plan = subject.schedule(float(step))
        memory.run(plan, num_virtual)
        complete(subject, plan)
        for item, new, _ in arriving:
            if item.finish_reason is None and item.num_generated >= new:
                subject.finish(item, FinishReason.ERROR if new % 5 == 0 else FinishReason.LENGTH)
    assert all(item.finish_reason is not None and item.num_generated == new for item, new, _ in arriving)
    assert subject.pool.held_blocks == 0
