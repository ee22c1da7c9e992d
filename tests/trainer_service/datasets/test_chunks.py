"""Uploads that trickle are ended within a bounded time, while slow complete ones succeed; in minutes and hours of
virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from shared.caller import Caller, Tenant, calling
from shared.errors import DeadlineExceeded, Overloaded
from tests.virtual_time import run_in_virtual_time
from trainer_service.datasets.chunks import IDLE_SECONDS, MIN_BYTES_PER_SECOND, UploadSlots, timely


async def upload(num_bytes: int, chunk_bytes: int, pause_seconds: float) -> AsyncIterator[bytes]:
    """Chunks with a pause before each; `num_bytes` in all."""
    while num_bytes > 0:
        await asyncio.sleep(pause_seconds)
        yield b"x" * min(chunk_bytes, num_bytes)
        num_bytes -= chunk_bytes


async def received(chunks: AsyncIterator[bytes], work_seconds: float = 0.0) -> tuple[int, float, str]:
    """The received bytes, the seconds until the end, and the error."""
    loop = asyncio.get_running_loop()
    begun, num_bytes = loop.time(), 0
    try:
        async for chunk in timely(chunks):
            num_bytes += len(chunk)
            await asyncio.sleep(work_seconds)
    except DeadlineExceeded as error:
        return num_bytes, loop.time() - begun, error.message
    return num_bytes, loop.time() - begun, ""


@pytest.mark.parametrize(("chunk_bytes", "pause_seconds"), [(1, 59.0), (1, 0.5), (0, 1.0), (MIN_BYTES_PER_SECOND, 1.1)])
def test_a_sender_that_trickles_is_cut(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, pause_seconds: float) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(pause_seconds)
            yield b"x" * chunk_bytes

    _, seconds, refusal = run_in_virtual_time(monkeypatch, lambda: received(trickle()))
    assert "the upload sent" in refusal
    assert IDLE_SECONDS < seconds <= 2 * IDLE_SECONDS


def test_a_burst_buys_time_in_proportion_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def burst_then_trickle() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 20)
        while True:
            await asyncio.sleep(50)
            yield b"x"

    _, seconds, refusal = run_in_virtual_time(monkeypatch, lambda: received(burst_then_trickle()))
    assert refusal
    assert seconds <= (1 << 20) / MIN_BYTES_PER_SECOND + 50


def test_a_slow_sender_that_keeps_going_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20
    found = run_in_virtual_time(monkeypatch, lambda: received(upload(size, 64 << 10, 7.9)))
    assert (found[0], found[2]) == (size, "")
    assert found[1] > 7200


def test_a_small_upload_may_take_its_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_in_virtual_time(monkeypatch, lambda: received(upload(10, 1, 5.0)))[::2] == (10, "")


def test_the_time_that_we_take_ourselves_is_not_the_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_in_virtual_time(monkeypatch, lambda: received(upload(100, 1, 0.1), work_seconds=30.0))[::2] == (100, "")


def taken_by(tenant: str, slots: UploadSlots, held: ExitStack) -> int:
    """As many slots as the tenant gets."""
    count = 0
    with calling(Caller(f"caller of {tenant}", frozenset(), group=Tenant(tenant))):
        while count < 100:
            try:
                held.enter_context(slots.taken())
            except Overloaded:
                break
            count += 1
    return count


def test_no_tenant_takes_all_upload_slots() -> None:
    slots = UploadSlots(32)
    with ExitStack() as held:
        assert [taken_by(tenant, slots, held) for tenant in "abcde"] == [16, 8, 4, 2, 1]
    with ExitStack() as held:
        assert taken_by("b", slots, held) == 16, "all of them are free again"


def test_without_tenants_all_upload_slots_may_be_taken() -> None:
    slots = UploadSlots(4)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(slots.taken())
        with pytest.raises(Overloaded, match="too many uploads are running"):
            held.enter_context(slots.taken())
