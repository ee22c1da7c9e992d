"""Users' files, from the client to a published version, with the real cohort in a worker of this process."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from shared.errors import InvalidInput
from softprompt import AsyncClient, Data, Hyperparameters, JobState, TuningSpec
from softprompt.types.events import Note
from tests.trainer_service.conftest import RunningTrainer
from tests.trainer_service.test_training_end_to_end import local_pool, training

__all__ = ["local_pool", "training"]

COLUMNS = ("id", "frage", "antwort")
ROWS = [(number, f"number {number}", f"it is {number}; yes") for number in range(20)]
OBJECTS = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]


def table(delimiter: str) -> str:
    return "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in (COLUMNS, *ROWS))


def to_xlsx(path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (COLUMNS, *ROWS):
        book.active.append(row)  # type: ignore[arg-type]
    book.save(path)


FILES: dict[str, Callable[[Path], object]] = {
    "excel.csv": lambda path: path.write_bytes(table(";").encode("utf-16")),
    "table.tsv.gz": lambda path: path.write_bytes(gzip.compress(table("\t").encode())),
    "book.xlsx": to_xlsx,
    "table.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(OBJECTS), path),
    "array.json": lambda path: path.write_text(json.dumps(OBJECTS, indent=1)),
    "lines.jsonl": lambda path: path.write_bytes(
        "".join(json.dumps(item) + "\r\n" for item in OBJECTS).encode("utf-8-sig")
    ),
}


async def test_every_kind_of_file_is_trained_on(training: RunningTrainer, tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(num_steps=1, num_virtual_tokens=2)
    datasets = set()
    async with AsyncClient(f"127.0.0.1:{training.port}") as client:
        for name, write in FILES.items():
            write(tmp_path / name)
            data = Data(tmp_path / name, input="frage", output="antwort", drop_extra=True)
            job = await client.tune(TuningSpec("tone", data, hyperparameters=hyperparameters))
            assert job.state is JobState.SUCCEEDED
            datasets.add(job.spec.dataset)
            assert job.dataset_statistics.num_train + job.dataset_statistics.num_validation == 20
            assert job.dataset_statistics.num_distinct_inputs == 20
        frame = Data(pd.DataFrame(OBJECTS), input="frage", output="antwort", drop_extra=True)
        datasets.add((await client.upload_dataset(frame)).dataset)
    assert len(datasets) == 1, "the same examples have the same bytes, whatever file they come from"


async def test_repetition_and_contradiction_are_reported_at_creation(trainer: RunningTrainer) -> None:
    rows = [{"input": f"film {number % 24}", "label": "good"} for number in range(72)]
    rows += [{"input": "film 3", "label": "bad"}, {"input": "Film 4!", "label": "bad"}]
    async with AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        job = await client.create_job(TuningSpec("tone", rows))
        found = job.dataset_statistics
        assert (
            found.num_distinct_inputs,
            found.num_duplicates,
            found.num_near_duplicates,
            found.num_contradictions,
        ) == (25, 48, 1, 4)
        notes = []
        async for event in client.watch_job(job.name):
            notes += [event.text] if isinstance(event, Note) else []
            if len(notes) == 3:
                break
    assert notes == [
        "48 of 74 examples repeat an earlier one exactly",
        "1 of 74 examples has nearly the input of an earlier one",
        "4 of 74 examples contradict another: one input, two labels, for example the examples 4 and 73",
    ]


async def test_what_the_trainer_refuses_is_named_by_row(trainer: RunningTrainer, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('input,output\n"two\nlines",b\nc,d\n' + "x" * 600 + ",y\n")
    async with AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        with pytest.raises(InvalidInput, match=r"dataset line 5: "):
            await client.create_job(TuningSpec("tone", path))
