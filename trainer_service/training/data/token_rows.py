"""A dataset as token ids in flat arrays, 2 or 4 bytes per token, shared by jobs with the same file and template."""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.errors import FieldViolation, InvalidInput
from shared.location import Location
from shared.text.template import InputEncoder
from shared.values.example import target_of
from trainer_service.training.data.example_lines import ExampleLines
from trainer_service.training.spec import Example

MAX_REPORTED = 20
REPORT_EVERY = 500
"""Examples between two reports of progress."""
OnProgress = Callable[[int], None]
"""Called with the number of encoded examples; may raise to end the encoding."""


class TokenRows:
    """Every example of `source` as tokens: row `i` is `source[i]`, of any length. Immutable.

    `input_lengths`, `target_lengths`, `label_indices`: `[examples]`.
    """

    def __init__(
        self,
        source: Sequence[Example],
        ids: array[int],
        input_lengths: array[int],
        target_lengths: array[int],
        labels: array[int],
    ):
        self.source = source
        self._ids: NDArray[np.integer] = np.frombuffer(ids, dtype=ids.typecode) if ids else np.zeros(0, np.int32)
        self.input_lengths, self.target_lengths, self.label_indices = (
            np.frombuffer(part, dtype=np.int32) if part else np.zeros(0, np.int32)
            for part in (input_lengths, target_lengths, labels)
        )
        self._starts = np.zeros(len(self.input_lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=self._starts[1:])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[examples]` tokens of input and target together."""
        return self.input_lengths.astype(np.int64) + self.target_lengths

    def input_ids(self, row: int) -> tuple[int, ...]:
        """The input's token ids of a row."""
        start = self._starts[row]
        return tuple(self._ids[start : start + self.input_lengths[row]].tolist())

    def target_ids(self, row: int) -> tuple[int, ...]:
        """The target's token ids of a row."""
        return tuple(self._ids[self._starts[row] + self.input_lengths[row] : self._starts[row + 1]].tolist())

    def highest_id(self, row: int) -> int:
        """The highest token id of a row."""
        return int(self._ids[self._starts[row] : self._starts[row + 1]].max(initial=0))

    def beyond(self, vocab_size: int) -> NDArray[np.int64]:
        """The rows with a token id of `vocab_size` or more."""
        return np.unique(self._rows_of(self._ids >= vocab_size))

    def counts_of(self, token_id: int) -> NDArray[np.int64]:
        """`[examples]` how often the input and the target of each row have a token."""
        return np.bincount(self._rows_of(self._ids == token_id), minlength=len(self.input_lengths))

    def _rows_of(self, is_found: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The row of each token that was found."""
        places = np.flatnonzero(is_found)
        return (np.searchsorted(self._starts, places, side="right") - 1).astype(np.int64)

    @property
    def num_bytes(self) -> int:
        """The memory of all arrays."""
        return self._ids.nbytes + self._starts.nbytes + 3 * self.input_lengths.nbytes


class TokenRowsCache:
    """Rows by file, template and labels, kept while a job uses them. Thread-safe; encodes one file at a time."""

    def __init__(self) -> None:
        self._rows: weakref.WeakValueDictionary[tuple[str, str, tuple[str, ...]], TokenRows] = (
            weakref.WeakValueDictionary()
        )
        self._encoding = threading.Lock()

    def get(
        self,
        source: Sequence[Example],
        encoder: InputEncoder,
        labels: Sequence[str],
        on_progress: OnProgress | None = None,
    ) -> TokenRows:
        """The rows of `source`, shared if it is a file. Raises InvalidInput like `encode_rows`."""
        if not isinstance(source, ExampleLines):
            return encode_rows(source, encoder, labels, on_progress)
        key = source.digest, repr(encoder.template), tuple(labels)
        with self._encoding:
            found = self._rows.get(key)
            if found is None:
                found = self._rows[key] = encode_rows(source, encoder, labels, on_progress)
        return found


def encode_rows(
    source: Sequence[Example], encoder: InputEncoder, labels: Sequence[str], on_progress: OnProgress | None = None
) -> TokenRows:
    """Encode all examples. Raises InvalidInput naming the lines that the template rejects or that have no tokens."""
    by_label = {label: index for index, label in enumerate(labels)}
    size = len(encoder.tokenizer)
    if size <= 1 << 16:  # ids may have gaps
        size = max(encoder.tokenizer.get_vocab().values(), default=0) + 1
    ids = array("H" if size <= 1 << 16 else "i")
    input_lengths, target_lengths, label_indices = array("i"), array("i"), array("i")
    violations = list[FieldViolation]()
    for count, example in enumerate(source):
        if on_progress is not None and count % REPORT_EVERY == 0:
            on_progress(count)
        try:
            input_ids = encode_input(encoder, example)
            target_ids = encoder.encode_target(target_of(example))
        except InvalidInput as error:
            violations += [_in_line(example, found) for found in error.violations]
        else:
            for part, found in (("input", input_ids), ("target", target_ids)):
                if not found:
                    violations.append(
                        FieldViolation(
                            Location(row=example.line), f"the {part} has no tokens in this model's vocabulary"
                        )
                    )
            ids.extend(input_ids)
            ids.extend(target_ids)
            input_lengths.append(len(input_ids))
            target_lengths.append(len(target_ids))
            label_indices.append(-1 if example.label is None else by_label[example.label])
        if len(violations) >= MAX_REPORTED:
            break
    if violations:
        raise InvalidInput(violations[:MAX_REPORTED])
    return TokenRows(source, ids, input_lengths, target_lengths, label_indices)


def encode_input(encoder: InputEncoder, example: Example) -> list[int]:
    """The token ids of an example's input: its text, or all its messages except the last."""
    if example.messages:
        return encoder.encode_messages(example.messages[:-1])
    return encoder.encode_input(example.input)


def _in_line(example: Example, found: FieldViolation) -> FieldViolation:
    """An encoder's violation in the dataset's line. Raises InvalidInput for errors of the template."""
    if found.location.path[:1] != ("messages",):
        raise InvalidInput([found])
    path = found.location.path if example.messages else ("input",)
    return replace(found, location=Location(path, row=example.line))
