"""Calls to an external system that hangs: time limits, refusals, recovery, and leaked threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager

import pytest

from shared.caller import Caller, Tenant, calling
from shared.errors import Unavailable
from shared.process.call_pool import CallPool
from tests.waiting import until


class Hanging:
    """A system that answers only after it is released."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.num_calls = 0

    def call(self) -> str:
        self.num_calls += 1
        self.answers.wait()
        return "answer"


async def answers(pool: CallPool) -> bool:
    """Whether a call is answered in time, as it is at last on a machine that gives each thread its turn."""
    try:
        return await pool.call(int) == 0
    except Unavailable:
        return False


async def stuck(pool: CallPool, system: Hanging, num_calls: int) -> None:
    calls = [asyncio.create_task(pool.call(system.call)) for _ in range(num_calls)]
    for call in calls:
        with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s"):
            await call
    await until(lambda: pool.stats().overdue == num_calls)


def num_threads(pool: str) -> int:
    return sum(thread.name.startswith(f"{pool} ") for thread in threading.enumerate())


def of(tenant: str) -> AbstractContextManager[None]:
    return calling(Caller(f"caller of {tenant}", frozenset(), group=Tenant(tenant)))


async def test_a_tenant_waits_for_one_call_of_another_however_many_that_has_queued() -> None:
    pool, system, order = CallPool("thing", max_threads=1), Hanging(), list[str]()
    with of("greedy"):
        calls = [
            asyncio.create_task(pool.call(system.call)),
            *(asyncio.create_task(pool.call(order.append, "greedy")) for _ in range(20)),
        ]
    await until(lambda: system.num_calls == 1 and pool.stats().waiting == 20)
    with of("modest"):
        calls.append(asyncio.create_task(pool.call(order.append, "modest")))
    await until(lambda: pool.stats().waiting == 21)
    system.answers.set()
    await asyncio.gather(*calls)
    assert order.index("modest") <= 1
    assert len(order) == 21
    pool.close()


async def test_one_tenant_never_holds_all_threads_and_only_its_own_calls_are_refused() -> None:
    pool, system = CallPool("thing", max_threads=4, timeout_seconds=0.3), Hanging()
    with of("greedy"):
        calls = [asyncio.create_task(pool.call(system.call)) for _ in range(10)]
    await until(lambda: system.num_calls == 3)
    with of("modest"):
        await until(lambda: answers(pool))
    await until(lambda: answers(pool))  # so does the service itself
    assert {type(result) for result in await asyncio.gather(*calls, return_exceptions=True)} == {Unavailable}
    assert system.num_calls == 3
    await until(lambda: pool.stats().overdue == 3)  # a call's time begins in its thread, after its caller's
    pool._next_probe_at = time.monotonic() + 60  # no spare thread in this test
    with of("greedy"), pytest.raises(Unavailable, match="3 calls are overdue"):
        await pool.call(int)
    with of("modest"):
        await until(lambda: answers(pool))
    system.answers.set()
    await until(lambda: pool.stats().in_flight == 0)
    with of("greedy"):
        await until(lambda: answers(pool))
    pool.close()


async def test_a_tenant_whose_calls_never_return_gets_spare_threads_too() -> None:
    pool, system = CallPool("thing", max_threads=4, timeout_seconds=0.05), Hanging()
    with of("greedy"):
        await stuck(pool, system, 3)
        await until(lambda: answers(pool))
    system.answers.set()
    pool.close()


async def test_without_configured_tenants_all_callers_share_all_threads() -> None:
    pool, system = CallPool("thing", max_threads=4, timeout_seconds=10), Hanging()
    calls = [asyncio.create_task(pool.call(system.call)) for _ in range(4)]
    await until(lambda: system.num_calls == 4)
    system.answers.set()
    await asyncio.gather(*calls)
    pool.close()


async def test_results_errors_and_arguments_pass_through() -> None:
    pool = CallPool("thing", max_threads=1)
    assert await pool.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.call(divmod, 7, 0)
    with pytest.raises(TimeoutError, match="the function's own"):
        await pool.call(_raise_timeout)
    for _ in range(200):  # one thread serves one call after the other, and none is refused
        await pool.call(int)
    assert pool.stats().in_flight == 0
    pool.close()


def _raise_timeout() -> None:
    raise TimeoutError("the function's own")


async def test_a_call_that_hangs_ends_in_time_names_the_system_and_is_counted() -> None:
    pool, system = CallPool("prompt_store", max_threads=2, timeout_seconds=0.05), Hanging()
    with pytest.raises(Unavailable, match=r"the prompt store did not answer within 0\.05 s") as error:
        await pool.call(system.call)
    assert error.value.metadata == {"system": "prompt_store"}
    assert (pool.stats().timed_out, pool.stats().in_flight) == (1, 1)
    await until(lambda: answers(pool))  # the other thread is free
    system.answers.set()
    await until(lambda: pool.stats().in_flight == 0)
    pool.close()


async def test_when_every_thread_hangs_calls_fail_at_once_and_succeed_again_afterwards() -> None:
    pool, system = CallPool("thing", max_threads=3, timeout_seconds=0.05), Hanging()
    await stuck(pool, system, 3)
    pool._next_probe_at = time.monotonic() + 60  # no spare thread in this test
    for _ in range(50):
        with pytest.raises(Unavailable, match="3 calls are overdue"):
            await pool.call(int)
    found = pool.stats()
    assert (found.refused, found.timed_out, found.waiting, system.num_calls) == (50, 3, 0, 3), "none waited"
    system.answers.set()
    await until(lambda: pool.stats().in_flight == 0)
    await until(lambda: answers(pool))
    pool.close()


async def test_calls_that_never_return_get_few_spare_threads_and_the_pool_recovers() -> None:
    """A connection that never answers again, while the system answers new connections."""
    pool, system = CallPool("lost", max_threads=2, timeout_seconds=0.05), Hanging()
    await stuck(pool, system, 2)
    await until(lambda: answers(pool))
    assert num_threads("lost") <= 4
    system.answers.set()
    await until(lambda: pool.stats().in_flight == 0)
    pool.close()
    await until(lambda: num_threads("lost") == 0)


async def test_the_number_of_threads_is_bounded_however_long_it_hangs() -> None:
    pool, system = CallPool("crowded", max_threads=2, timeout_seconds=0.001), Hanging()
    while pool.stats().in_flight < 4:
        with pytest.raises(Unavailable):
            await pool.call(system.call)
    pool._next_probe_at = 0.0001  # long ago
    for _ in range(100):
        with pytest.raises(Unavailable):
            await pool.call(system.call)
    assert num_threads("crowded") == 4
    system.answers.set()
    pool.close()
    await until(lambda: num_threads("crowded") == 0)


async def test_a_cancelled_call_that_waits_never_runs() -> None:
    pool, system = CallPool("thing", max_threads=1, timeout_seconds=10), Hanging()
    first = asyncio.create_task(pool.call(system.call))
    await until(lambda: system.num_calls == 1)
    second = asyncio.create_task(pool.call(system.call))
    await until(lambda: pool.stats().waiting == 1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert pool.stats().waiting == 0
    system.answers.set()
    assert await first == "answer"
    assert system.num_calls == 1
    pool.close()


async def test_retry_repeats_until_the_system_answers() -> None:
    pool, failures = CallPool("thing"), iter([Unavailable("away"), Unavailable("away")])

    def sometimes() -> str:
        if (error := next(failures, None)) is not None:
            raise error
        return "answer"

    assert await pool.retry(sometimes) == "answer"
    pool.close()
    with pytest.raises(Unavailable, match="is stopping"):
        await pool.retry(sometimes)


def test_a_process_ends_while_a_call_hangs() -> None:
    program = (
        "import asyncio, threading\n"
        "from shared.process.call_pool import CallPool\n"
        "async def main():\n"
        "    try:\n"
        "        await CallPool('thing', timeout_seconds=0.05).call(threading.Event().wait)\n"
        "    except Exception as error:\n"
        "        print(error)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "did not answer" in ended.stdout
    assert "Traceback" not in ended.stderr
