"""The same examples in files of every kind, and what the client makes of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
from pyarrow import parquet

from softprompt import Data
from softprompt.data.checking import DataReport, check
from softprompt.types.data import PreparedData

COLUMNS = ("question", "answer")
ROWS = [("Wie heißt das?", "So, und so"), ('Say "hi"', "two\nlines"), ("7", "x")]
WANTED = [{"input": question, "output": answer} for question, answer in ROWS]
QUESTION, ANSWER = {"role": "user", "content": 'it\'s "new"\nline'}, {"role": "assistant", "content": "b"}


def csv_text(delimiter: str = ",", end: str = "\n") -> str:
    lines = [COLUMNS, *ROWS]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) + end for line in lines)


def xlsx(path: Path, header: tuple[str, ...] = ("Question ", "answer")) -> None:
    book = openpyxl.Workbook()
    for row in [(), header, *ROWS[:2], (None, None), (7, "x")]:
        book.active.append(row)
    book.save(path)


def to_parquet(path: Path) -> None:
    questions, answers = zip(*ROWS, strict=True)
    parquet.write_table(pyarrow.table({"question": questions, "answer": answers}), path)


OBJECTS = [{"question": question, "answer": answer} for question, answer in ROWS]
LINES = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in OBJECTS)


def examples_of(prepared: PreparedData) -> list[dict[str, object]]:
    content = prepared.content if isinstance(prepared.content, bytes) else prepared.content.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines() if line]


def written(path: Path, content: str | bytes | Callable[[Path], None]) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LABELLED = [("input", "label"), ("one", "good"), ("two", "bad"), ("three", "good")]


def checked(path: Path, rows: Sequence[tuple[Any, ...]], change: Callable[[openpyxl.Workbook], object]) -> DataReport:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    change(book)
    book.save(path)
    return check(Data(str(path)))
