"""Examples as token ids for training and evaluation, made by the same encoder as in serving.

Imports no torch, so that a service that has only the tokenizer can reject examples before they reach a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from shared.errors import FieldViolation, InvalidInput
from shared.location import Location
from shared.text.template import InputEncoder, Message
from shared.text.truncation import fit_messages, fit_text
from shared.values.results import EncodingStatistics
from shared.violations import moved
from trainer_service.training.data.example_lines import Selection
from trainer_service.training.data.places import in_dataset
from trainer_service.training.data.split import count_overlap
from trainer_service.training.data.token_rows import MAX_REPORTED, OnProgress, TokenRows, TokenRowsCache, encode_rows
from trainer_service.training.spec import Example, TaskKind, TooLong, TrainingSpec

if TYPE_CHECKING:
    from trainer_service.training.teacher_targets import TeacherTargets

RowTokens = tuple[tuple[int, ...], tuple[int, ...]]
"""(input ids, target ids) of a row."""
_FEW = 3
"""Up to this many examples that are too long are reported without a summary."""


@dataclass(frozen=True)
class EncodedExample:
    """`input_ids` follow the virtual tokens; `target_ids` follow them and have the loss. Neither is empty."""

    example: Example
    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    label_index: int = -1
    teacher: TeacherTargets | None = None
    """The teacher's distributions at the targets, in a distillation."""


class EncodedRows(Sequence[EncodedExample]):
    """Some rows of a dataset, converted on access. `shortened`: the input ids of rows with truncated inputs."""

    def __init__(self, rows: TokenRows, indices: NDArray[np.int64], shortened: Mapping[int, tuple[int, ...]]) -> None:
        self._rows, self._indices, self._shortened = rows, indices, shortened

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...

    @overload
    def __getitem__(self, index: slice) -> EncodedRows: ...

    def __getitem__(self, index: int | slice) -> EncodedExample | EncodedRows:
        if isinstance(index, slice):
            return EncodedRows(self._rows, self._indices[index], self._shortened)
        row = int(self._indices[index])
        input_ids = self._shortened.get(row) or self._rows.input_ids(row)
        return EncodedExample(
            self._rows.source[row], input_ids, self._rows.target_ids(row), int(self._rows.label_indices[row])
        )

    @property
    def sources(self) -> Sequence[Example]:
        """The examples without their token ids."""
        return Selection(self._rows.source, self._indices.tolist())

    @cached_property
    def input_lengths(self) -> NDArray[np.int64]:
        """`[examples]` input tokens, after truncation."""
        lengths = self._rows.input_lengths[self._indices].astype(np.int64)
        for position in np.flatnonzero(np.isin(self._indices, list(self._shortened))) if self._shortened else ():
            lengths[position] = len(self._shortened[int(self._indices[position])])
        return lengths

    @cached_property
    def target_lengths(self) -> NDArray[np.int64]:
        """`[examples]` target tokens."""
        return self._rows.target_lengths[self._indices].astype(np.int64)

    def counts_of(self, token_id: int) -> NDArray[np.int64]:
        """`[examples]` how often input and target have a token, before truncation."""
        return self._rows.counts_of(token_id)[self._indices]

    @cached_property
    def label_indices(self) -> NDArray[np.int64]:
        """`[examples]` index of the label; -1 without one."""
        return self._rows.label_indices[self._indices].astype(np.int64)


@dataclass(frozen=True)
class EncodedDataset:
    """`label_ids[i]` are the tokens of `labels[i]` as a continuation (classification only)."""

    examples: Sequence[EncodedExample]
    label_ids: tuple[tuple[int, ...], ...] = ()
    num_dropped: int = 0
    """Number of examples left out because they are too long."""
    num_truncated: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def sources(self) -> Sequence[Example]:
        """The examples without their token ids."""
        rows = self.examples
        return rows.sources if isinstance(rows, EncodedRows) else [row.example for row in rows]

    @cached_property
    def input_lengths(self) -> NDArray[np.int64]:
        """`[examples]` input tokens."""
        return self._numbers("input_lengths", lambda example: len(example.input_ids))

    @cached_property
    def target_lengths(self) -> NDArray[np.int64]:
        """`[examples]` target tokens."""
        return self._numbers("target_lengths", lambda example: len(example.target_ids))

    @cached_property
    def label_indices(self) -> NDArray[np.int64]:
        """`[examples]` index of the label; -1 without one."""
        return self._numbers("label_indices", lambda example: example.label_index)

    def _numbers(self, name: str, number: Callable[[EncodedExample], int]) -> NDArray[np.int64]:
        """A number of each example, which the rows of a dataset have as an array without reading the examples."""
        if isinstance(self.examples, EncodedRows):
            numbers: NDArray[np.int64] = getattr(self.examples, name)
            return numbers
        return np.array([number(example) for example in self.examples], np.int64)


@dataclass(frozen=True)
class EncodedSplit:
    """Both parts of a job's data."""

    train: EncodedDataset
    validation: EncodedDataset

    def num_overlapping(self) -> int:
        """`count_overlap` of the examples, without those that were dropped. Reads all of them."""
        return count_overlap(*(part.sources for part in (self.train, self.validation)))


def encode_dataset(
    examples: Sequence[Example],
    encoder: InputEncoder,
    spec: TrainingSpec,
    max_positions: int,
    cache: TokenRowsCache | None = None,
    on_progress: OnProgress | None = None,
    vocab_size: int | None = None,
) -> EncodedDataset:
    """Every example as token ids. Raises InvalidInput naming lines, with counts, for examples that can't be used.

    `max_positions` is the longest allowed sequence of virtual tokens, input and target. `spec.too_long` decides what
    happens to longer examples. `cache` has the rows of other jobs with the same file. `vocab_size`: the model's; its
    tokenizer may have more tokens. None: unchecked.
    """
    source, indices = (
        (examples.base, examples.indices) if isinstance(examples, Selection) else (examples, range(len(examples)))
    )
    labels = spec.labels if spec.task is TaskKind.CLASSIFICATION else ()
    rows = (cache.get if cache is not None else encode_rows)(source, encoder, labels, on_progress)
    chosen = np.asarray(indices, np.int64)
    if vocab_size is not None and len(beyond := chosen[np.isin(chosen, rows.beyond(vocab_size))]):
        raise InvalidInput(_unknown_to_the_model(rows, beyond, vocab_size, encoder))
    room = max_positions - spec.hyperparameters.num_virtual_tokens
    long = chosen[rows.lengths[chosen] > room]
    shortened = dict[int, tuple[int, ...]]()
    if len(long) and spec.too_long is TooLong.REFUSE:
        raise InvalidInput(_too_long(rows, long, len(chosen), room, spec.hyperparameters.num_virtual_tokens))
    if len(long) and spec.too_long is TooLong.TRUNCATE:
        shortened = _shortened(rows, long, room, encoder)
    dropped = long[~np.isin(long, list(shortened))] if shortened else long
    chosen = chosen[~np.isin(chosen, dropped)] if len(dropped) else chosen
    is_classification = spec.task is TaskKind.CLASSIFICATION
    label_ids = encoder.encode_candidates(spec.labels, "labels", for_training=True) if is_classification else ()
    for index, ids in enumerate(label_ids):
        if vocab_size is not None and max(ids) >= vocab_size:
            raise InvalidInput.of(f"labels[{index}]", _unknown_token(max(ids), vocab_size, encoder))
    return EncodedDataset(EncodedRows(rows, chosen, shortened), label_ids, len(dropped), len(shortened))


def encode_split(
    train: Sequence[Example],
    validation: Sequence[Example],
    spec: TrainingSpec,
    encoder: InputEncoder,
    model_positions: int,
    cache: TokenRowsCache | None = None,
    on_progress: OnProgress | None = None,
    vocab_size: int | None = None,
) -> EncodedSplit:
    """Both parts of a job's data as token ids. `model_positions` is the model's context; `vocab_size` as above.

    Raises InvalidInput naming lines, or a part that has no examples left.
    """
    longest = min(spec.max_positions or model_positions, model_positions)
    cache, parts = cache or TokenRowsCache(), list[EncodedDataset]()
    own_file = not (
        isinstance(train, Selection) and isinstance(validation, Selection) and train.base is validation.base
    )
    for name, examples in (("dataset", train), ("validation dataset" if own_file else "dataset", validation)):
        if not len(examples):
            parts.append(EncodedDataset(()))
            continue
        with moved(in_dataset(name)):
            part = encode_dataset(examples, encoder, spec, longest, cache, on_progress, vocab_size)
        if not len(part):
            kind = "held-out" if examples is validation else "training"
            which = "the only" if len(examples) == 1 else f"all {len(examples)}"
            are = "example is" if len(examples) == 1 else "examples are"
            raise InvalidInput.of(name, f"{which} {kind} {are} longer than the {longest} positions of a sequence")
        parts.append(part)
    return EncodedSplit(*parts)


def statistics(train: EncodedDataset, validation: EncodedDataset, num_overlapping: int) -> EncodingStatistics:
    """Counts and lengths of both parts together."""
    inputs = np.concatenate([train.input_lengths, validation.input_lengths])
    targets = np.concatenate([train.target_lengths, validation.target_lengths])
    return EncodingStatistics(
        num_train=len(train),
        num_validation=len(validation),
        num_dropped=train.num_dropped + validation.num_dropped,
        num_truncated=train.num_truncated + validation.num_truncated,
        num_overlapping=num_overlapping,
        mean_input_tokens=float(inputs.mean()),
        max_input_tokens=int(inputs.max()),
        mean_target_tokens=float(targets.mean()),
        max_target_tokens=int(targets.max()),
    )


def unknown_characters(parts: Sequence[EncodedDataset], encoder: InputEncoder) -> tuple[int, bool]:
    """The number of examples with characters for which the tokenizer has no token but its token for unknown ones, and
    whether the template has such characters.
    """
    tokenizer, num_examples, in_template = encoder.tokenizer, 0, False
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0, False  # mostly a tokenizer that knows every byte; its token for unknown characters has another use
    of_template: dict[tuple[str, ...], int] = {}
    for rows in (part.examples for part in parts if isinstance(part.examples, EncodedRows)):
        counts = rows.counts_of(unknown)
        for index in np.flatnonzero(counts):
            roles = tuple(message.role for message in rows[int(index)].example.messages[:-1])
            if roles not in of_template:
                of_template[roles] = _template_ids(encoder, roles).count(unknown)
            num_examples += bool(counts[index] > of_template[roles])
            in_template = in_template or of_template[roles] > 0
    return num_examples, in_template


def _template_ids(encoder: InputEncoder, roles: Sequence[str]) -> list[int]:
    """The token ids around inputs; around messages of these roles, if there are any."""
    try:
        return encoder.encode_messages([Message(role, "") for role in roles]) if roles else encoder.encode_input("")
    except InvalidInput:  # a chat template that refuses empty messages
        return []


def _shortened(
    rows: TokenRows, long: NDArray[np.int64], room: int, encoder: InputEncoder
) -> dict[int, tuple[int, ...]]:
    """Inputs truncated like in serving, by row, for rows whose template and target leave room for an input."""
    found = dict[int, tuple[int, ...]]()
    for row in long.tolist():
        left = room - int(rows.target_lengths[row])
        if left < 1:
            continue
        example = rows.source[row]
        ids = (
            fit_messages(encoder, example.messages[:-1], left)
            if example.messages
            else fit_text(encoder, example.input, left)
        )
        if 0 < len(ids) <= left:
            found[row] = tuple(ids)
    return found


def check_vocabulary(examples: Sequence[EncodedExample], vocab_size: int) -> None:
    """Raises InvalidInput for a token id that the model lacks."""
    highest = max(max((*example.input_ids, *example.target_ids)) for example in examples)
    if highest >= vocab_size:
        raise InvalidInput.of("template", f"has the token id {highest}, but the base model has {vocab_size} tokens")


def _unknown_to_the_model(
    rows: TokenRows, beyond: NDArray[np.int64], vocab_size: int, encoder: InputEncoder
) -> list[FieldViolation]:
    return [
        FieldViolation(Location(row=rows.source[row].line), _unknown_token(rows.highest_id(row), vocab_size, encoder))
        for row in beyond[:MAX_REPORTED].tolist()
    ]


def _unknown_token(token_id: int, vocab_size: int, encoder: InputEncoder) -> str:
    token = str(encoder.tokenizer.convert_ids_to_tokens(token_id))
    return (
        f"has the token {token[:40]!r} with the id {token_id}, but the base model has {vocab_size} tokens; leave that "
        "token out, or choose a template without it"
    )


def _too_long(
    rows: TokenRows, long: NDArray[np.int64], num_examples: int, room: int, num_virtual_tokens: int
) -> list[FieldViolation]:
    found = [
        FieldViolation(
            Location(row=rows.source[row].line),
            f"{rows.input_lengths[row]} input tokens and {rows.target_lengths[row]} target tokens; "
            f"beside {num_virtual_tokens} virtual tokens there is room for {room}; "
            "shorten it, or set spec.too_long to TRUNCATE or DROP",
        )
        for row in long[:MAX_REPORTED].tolist()
    ]
    if len(long) <= _FEW:
        return found
    text = (
        f"{len(long)} of {num_examples} examples are too long: shorten them, or set spec.too_long to TRUNCATE or DROP"
    )
    return [FieldViolation("dataset", text), *found]
