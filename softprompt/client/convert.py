"""Conversion of messages that `mirror` can't convert by name: oneofs, and datasets, which may be local data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeGuard

from prompttuning.v1 import generation_pb2, tuning_pb2

from shared.errors import InvalidInput
from shared.values.generation import GenerationInput, TokenIds
from shared.values.message import Message
from shared.values.results import TuningProgress
from shared.values.spec import is_uri
from shared.values.template import Template
from shared.values.usage import UsageDimension, UsageQuery
from shared.violations import Violations, items_of, readable
from shared.wire.mirror import read, read_fields, reader, write
from softprompt.types.events import CheckpointStored, Evaluated, JobEvent, Note, ProgressMade, StateChanged
from softprompt.types.generation import Input
from softprompt.types.jobs import TuningJob
from softprompt.types.type_names import type_name


def is_remote(dataset: object) -> bool:
    """Whether this is a dataset name or a URI, which the trainer reads itself, and not a local file."""
    return is_uri(dataset) or is_stored(dataset)


def is_stored(dataset: object) -> TypeGuard[str]:
    """Whether this is the name of a dataset that the trainer has stored."""
    return isinstance(dataset, str) and dataset.startswith("datasets/sha256-")


def usage_query(
    by: Iterable[UsageDimension | str], start: datetime | None, end: datetime | None, tenant: str
) -> UsageQuery:
    """The request for usage. Raises InvalidInput for an unknown dimension."""
    found = []
    for name in [by] if isinstance(by, str) else by:
        if str(name).upper() not in UsageDimension.__members__:
            raise InvalidInput.of("by", f"{name!r} is not one of {', '.join(UsageDimension).lower()}")
        found.append(UsageDimension[str(name).upper()])
    times = [_with_zone(time, name) for name, time in (("start", start), ("end", end))]
    return UsageQuery(times[0], times[1], tuple(found), tenant)


def _with_zone(time: datetime | None, name: str) -> datetime | None:
    if time is None:
        return None
    if not isinstance(time, datetime):
        raise InvalidInput.of(name, f"a datetime is expected, not {type_name(time)}")
    try:
        # a Timestamp of pandas without a zone refuses `astimezone`
        plain: datetime = time.to_pydatetime() if hasattr(time, "to_pydatetime") else time
        return plain.astimezone()
    except (OverflowError, ValueError, OSError, TypeError) as error:
        raise InvalidInput.of(name, f"{time} can't be converted: {error}") from None


@reader(JobEvent)
def _read_event(message: tuning_pb2.TuningEvent, path: str = "", violations: Violations | None = None) -> JobEvent:
    common: dict[str, Any] = {"number": message.number, "time": read_fields(JobEvent, message)["time"]}
    match message.WhichOneof("kind"):
        case "state_changed":
            return StateChanged(job=read(TuningJob, message.state_changed), **common)
        case "progress":
            return ProgressMade(progress=read(TuningProgress, message.progress), **common)
        case "evaluation":
            evaluation = message.evaluation
            return Evaluated(
                step=evaluation.step, metrics=dict(evaluation.metrics), is_best=evaluation.is_best, **common
            )
        case "checkpoint":
            return CheckpointStored(step=message.checkpoint.step, **common)
        case "note":
            return Note(text=message.note, **common)
        case _:  # a kind that this client is too old to know
            return JobEvent(**common)


def input_message(
    content: Input, prompt: str, template: Template | None, routing_key: str, truncate: bool, base_model: str = ""
) -> generation_pb2.GenerationInput:
    """The message of a text, a conversation or token ids. Raises InvalidInput for any other value."""
    if not isinstance(content, str | TokenIds):
        if isinstance(content, bytes | Mapping) or not isinstance(content, Iterable):
            text = f"a text, a list of messages or TokenIds is expected, not a value of type {type(content).__name__}"
            raise InvalidInput.of("input", text)
        turns: list[Message] = []
        for index, turn in enumerate(items_of(content, "input.messages")):
            where = f"input.messages[{index}]"
            with readable(where):
                turn = _message(turn, where) if isinstance(turn, Mapping) else turn
                if getattr(turn, "content", "") is None:
                    raise InvalidInput.of(f"{where}.content", "is missing")
            turns.append(turn)
        content = tuple(turns)
    given = GenerationInput(content, prompt, template, routing_key, truncate, base_model)
    return write(given, generation_pb2.GenerationInput(), "input")


def _message(turn: Mapping[str, Any], where: str) -> Message:
    if set(turn) != {"role", "content"}:
        keys = ", ".join(map(repr, turn)) or "nothing"
        raise InvalidInput.of(where, f"a turn has a role and a content, not {keys}")
    return Message(turn["role"], turn["content"])
