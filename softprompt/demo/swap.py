"""Version 2 takes over an alias while a stream of version 1 runs on, undisturbed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from rich.console import Console

from softprompt.client.async_client import AsyncClient
from softprompt.demo.answers import AnswerTable
from softprompt.demo.plan import DemoPlan
from softprompt.demo.promises import Promises
from softprompt.demo.side_by_side import unseen_inputs
from softprompt.demo.undisturbed import compare
from softprompt.types.common import Sampling
from softprompt.types.generation import FinishReason, GenerationEnd, GenerationStart

RESOLVE_SECONDS = 20.0


@dataclass
class LongStream:
    """The stream that was there before the swap: what it said of itself, and what it wrote."""

    start: GenerationStart | None = None
    end: GenerationEnd | None = None
    token_ids: list[int] = field(default_factory=list)


async def swap_under_load(client: AsyncClient, console: Console, promises: Promises, plan: DemoPlan, old: int, new: int) -> None:
    """Move `default` from version `old` to `new` in mid-stream and check what each stream was answered by."""
    text = unseen_inputs(plan.heldout_file, plan.num_products)[-1]
    sampling = Sampling(temperature=0, max_new_tokens=plan.long_answer_tokens, ignore_eos=True)
    expected = await client.generate(text, prompt=f"{plan.prompt}@{old}", sampling=replace(sampling, num_logprobs=2))
    long = LongStream()
    well_on_its_way = asyncio.Event()
    columns = (f"default, begun before the swap (version {old})", f"default, begun after it (version {new})")
    with AnswerTable(console, [text], columns) as table:

        async def run_long_stream() -> None:
            stream = client.stream(text, prompt=plan.prompt, sampling=sampling)
            async for delta in stream:
                long.start = stream.start
                long.token_ids += delta.token_ids
                table.append(0, 0, delta.text)
                if len(long.token_ids) >= plan.long_answer_tokens // 8:
                    well_on_its_way.set()
            long.end = stream.end

        async with asyncio.TaskGroup() as group:
            running = group.create_task(run_long_stream())
            await _first_of(running, well_on_its_way)
            tokens_at_swap = len(long.token_ids)
            await client.set_alias(plan.prompt, "default", new, expected_version=old)
            fresh = await _stream_of_new_version(client, table, text, plan, new)
            still_running = not running.done()
    promises.check(long.start is not None and _number(long.start.version) == old, f"the long stream began on version {old}")
    promises.check(
        fresh is not None and _number(fresh.version) == new, f"a stream begun after the swap came from version {new} ({_digest(fresh)})"
    )
    promises.check(
        still_running, f"version {new} answered while the stream of version {old} was still running (swapped at token {tokens_at_swap})"
    )
    ended_whole = long.end is not None and long.end.finish_reason is FinishReason.LENGTH and len(long.token_ids) == plan.long_answer_tokens
    promises.check(
        ended_whole, f"the stream of version {old} went on to its last token ({len(long.token_ids)} of {plan.long_answer_tokens})"
    )
    comparison = compare(expected.output, long.token_ids)
    promises.check(comparison.undisturbed, f"it is {comparison.account}")


async def _stream_of_new_version(client: AsyncClient, table: AnswerTable, text: str, plan: DemoPlan, new: int) -> GenerationStart | None:
    """Ask for `default` until the replica has seen the alias move; stream that answer."""
    async with asyncio.timeout(RESOLVE_SECONDS):
        while True:
            stream = client.stream(text, prompt=plan.prompt, sampling=Sampling(temperature=0, max_new_tokens=plan.answer_tokens))
            async with stream:
                start = await stream.started()
                if _number(start.version) == new:
                    async for delta in stream:
                        table.append(0, 1, delta.text)
                    return start
            await asyncio.sleep(0.05)


async def _first_of(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Until the event is set or the task has ended (then with its error, if it has one)."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()


def _number(version: str) -> int:
    """7 of "prompts/name/versions/7"; 0 for the bare model."""
    number = version.rpartition("/")[2]
    return int(number) if number.isdigit() else 0


def _digest(start: GenerationStart | None) -> str:
    return "-" if start is None else start.digest[:19]
