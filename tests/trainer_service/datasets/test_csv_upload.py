"""CSV over gRPC: parsed strictly, stored as JSON lines, refused with its own line numbers."""

from __future__ import annotations

import itertools
import json
from typing import Any

from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.conftest import RunningTrainer, refused
from tests.trainer_service.requests import upload_of

CSV = pb.DatasetHeader.FORMAT_CSV
ROWS = [
    {"input": 'Say "hi", please', "output": "two\nlines"},
    {"input": "ä", "output": "b"},
    {"input": "c", "output": "d"},
]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def text(end: str = "\n") -> bytes:
    lines = ["output,input", *[f"{quoted(row['output'])},{quoted(row['input'])}" for row in ROWS[:2]], "", "d,c"]
    return end.join(lines).encode()


async def test_csv_becomes_the_json_lines_that_it_means(trainer: RunningTrainer) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    same = await trainer.tuning.UploadDataset(upload_of(lines))
    for chunk_bytes, end in itertools.product((1, 7, 1 << 16), ("\n", "\r\n", "\r\r\n")):
        stored = await trainer.tuning.UploadDataset(upload_of(b"\xef\xbb\xbf" + text(end), chunk_bytes, format=CSV))
        assert (stored.dataset, stored.num_examples) == (same.dataset, 3)


async def test_line_breaks_and_byte_order_marks_are_read_as_the_client_reads_them(trainer: RunningTrainer) -> None:
    same = await trainer.tuning.UploadDataset(upload_of(b'{"input": "two\\nlines", "output": "b"}\n'))
    for content in (b'input,output\r\n"two\r\nlines",b\r\n', b'input,output\n\xef\xbb\xbf"two\nlines",b\n'):
        stored = await trainer.tuning.UploadDataset(upload_of(content, format=CSV))
        assert stored.dataset == same.dataset


WRONG: list[tuple[bytes, dict[str, Any], str]] = [
    (b"text,label\na,b\n", {}, "dataset line 1: must be the header"),
    (b"input,output,id\na,b,c\n", {}, "dataset line 1: must be the header"),
    (b"input,output\na,b,c\n", {}, "dataset line 2: has 3 cells"),
    (b'input,output\n"two\nlines",b\nc,\n', {}, "dataset line 4 output: is empty"),
    (b'input,output\na,"b\nc,d\n', {}, "dataset line 2: has a quote that is never closed"),
    (b'input,output\na"b"c","d\n', {}, "dataset line 2: is not CSV"),
    (b'input,output\na, "b"\n', {}, "dataset line 2: has a space before a quoted cell: remove the space"),
    (b'input,output\n "a, c",b\n', {}, "dataset line 2: has a space before a quoted cell"),
    (b'input,output\n "a",b\n', {}, "dataset line 2: has a space before a quoted cell"),
    (b'input,output\n"two\nlines", "b"\n', {}, "dataset line 2: has a space before a quoted cell"),
    (b'input,output\na, "two\nlines"\n', {}, "dataset line 2: has a space before a quoted cell"),
    (b'input,output\n5" wide,b\n6" wide,c\n', {}, "dataset line 2: is not CSV: it has a line break outside quotes"),
    (b"input,output\na,b\ninput,output\nc,d\n", {}, "dataset line 3: repeats the header"),
    (b"input,output\na,\xff\n", {}, "dataset line 2: is not UTF-8 (byte 3)"),
    (b"input,output\na,b\n", {"size_bytes": 5}, "header.size_bytes: announced 5 bytes, 17 arrived"),
    (b"input,output\na,b\n", {"digest": "sha256:" + 64 * "0"}, "header.digest: announced"),
    (b"input,output\na,b\n", {"format": 9}, "header.format: 9 is not known"),
    (b"input,output\n", {}, "dataset: has no examples"),
]


async def test_what_is_wrong_is_refused_by_its_own_line(trainer: RunningTrainer) -> None:
    for content, header, reason in WRONG:
        error = await refused(trainer.tuning.UploadDataset(upload_of(content, **{"format": CSV, **header})))
        assert reason in str(error)


async def test_a_record_without_end_is_refused_before_the_rest_arrives(trainer: RunningTrainer) -> None:
    error = await refused(trainer.tuning.UploadDataset(upload_of(b'input,output\na,"' + b"\n" * (3 << 20), format=CSV)))
    assert "dataset line 2: is longer than 1048576 bytes" in str(error)
