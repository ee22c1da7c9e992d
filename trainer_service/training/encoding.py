"""Examples as token ids: what training and evaluation feed to the model, through the one encoder that serving uses too.

Free of torch, so that a service that has only the tokenizer can refuse a dataset that doesn't fit before a worker is busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import FieldViolation, InvalidInput
from shared.template import InputEncoder
from trainer_service.training.events import DatasetStatistics
from trainer_service.training.spec import Example, TaskKind, TrainingSpec

_MAX_REPORTED = 20


@dataclass(frozen=True)
class EncodedExample:
    """`input_ids` stand after the virtual tokens; the loss is on `target_ids`, which follow. Neither is empty."""

    example: Example
    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    label_index: int = -1


@dataclass(frozen=True)
class EncodedDataset:
    """`label_ids[i]` is the continuation that means `labels[i]`, without the end of sequence (classification only)."""

    examples: tuple[EncodedExample, ...]
    label_ids: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.examples)


def encode_dataset(examples: Sequence[Example], encoder: InputEncoder, spec: TrainingSpec, max_positions: int) -> EncodedDataset:
    """Encode every example. Raises InvalidInput naming the line of an example that can't be trained on, with its counts.

    `max_positions` is the model's context; virtual tokens, input and target must fit into it together.
    """
    room = max_positions - spec.hyperparameters.num_virtual_tokens
    labels = {label: index for index, label in enumerate(spec.labels)}
    encoded, violations = list[EncodedExample](), list[FieldViolation]()
    for example in examples:
        try:
            item = _encode(example, encoder, labels)
        except InvalidInput as error:
            violations += [_in_line(example, found) for found in error.violations]
            if len(violations) >= _MAX_REPORTED:
                break
            continue
        if reason := _problem(item, room, spec.hyperparameters.num_virtual_tokens):
            violations.append(FieldViolation(f"line {example.line}", reason))
            if len(violations) >= _MAX_REPORTED:
                break
        encoded.append(item)
    if violations:
        raise InvalidInput(violations)
    return EncodedDataset(tuple(encoded), encoder.encode_candidates(spec.labels, "labels") if spec.task is TaskKind.CLASSIFICATION else ())


def statistics(train: EncodedDataset, validation: EncodedDataset, num_overlapping: int) -> DatasetStatistics:
    rows = [*train.examples, *validation.examples]
    inputs = [len(row.input_ids) for row in rows]
    targets = [len(row.target_ids) for row in rows]
    return DatasetStatistics(
        num_train=len(train),
        num_validation=len(validation),
        num_overlapping=num_overlapping,
        mean_input_tokens=sum(inputs) / len(rows),
        max_input_tokens=max(inputs),
        mean_target_tokens=sum(targets) / len(rows),
        max_target_tokens=max(targets),
    )


def encode_bare(encoder: InputEncoder, example: Example) -> list[int]:
    """The raw input as `encoder`'s template-free form gives it; a conversation as `encoder` gives it."""
    if example.messages:
        return encoder.encode_messages(example.messages[:-1])
    return encoder.encode_input(example.input)


def _encode(example: Example, encoder: InputEncoder, labels: dict[str, int]) -> EncodedExample:
    if example.messages:
        input_ids, target = encoder.encode_messages(example.messages[:-1]), example.messages[-1].content
    else:
        input_ids, target = encoder.encode_input(example.input), example.label if example.label is not None else example.output or ""
    label_index = labels[example.label] if example.label is not None else -1
    return EncodedExample(example, tuple(input_ids), tuple(encoder.encode_target(target)), label_index)


def _in_line(example: Example, found: FieldViolation) -> FieldViolation:
    """What the encoder says of a conversation, named as the dataset's line; what it says of the template stays as it is."""
    if not found.field.startswith("messages"):
        raise InvalidInput([found])
    part = found.field if example.messages else "input"
    return FieldViolation(f"line {example.line} {part}", found.description)


def _problem(item: EncodedExample, room: int, num_virtual_tokens: int) -> str:
    if not item.input_ids:
        return "the input has no tokens in this model's vocabulary"
    if not item.target_ids:
        return "the target has no tokens in this model's vocabulary"
    length = len(item.input_ids) + len(item.target_ids)
    if length > room:
        return (
            f"{len(item.input_ids)} input tokens and {len(item.target_ids)} target tokens; beside {num_virtual_tokens} virtual "
            f"tokens the model has room for {room}"
        )
    return ""
