"""The same unseen inputs answered by the bare model and by the prompt, all in one batch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from rich.console import Console

from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from softprompt.demo.answers import AnswerTable
from softprompt.demo.plan import DemoPlan


def unseen_inputs(file: Path, count: int) -> list[str]:
    """`count` inputs of the held-out examples, spread over the file."""
    inputs = [json.loads(line)["input"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return inputs[:: max(1, len(inputs) // count)][:count]


def greedy(plan: DemoPlan) -> Sampling:
    """Greedy decoding, with a penalty since small models fall into loops without one. The same for every answer of the
    demo.
    """
    return Sampling(temperature=0, frequency_penalty=0.5, max_new_tokens=plan.answer_tokens)


async def show_side_by_side(client: AsyncClient, console: Console, plan: DemoPlan, version: str) -> None:
    """Stream the answers of both to every input."""
    inputs = unseen_inputs(plan.heldout_file, plan.num_products)
    reference = f"{plan.prompt}@{version.rpartition('/')[2]}"
    sampling = greedy(plan)
    with AnswerTable(console, inputs, ("bare model", f"prompt {reference}")) as table:

        async def answer(row: int, column: int, prompt: str) -> None:
            stream = client.stream(inputs[row], prompt=prompt, sampling=sampling)
            async for delta in stream:
                table.append(row, column, delta.text)

        async with asyncio.TaskGroup() as group:
            for row in range(len(inputs)):
                group.create_task(answer(row, 0, ""))
                group.create_task(answer(row, 1, reference))
