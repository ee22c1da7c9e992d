"""`softprompt data check`, `preview` and `convert` on files as people have them, without a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.values.example import Example
from softprompt.data import checking
from softprompt.data.prepare import prepare
from softprompt.types.data import Data
from tests.softprompt.cli_runner import CliRunner
from trainer_service.training.data.dataset_facts import scan_examples

Write = Callable[[str, str | bytes], str]
NASTY = [
    {"input": "=1+1", "output": "007"},
    {"input": 'two\nlines, and "quotes"', "output": " spaces kept "},
    {"input": "tab\there; semicolon", "output": "é 😀 \u2028"},
    {"input": "null", "output": "NaN"},
    {"input": "1e5", "output": "TRUE"},
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("format", ["csv", "tsv", "xlsx", "parquet", "jsonl"])
@pytest.mark.parametrize(
    "rows",
    [
        NASTY,
        [{"input": "good", "label": "p"}, {"input": "bad", "label": "n, or not"}],
        [{"messages": [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c, d"}]}] * 2,
    ],
    ids=["generation", "classification", "chat"],
)
def test_every_format_holds_every_text(
    cli: CliRunner, write: Write, tmp_path: Path, format: str, rows: list[Any]
) -> None:
    there, back = str(tmp_path / f"out.{format}"), str(tmp_path / "back.jsonl")
    assert cli("data", "convert", write("in.jsonl", lines(*rows)), there).code == 0
    done = cli("data", "convert", there, back)
    assert (done.code, done.out.strip()) == (0, back)
    assert [json.loads(line) for line in Path(back).read_text().rstrip("\n").split("\n")] == rows


def test_the_trainer_counts_what_check_counts(write: Write) -> None:
    rows = [("good", "p"), ("bad", "n"), ("good ", "n"), ("good", "p"), ("Good!", "p"), ("fair " * 30, "p")]
    rows.append(("fair " * 29 + "fine", "p"))
    path = write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    found = checking.check(Data(path))
    content = prepare(path).content
    assert isinstance(content, bytes)
    facts = scan_examples(content.splitlines(keepends=True))
    assert found.repetition == facts.repetition
    assert (found.repetition.num_duplicates, found.repetition.num_contradictions) == (1, 3)
    assert found.contradiction == ("line 2", "line 4")
    assert found.labels == {"p": 5, "n": 2}
    assert found.finds_similar


def test_check_tells_each_problem_and_the_options_that_mend_the_file(cli: CliRunner, write: Write) -> None:
    path = write("a b.csv", 'id,text,label\n1,good,p\n2,,n\n3,bad,\n4,"x,n\n')
    refused = cli("data", "check", path)
    assert refused.code == 2
    assert f"hint: softprompt data check '{path}' --drop-extra" in refused.err
    refused = cli("data", "check", path, "--drop-extra")
    assert refused.code == 2
    assert "examples   1, classification" in refused.out
    assert [line.split()[:3] for line in refused.out.splitlines()[-3:]] == [
        ["line", "3", "text"],
        ["line", "4", "label"],
        ["line", "5", "has"],
    ]
    (report,) = cli("data", "check", path, "--drop-extra", "--json", "--problems", "1").json
    assert (report["num_problems"], report["problems"]) == (
        3,
        [{"place": "line 3", "part": "text", "reason": "is empty"}],
    )
    assert report["notes"][0] == "read as input = text, label = label"


def test_twenty_columns_are_refused_with_the_command_that_chooses_two(cli: CliRunner, write: Write) -> None:
    names = [f"column{number}" for number in range(20)]
    path = write("wide.csv", ",".join(names) + "\n" + ",".join(["word"] * 20) + "\n")
    for command in ("check", "preview", "convert"):
        refused = cli("data", command, path, *(["-"] if command == "convert" else []))
        assert refused.code == 2
        assert "--input column0" in refused.err
        assert "and 8 more" in refused.out + refused.err
    assert cli("data", "preview", path, "--input", "column3", "--output", "column7", "--drop-extra").code == 0


def test_latin_1_is_named_and_read(cli: CliRunner, write: Write) -> None:
    path = write("a.csv", "text,label\ncaf\xe9,p\nth\xe9,n\n".encode("latin-1"))
    refused = cli("data", "check", path)
    assert refused.code == 2
    assert "is not UTF-8: byte 0xe9 at character 4" in refused.out
    assert "--encoding cp1252" in refused.err
    assert cli("data", "check", path, "--encoding", "cp1252").code == 0
    assert json.loads(cli("data", "convert", path, "-", "--encoding", "latin-1").out.splitlines()[0])["input"] == "café"


def test_what_can_not_be_read_is_one_sentence(cli: CliRunner, write: Write, tmp_path: Path) -> None:
    for command in ("check", "preview"):
        assert (cli("data", command, str(tmp_path)).code, cli("data", command, str(tmp_path / "no.csv")).code) == (2, 3)
        for name, content in (("empty.csv", b""), ("header.csv", b"text,label\n"), ("binary.csv", b"\0\1\2")):
            refused = cli("data", command, write(name, content))
            assert refused.code == 2
            assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("", 2, "is a directory"),
        ("there.csv", 4, "exists; --overwrite replaces it"),
        ("no/such/out.csv", 3, "directory"),
        ("out.jsnl", 2, "do you mean 'jsonl'?"),
        ("out", 2, "none of the formats"),
    ],
)
def test_a_file_that_can_not_be_written_is_refused_at_once(
    cli: CliRunner, write: Write, tmp_path: Path, out: str, code: int, said: str
) -> None:
    write("there.csv", "old")
    refused = cli("data", "convert", write("a.jsonl", lines(*NASTY)), str(tmp_path / out))
    assert refused.code == code
    assert said in refused.err
    assert (tmp_path / "there.csv").read_text() == "old"
    assert cli("data", "convert", str(tmp_path / "a.jsonl"), "-", "--format", "xlsx").code == 2


def test_what_a_sheet_can_not_hold_is_named_and_leaves_no_file(cli: CliRunner, write: Write, tmp_path: Path) -> None:
    for text, said in (("x" * 40_000, "a cell of XLSX holds 32767"), ("bell \x07", "control character")):
        refused = cli(
            "data", "convert", write("a.jsonl", lines({"input": "a", "output": text})), str(tmp_path / "o.xlsx")
        )
        assert refused.code == 2
        assert "row 2 output: has " in refused.err
        assert said in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("disk"), "can't make the workbook, which needs space in /"),
        (ValueError("x"), "can't make the workbook: x"),
    ],
    ids=["disk", "other"],
)
@pytest.mark.parametrize("method", ["workbook.Workbook.save", "worksheet.worksheet.Worksheet.append"])
def test_an_error_of_the_writer_of_sheets_is_named(
    cli: CliRunner,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: Exception,
    said: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"openpyxl.{method}", fail)
    refused = cli("data", "convert", write("a.jsonl", lines(*NASTY)), str(tmp_path / "o.xlsx"))
    assert refused.code == 4
    assert said in refused.err


def test_a_pipe_is_no_file_to_overwrite(cli: CliRunner, write: Write, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    converted = cli("data", "convert", write("a.jsonl", lines(*NASTY)), str(pipe), "--format", "jsonl")
    reader.join()
    assert (converted.code, found[0].count(b"\n"), pipe.is_fifo()) == (0, len(NASTY), True)


def test_a_link_to_nowhere_is_not_followed_without_overwrite(cli: CliRunner, write: Write, tmp_path: Path) -> None:
    source, link, target = write("a.jsonl", lines(*NASTY)), tmp_path / "out.jsonl", tmp_path / "elsewhere"
    link.symlink_to(target)
    assert cli("data", "convert", source, str(link)).code == 4
    assert not target.exists()
    assert cli("data", "convert", source, str(link), "--overwrite").code == 0
    assert link.is_symlink()
    assert target.read_text().count("\n") == len(NASTY)


def test_a_file_in_a_directory_that_takes_no_file_is_replaced(
    cli: CliRunner, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, there = write("a.jsonl", lines(*NASTY)), tmp_path / "there.jsonl"
    there.touch()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) == there)
    assert cli("data", "convert", source, str(there), "--overwrite").code == 0
    refused = cli("data", "convert", source, str(tmp_path / "new.jsonl"))
    assert (refused.code, refused.err) == (4, f"error: {tmp_path} is not writable\n")


def test_a_file_can_be_replaced_by_itself(cli: CliRunner, write: Write) -> None:
    path = write("a.jsonl", lines(*NASTY))
    assert cli("data", "convert", path, path, "--overwrite").code == 0
    assert prepare(path).num_examples == len(NASTY)


def test_preview_shows_conversations_and_the_number_that_is_asked(cli: CliRunner, write: Write) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = write("a.jsonl", lines({"messages": turns}, {"messages": turns}))
    assert cli("data", "preview", path, "-n", "1").out == "line 1\n  user      hi\n  assistant ho\n"
    assert cli("data", "preview", path, "--json").json == [{"messages": turns}] * 2


def test_a_pipe_is_read_and_a_closed_output_ends_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "softprompt.cli", "data", "convert", "-", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"text,label\n" + b"".join(b"text %d,p\n" % number for number in range(50_000)))
        process.stdin.close()
        assert process.stdout.readline() == b'{"input": "text 0", "label": "p"}\n'
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 1
    assert b"Traceback" not in errors


def test_without_numpy_only_equal_words_are_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.text import repetition

    monkeypatch.setattr(repetition, "_has_numpy", lambda: False)
    counter = repetition.RepetitionCounter()
    for text in ("a good film", "A good film!"):
        counter.add(Example(text, output="x"))
    assert not counter.finds_similar
    assert counter.result().num_near_duplicates == 1


def test_labels_that_are_probably_misspelt_are_named(cli: CliRunner, write: Write) -> None:
    counts = {"negative": 54, "positive": 52, "negativ": 6}
    names = [label for label, count in counts.items() for _ in range(count)]
    path = write("labels.csv", "input,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(names)))
    outcome = cli("data", "check", path)
    assert outcome.code == 0
    assert "'negativ' (6) and 'negative' (54)" in outcome.out
    assert cli("data", "check", path, "--labels", "negative,positive").code == 2


def test_one_row_and_an_empty_column(cli: CliRunner, write: Write) -> None:
    outcome = cli("data", "check", write("a.jsonl", lines({"input": "a", "output": "b"}) + "{\n"))
    assert outcome.code == 2
    assert "1 row can't be used" in outcome.err
    assert "PROBLEM" in outcome.out
    assert "PART" not in outcome.out
    named = cli("data", "check", write("b.jsonl", lines({"input": "a", "output": "b"}, {"input": "a", "output": ""})))
    assert "PART" in named.out
