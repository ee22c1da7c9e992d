"""A training example."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.values.enums import TaskKind
from shared.values.message import Message


@dataclass(frozen=True)
class Example:
    """An input with either `output` or `label`, or `messages` that end with the assistant's turn."""

    input: str = ""
    output: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()
    line: int = field(default=0, metadata={"internal": True})
    """Its line in a dataset, from 1, which errors name; 0: in none."""

    @property
    def task(self) -> TaskKind | None:
        """What the example teaches; None if it has no target, or more than one."""
        has = (bool(self.messages), self.output is not None, self.label is not None)
        if has == (True, False, False) and not self.input:
            return TaskKind.CHAT
        return {(False, True, False): TaskKind.GENERATION, (False, False, True): TaskKind.CLASSIFICATION}.get(has)


def target_of(example: Example) -> str:
    """The text of the wanted answer: the last message, the label or the output."""
    if example.messages:
        return example.messages[-1].content
    return (example.label if example.label is not None else example.output) or ""
