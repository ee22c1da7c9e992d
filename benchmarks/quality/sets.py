"""Datasets in a directory: `NAME.train.jsonl` and `NAME.test.jsonl`, one object with `input` and `output` (or `label`)
per line.

A dataset whose training rows have at most `MAX_LABELS` different outputs is classification, every other one is
generation. Rows of the test file may contain `references`, further correct answers.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_service.training.spec import Example, TaskKind

MAX_LABELS = 20
HELD_OUT_FRACTION = 0.2
TEST_SEED = 0


@dataclass(frozen=True)
class TestRow:
    example: Example
    references: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    name: str
    task: TaskKind
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[TestRow, ...]

    def sample(self, size: int, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """(train, held out): the first `size` rows after a shuffle by the seed, with a fifth held out. `size` 0 means
        all.
        """
        rows = list(self.train)
        random.Random(seed).shuffle(rows)
        rows = rows[: size or len(rows)]
        held = max(1, int(len(rows) * HELD_OUT_FRACTION))
        return tuple(rows[held:]), tuple(rows[:held])


def load_sets(directory: Path, names: list[str] | None, num_test: int) -> list[DataSet]:
    """The named datasets, or all, each with at most `num_test` random test rows (0: all), drawn with a fixed seed."""
    found = sorted(path.name.removesuffix(".train.jsonl") for path in directory.glob("*.train.jsonl"))
    if missing := set(names or ()) - set(found):
        raise SystemExit(
            f"{directory} has no {', '.join(sorted(missing))}.train.jsonl; it has {', '.join(found) or 'no datasets'}"
        )
    if not found:
        raise SystemExit(f"{directory} has no NAME.train.jsonl")
    return [_load(directory, name, num_test) for name in names or found]


def _load(directory: Path, name: str, num_test: int) -> DataSet:
    train, test = (_read(directory / f"{name}.{part}.jsonl") for part in ("train", "test"))
    labels = tuple(sorted({_answer(row) for row in train}))
    if len(labels) > MAX_LABELS:
        labels = ()
    if num_test and len(test) > num_test:
        test = random.Random(TEST_SEED).sample(test, num_test)
    examples = tuple(_example(line, row, labels) for line, row in enumerate(train, start=1))
    rows = tuple(
        TestRow(_example(line, row, labels), tuple(row.get("references") or (_answer(row),)))
        for line, row in enumerate(test, start=1)
    )
    return DataSet(name, TaskKind.CLASSIFICATION if labels else TaskKind.GENERATION, labels, examples, rows)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SystemExit(f"{path} is missing")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _answer(row: dict[str, Any]) -> str:
    return str(row["label"] if "label" in row else row["output"])


def _example(line: int, row: dict[str, Any], labels: tuple[str, ...]) -> Example:
    answer = _answer(row)
    return (
        Example(line=line, input=row["input"], label=answer)
        if labels
        else Example(line=line, input=row["input"], output=answer)
    )
