"""Limits on byte streams from clients: the size of chunks, the speed of the sender, the number of streams."""

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
"""A stream is aborted after this time without a chunk."""

MIN_BYTES_PER_SECOND = 8 << 10
"""A stream is aborted if it is slower on average after IDLE_SECONDS of waiting. Otherwise a sender of one byte per
minute would keep its slot forever.
"""


async def timely(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the chunks. Raises InvalidInput for a chunk that is too large, DeadlineExceeded for a slow sender.

    Only the time spent waiting for the sender counts, not the time that the trainer takes to process a chunk.
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
            raise DeadlineExceeded(
                f"the upload sent {num_bytes} bytes in {waited_seconds:.0f} seconds; "
                f"the minimum is {MIN_BYTES_PER_SECOND} bytes per second"
            )
        yield chunk


class UploadSlots:
    """Limits the number of concurrent streams of one kind; further ones are rejected and may be retried.

    A slot may be held for hours, so streams don't wait for one. A tenant gets another slot only while it has fewer
    slots than are free: a single tenant gets half of them, and a new tenant finds free ones as long as there are a few
    per tenant (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). Without
    configured tenants, all slots may be taken.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a slot for the current caller's tenant. Raises Overloaded."""
        holder = tenant_of_work()
        free = self._num_slots - self._taken.total()
        if not free:
            raise Overloaded("too many uploads are running; try again", retry_after_seconds=5)
        if holder != SERVICE and self._taken[holder] >= free:
            text = "your tenant has too many uploads running; wait for one of them to end"
            raise Overloaded(text, retry_after_seconds=5)
        self._taken[holder] += 1
        try:
            yield
        finally:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]
