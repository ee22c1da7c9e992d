"""Several answers side by side while they stream, or one after the other where the output is not a terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from softprompt.demo.plan import DemoPlan

MAX_SHOWN_CHARS = 600


class AnswerTable:
    """A row for each input, a column for each model or version; the cells are answers."""

    def __init__(self, console: Console, rows: Sequence[str], columns: Sequence[str]) -> None:
        self._console, self._rows, self._columns = console, rows, columns
        self._cells: dict[tuple[int, int], str] = {}
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=12) if console.is_terminal else None
        )

    def append(self, row: int, column: int, text: str) -> None:
        """Add text to one answer."""
        self._cells[row, column] = self._cells.get((row, column), "") + text

    def text(self, row: int, column: int) -> str:
        """One answer so far."""
        return self._cells.get((row, column), "")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif error is None:
            self._print_plain()

    def _render(self) -> RenderableType:
        table = Table(show_lines=True, expand=True)
        table.add_column("input", ratio=2, style="dim")
        for title in self._columns:
            table.add_column(title, ratio=3)
        for index, row in enumerate(self._rows):
            table.add_row(Text(row), *(Text(_clip(self.text(index, column))) for column in range(len(self._columns))))
        return table

    def _print_plain(self) -> None:
        for index, row in enumerate(self._rows):
            self._console.print(f"\n  input: {row}", markup=False, soft_wrap=True)
            for column, title in enumerate(self._columns):
                self._console.print(f"  {title}: {_clip(self.text(index, column))}", markup=False, soft_wrap=True)


def _clip(text: str) -> str:
    """The text as one paragraph; of a text that is too long for a cell, the end."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_SHOWN_CHARS else "… " + flat[-MAX_SHOWN_CHARS:]


def unseen_inputs(file: Path, count: int) -> list[str]:
    """`count` inputs of the held-out examples, spread over the file."""
    inputs = [json.loads(line)["input"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return inputs[:: max(1, len(inputs) // count)][:count]


def greedy(plan: DemoPlan) -> Sampling:
    """Greedy decoding for every answer of the demo, with a penalty: small models fall into loops without one."""
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
