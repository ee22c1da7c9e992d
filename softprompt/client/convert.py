"""Conversion of messages that `mirror` can't convert by name: oneofs, and datasets, which callers give as files or
examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prompttuning.v1 import generation_pb2, tuning_pb2

from shared.errors import InvalidInput
from shared.wire.mirror import fill, read, read_fields, reader, write
from softprompt.types.common import Template
from softprompt.types.events import CheckpointStored, Evaluated, JobEvent, Note, ProgressMade, StateChanged
from softprompt.types.generation import Input, TokenIds
from softprompt.types.jobs import TuningJob, TuningProgress
from softprompt.types.spec import TuningSpec

_DATA_FIELDS = frozenset({"dataset", "validation_dataset", "validation_fraction"})


def spec_message(spec: TuningSpec, dataset: str, validation_dataset: str) -> tuning_pb2.TuningSpec:
    """The message of a spec whose datasets are names or URIs; an empty `validation_dataset` means none. Raises
    InvalidInput.
    """
    message = write(spec, tuning_pb2.TuningSpec(), "spec", skip=_DATA_FIELDS)
    message.dataset.CopyFrom(_source_message(dataset))
    if validation_dataset and spec.validation_fraction is not None:
        raise InvalidInput.of("spec.validation_fraction", "can't be combined with spec.validation_dataset")
    if validation_dataset:
        message.validation_dataset.CopyFrom(_source_message(validation_dataset))
    elif spec.validation_fraction is not None:
        fill(message, "spec", validation_fraction=spec.validation_fraction)
    return message


def is_remote(dataset: object) -> bool:
    """Whether this is a dataset name or a URI, which the trainer reads itself, and not a local file."""
    return isinstance(dataset, str) and (dataset.startswith("datasets/sha256-") or "://" in dataset)


def _source_message(dataset: str) -> tuning_pb2.DatasetSource:
    return tuning_pb2.DatasetSource(uri=dataset) if "://" in dataset else tuning_pb2.DatasetSource(dataset=dataset)


@reader(TuningSpec)
def _read_spec(message: tuning_pb2.TuningSpec) -> TuningSpec:
    plain = {name: value for name, value in read_fields(TuningSpec, message).items() if name not in _DATA_FIELDS}
    fraction = message.validation_fraction if message.WhichOneof("validation") == "validation_fraction" else None
    validation = _source_name(message.validation_dataset) if message.HasField("validation_dataset") else None
    return TuningSpec(
        dataset=_source_name(message.dataset), validation_dataset=validation, validation_fraction=fraction, **plain
    )


def _source_name(source: tuning_pb2.DatasetSource) -> str:
    return source.uri or source.dataset


@reader(JobEvent)
def _read_event(message: tuning_pb2.TuningEvent) -> JobEvent:
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
    content: Input, prompt: str, template: Template | None, routing_key: str, truncate: bool
) -> generation_pb2.GenerationInput:
    """The message of a text, a conversation or token ids. Raises InvalidInput for any other value."""
    message = fill(generation_pb2.GenerationInput(), "input", prompt=prompt, routing_key=routing_key, truncate=truncate)
    if template is not None:
        write(template, message.template, "input.template")
        message.template.SetInParent()
    if isinstance(content, str):
        fill(message, "input", text=content)
    elif isinstance(content, TokenIds):
        write(content, message.token_ids, "input.token_ids")
        message.token_ids.SetInParent()
    elif isinstance(content, bytes | Mapping) or not isinstance(content, Iterable):
        raise InvalidInput.of(
            "input", f"a text, a list of messages or TokenIds is expected, not a value of type {type(content).__name__}"
        )
    else:
        message.chat.SetInParent()
        for index, turn in enumerate(content):
            if getattr(turn, "content", "") is None:
                raise InvalidInput.of(f"input.messages[{index}].content", "is missing")
            write(turn, message.chat.messages.add(), f"input.messages[{index}]")
    return message
