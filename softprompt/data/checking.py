"""What a file of examples has, before anything is sent: columns, problems by row, lengths, labels, repetition."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from shared.errors import InvalidInput
from shared.text.repetition import Repetition, RepetitionCounter
from shared.values.datasets import MAX_LINE_BYTES
from shared.values.example import Example
from shared.values.message import Message
from softprompt.data.examples import ExampleReader, Fields, line_of
from softprompt.data.files import file_rows
from softprompt.data.layout import NotUnderstood
from softprompt.data.problems import Unusable
from softprompt.data.rows import Rows
from softprompt.types.data import Data

MAX_PROBLEMS = 1000
"""Problems that are kept; the others are counted."""


@dataclass(frozen=True)
class RowProblem:
    """Why a row can't be used. `part` is the column or the place in a conversation, or empty."""

    place: str
    part: str
    reason: str


@dataclass(frozen=True)
class Lengths:
    """Characters of texts."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class DataReport:
    """What was found in all rows."""

    name: str
    format: str
    notes: tuple[str, ...]
    """Which columns were read as what, and what was changed or left out."""
    task: str
    """generation, classification or chat; empty without a usable example."""
    num_examples: int
    labels: Mapping[str, int]
    """Examples of each label, the most frequent first."""
    inputs: Lengths | None
    targets: Lengths | None
    repetition: Repetition
    finds_similar: bool
    """False where near-duplicates are only those with the same words: numpy is missing, or there is too much text."""
    contradiction: tuple[str, str] | None
    """Places of two examples with one input and two labels."""
    num_problems: int
    problems: tuple[RowProblem, ...]
    fix: Mapping[str, str] = field(default_factory=dict)
    """Options of the command line that would resolve the problems."""
    advice: str = ""


def examples_in(rows: Rows, reader: ExampleReader) -> Iterator[tuple[int, Fields | Unusable]]:
    """Each example or problem with the number of its row. Ends early if no row of a table can be understood."""
    with closing(rows.items):
        for row in rows.items:
            try:
                if isinstance(row.fields, Unusable):
                    raise row.fields
                example = reader.read(row.fields)
            except Unusable as error:
                yield row.number, error
                if isinstance(error, NotUnderstood) and rows.has_columns:
                    return
            else:
                if example is not None:
                    yield row.number, example


def check(data: Data, labels: Sequence[str] = (), which: str = "dataset") -> DataReport:
    """Read a whole file. Raises NotFound or InvalidInput for a file that can't be read at all."""
    if not isinstance(data.source, str):
        raise InvalidInput.of(which, "a file is expected")
    rows, reader = file_rows(data.source, data, which), ExampleReader(data, labels)
    counter, label_counts, task = RepetitionCounter(), Counter[str](), ""
    numbers, inputs, targets = array("Q"), array("Q"), array("Q")
    problems, num_problems = list[RowProblem](), 0
    for number, found in examples_in(rows, reader):
        if not isinstance(found, Unusable) and len(line_of(found)) > MAX_LINE_BYTES:
            limit = f"{MAX_LINE_BYTES} bytes, which trainers refuse by default"
            found = Unusable(f"is longer than {limit}: shorten or split it")
        if isinstance(found, Unusable):
            num_problems += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(RowProblem(str(rows.place(number)), found.part, found.reason))
            continue
        example = _example(found)
        task = "chat" if example.messages else "generation" if example.label is None else "classification"
        counter.add(example)
        numbers.append(number)
        question, answer = _texts(example)
        inputs.append(len(question))
        targets.append(len(answer))
        label_counts.update([example.label] if example.label is not None else [])
    repetition = counter.result()
    first = repetition.first_contradiction
    return DataReport(
        rows.name,
        rows.format,
        (*rows.report, *reader.report()),
        task,
        len(numbers),
        dict(label_counts.most_common()),
        _lengths(inputs),
        _lengths(targets),
        repetition,
        counter.finds_similar,
        None if first is None else (str(rows.place(numbers[first[0] - 1])), str(rows.place(numbers[first[1] - 1]))),
        num_problems,
        tuple(problems),
        rows.encoding_fix if rows.undecodable else dict(reader.layouts.fix) if num_problems else {},
        rows.encoding_advice if rows.undecodable else reader.advice or rows.empty_cells,
    )


def _example(fields: Fields) -> Example:
    turns = tuple(Message(turn["role"], turn["content"]) for turn in fields.get("messages", ()))
    return Example(fields.get("input", ""), fields.get("output"), fields.get("label"), turns)


def _texts(example: Example) -> tuple[str, str]:
    if example.messages:
        return "\n".join(turn.content for turn in example.messages[:-1]), example.messages[-1].content
    return example.input, example.label if example.label is not None else example.output or ""


def _lengths(counts: array[int]) -> Lengths | None:
    return Lengths(min(counts), statistics.median(counts), max(counts)) if counts else None
