"""Facts about a dataset for creating jobs. They are collected when it is stored, so that no job needs a full read."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from shared.text.repetition import Repetition, RepetitionCounter
from trainer_service.training.data.dataset import DatasetLimits, parse_examples
from trainer_service.training.spec import Example, TaskKind

FORMAT = 1
SAMPLED_FIRST, SAMPLED_LONGEST = 64, 32


class LinePlace(BaseModel):
    """The place of an example in the file: its line's number, from 1, and its bytes from `start` to `end`."""

    model_config = ConfigDict(frozen=True)
    line: int
    start: int
    end: int


class DatasetFacts(BaseModel):
    """The facts, as stored in JSON beside the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    task: TaskKind
    labels: tuple[str, ...]
    """The labels that occur, in order of first appearance."""
    num_examples: int
    repetition: Repetition
    sample: tuple[LinePlace, ...]
    """The first examples and those with the longest lines, for early checks of the template and of lengths."""

    @property
    def num_distinct(self) -> int:
        """The number of distinct examples by input and target."""
        return self.num_examples - self.repetition.num_duplicates

    def has_only(self, labels: Sequence[str]) -> bool:
        """Whether this label set covers the examples; empty: the labels that occur."""
        if self.task is not TaskKind.CLASSIFICATION:
            return not labels
        return set(self.labels) <= set(labels) if labels else len(self.labels) > 1


Description = tuple[DatasetFacts, tuple[Example, ...]]
"""The facts about a dataset and its sampled examples."""


def scan_examples(
    lines: Iterable[bytes], labels: Sequence[str] = (), limits: DatasetLimits | None = None, *, quote: bool = True
) -> DatasetFacts:
    """Check a dataset like `parse_examples`, without keeping its texts. Raises InvalidInput like `parse_examples`."""
    scan = _Scan()
    parsed = parse_examples(scan.followed(lines), labels, limits, quote=quote, visit=scan.visit)
    return DatasetFacts(
        task=parsed.task,
        labels=tuple(scan.labels),
        num_examples=scan.num_examples,
        repetition=scan.repetition.result(),
        sample=scan.sample(),
    )


class _Scan:
    def __init__(self) -> None:
        self.labels: dict[str, None] = {}
        self.repetition = RepetitionCounter()
        self.num_examples = 0
        self._start = self._end = 0
        self._first: list[LinePlace] = []
        self._longest: list[tuple[int, int, LinePlace]] = []

    def followed(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self._start, self._end = self._end, self._end + len(line)
            yield line

    def visit(self, example: Example) -> None:
        """Record an example. It is called between two lines, so the example's place is that of the latest line."""
        self.num_examples += 1
        self.repetition.add(example)
        if example.label is not None:
            self.labels[example.label] = None
        place = LinePlace.model_construct(line=example.line, start=self._start, end=self._end)
        if len(self._first) < SAMPLED_FIRST:
            self._first.append(place)
        entry = self._end - self._start, -example.line, place
        if len(self._longest) < SAMPLED_LONGEST:
            heapq.heappush(self._longest, entry)
        elif entry[:2] > self._longest[0][:2]:
            heapq.heapreplace(self._longest, entry)

    def sample(self) -> tuple[LinePlace, ...]:
        places = {place.line: place for place in (*self._first, *(entry[2] for entry in self._longest))}
        return tuple(places[line] for line in sorted(places))
