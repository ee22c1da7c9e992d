"""Where examples come from, and examples inside a request."""

from __future__ import annotations

from prompttuning.v1 import tuning_pb2

from shared.text.template import Message
from shared.violations import Violations
from trainer_service.jobs.request import DatasetUri, ExampleSource, InlineExamples, UploadedDataset
from trainer_service.training.spec import Example


def source_from_wire(message: tuning_pb2.DatasetSource, field: str, violations: Violations) -> ExampleSource | None:
    """None after adding to `violations`."""
    match message.WhichOneof("source"):
        case "inline":
            return _inline_from_wire(message.inline, f"{field}.inline.examples", violations)
        case "dataset":
            return UploadedDataset(message.dataset, f"{field}.dataset")
        case "uri":
            return DatasetUri(message.uri, f"{field}.uri")
        case _:
            violations.add(field, "is missing: give inline examples, an uploaded dataset, or a URI")
            return None


def _inline_from_wire(message: tuning_pb2.InlineDataset, field: str, violations: Violations) -> InlineExamples | None:
    if not message.examples:
        violations.add(field, "is empty: at least two examples are needed")
        return None
    examples = tuple(
        _example_from_wire(example, index, field, violations) for index, example in enumerate(message.examples)
    )
    return InlineExamples(examples, field)


def _example_from_wire(message: tuning_pb2.Example, index: int, field: str, violations: Violations) -> Example:
    line = index + 1
    match message.WhichOneof("target"):
        case "output":
            return Example(line=line, input=message.input, output=message.output)
        case "label":
            return Example(line=line, input=message.input, label=message.label)
        case "conversation":
            if message.input:
                violations.add(f"{field}[{index}].input", "must be empty beside a conversation")
            turns = (Message(role=turn.role, content=turn.content) for turn in message.conversation.messages)
            return Example(line=line, messages=tuple(turns))
        case _:
            violations.add(f"{field}[{index}].target", "is missing: give output, label or conversation")
            return Example(line=line, input=message.input)
