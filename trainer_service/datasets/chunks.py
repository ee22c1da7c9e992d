"""Bytes that a client streams to us: pieces of bounded size, from a sender that doesn't stall, a few streams at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from shared.caller import tenant_of_work
from shared.errors import DeadlineExceeded, InvalidInput, Overloaded
from shared.fair_turns import SERVICE

MAX_CHUNK_BYTES = 1 << 20
IDLE_SECONDS = 60.0
"""A stream that sends nothing for that long is given up."""

MIN_BYTES_PER_SECOND = 8 << 10
"""So is one that is slower than that on average, once it was waited for that long: else a byte a minute would hold its
place for ever.
"""


async def timely(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks. Raises InvalidInput for one that is too large, DeadlineExceeded for a sender that stalls or trickles.

    Only the time in which the sender is waited for counts: a slow disk of ours is not its fault.
    """
    loop = asyncio.get_running_loop()
    num_bytes, waited_seconds = 0, 0.0
    while True:
        begun = loop.time()
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise DeadlineExceeded(f"the upload sent nothing for {IDLE_SECONDS:.0f} seconds") from None
        if chunk is None:
            return
        if len(chunk) > MAX_CHUNK_BYTES:
            raise InvalidInput.of("chunk", f"has {len(chunk)} bytes; send at most {MAX_CHUNK_BYTES} in one message")
        num_bytes += len(chunk)
        waited_seconds += loop.time() - begun
        if waited_seconds > IDLE_SECONDS and num_bytes < waited_seconds * MIN_BYTES_PER_SECOND:
            text = f"the upload sent {num_bytes} bytes in {waited_seconds:.0f} seconds; it takes {MIN_BYTES_PER_SECOND} a second"
            raise DeadlineExceeded(text)
        yield chunk


class UploadSlots:
    """How many streams of one kind may run at once; further ones are told to come back.

    A slot may be held for hours, so waiting for one is no way. A tenant gets another slot while it has fewer than are
    free: one alone gets half of them, and a newcomer finds some as long as there are a few for each tenant (Choudhury
    and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). Where no tenants are
    configured, all of them may be taken.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A slot for the current caller's tenant. Raises Overloaded."""
        holder = tenant_of_work()
        free = self._num_slots - self._taken.total()
        if not free:
            raise Overloaded("as many uploads are running as may; try again", retry_after_seconds=5)
        if holder != SERVICE and self._taken[holder] >= free:
            text = "your tenant has as many uploads running as it may at this time; wait for one of them to end"
            raise Overloaded(text, retry_after_seconds=5)
        self._taken[holder] += 1
        try:
            yield
        finally:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]
