"""Files as people have them become the same examples, whatever they are written in."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import InvalidInput, NotFound
from softprompt import Data
from softprompt.data.checking import check
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import (
    ANSWER,
    COLUMNS,
    LINES,
    OBJECTS,
    QUESTION,
    ROWS,
    WANTED,
    csv_text,
    examples_of,
    to_parquet,
    written,
    xlsx,
)

FILES: dict[str, str | bytes | Callable[[Path], None]] = {
    "a.csv": csv_text(),
    "semicolons.csv": csv_text(";"),
    "declared.csv": "sep=;\n" + csv_text(";"),
    "excel.csv": b"\xef\xbb\xbf" + csv_text(";", "\r\n").encode(),
    "unicode.txt": csv_text("\t", "\r\n").encode("utf-16"),
    "no-mark.csv": csv_text().encode("utf-16-le"),
    "a.tsv": csv_text("\t"),
    "joined.csv": "\ufeff" + csv_text().rpartition('"7"')[0] + "\ufeff" + 'question,answer\n"7","x"\n',
    "a.xlsx": xlsx,
    "a.parquet": to_parquet,
    "array.json": json.dumps(OBJECTS),
    "pretty.json": json.dumps(OBJECTS, indent=2),
    "one-after-the-other.json": "\n".join(json.dumps(item, indent=2) for item in OBJECTS),
    "inside.json": json.dumps({"version": 1, "data": OBJECTS}),
    "columns.json": json.dumps({"question": [row[0] for row in ROWS], "answer": [row[1] for row in ROWS]}),
    "pandas.json": json.dumps(  # a DataFrame's `to_json`
        {name: {number: row[column] for number, row in enumerate(ROWS)} for column, name in enumerate(COLUMNS)}
    ),
    "a.jsonl": LINES,
    "windows.jsonl": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(),
    "utf-16.jsonl": LINES.encode("utf-16"),
    "joined.jsonl": "\ufeff"
    + LINES.rpartition('{"question": "7"')[0].rstrip("\n")
    + "\ufeff"
    + '{"question": "7", "answer": "x"}',
    "no-suffix": LINES,
    "dos.json": json.dumps({"data": OBJECTS}) + "\r\n\x1a",
    "dos.jsonl": LINES + "\x1a",
    "dos.csv": csv_text() + "\x1a",
    "block.jsonl": LINES.rstrip("\n") + "\x1a" * 60,
    "unseen.csv": csv_text().replace("question", "\u200bques\u200btion").replace("answer", "an\u00adswer\u200f"),
    "unseen.xlsx": lambda path: xlsx(path, ("Question\u200b", "\ufeffan\u2060swer", "\u200b")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_the_same_examples_come_of_every_kind_of_file(name: str, compressed: bool, tmp_path: Path) -> None:
    path = written(tmp_path / name, FILES[name])
    if compressed:
        path = written(tmp_path / f"{name}.gz", gzip.compress(path.read_bytes()))
    prepared = prepare(path)
    assert examples_of(prepared) == WANTED
    assert any("input = " in sentence for sentence in prepared.report)


def test_a_file_in_our_own_form_is_sent_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"input":"a","output":"b"}\n\n{"output":"d","input":"c"}\n')
    assert (prepare(path).content, prepare(path).num_examples) == (path, 2)
    lines = path.read_bytes()
    path.write_bytes(lines.replace(b"\n", b"\r\n"))
    assert prepare(path).content == path, "with line ends of Windows, too"
    path.write_bytes(lines.replace(b"\n", b"\r"))
    assert len(examples_of(prepare(path))) == 2, "but not with line ends that the trainer doesn't know"


def test_a_file_that_ends_as_those_of_dos_is_not_sent_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"input":"a","output":"b"}\r\n\x1a')
    assert examples_of(prepare(path)) == [{"input": "a", "output": "b"}], "the trainer's form has no Ctrl-Z"


@pytest.mark.parametrize("given", ["ti\u200btle", "title"])
def test_a_column_is_named_with_or_without_what_cannot_be_seen(given: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "ti\u200btle,label\na,b\n")
    assert examples_of(prepare(Data(str(path), input=given))) == [{"input": "a", "label": "b"}]


def test_an_empty_pipe_is_named_as_its_user_knows_it() -> None:
    stdin = os.dup(0)
    reading, writing = os.pipe()
    os.close(writing)
    os.dup2(reading, 0)
    try:
        for path, name in (("/dev/stdin", "standard input"), (f"/dev/fd/{reading}", f"'/dev/fd/{reading}'")):
            with pytest.raises(InvalidInput, match=f"^dataset: {name} is empty$"):
                prepare(path)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(reading)


def test_a_row_of_dashes_makes_no_markdown_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "input|output\n|-\na|b\n")
    with pytest.raises(InvalidInput, match="line 2 input: is empty"):
        prepare(path)


def test_a_pipe_of_the_shell_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, csv_text().encode())
    os.close(writing)
    assert examples_of(prepare(f"/dev/fd/{reading}")) == WANTED
    os.close(reading)


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("", "'empty.csv' is empty"),
    "header.csv": ("text,label\n", "has no examples, only a header"),
    "header.tsv": ("text\tlabel\n", "has no examples, only a header"),
    "short.csv": ("text,label,id\na,b\n", "line 2: has 2 cells, the header 3 (text, label, id): an empty cell needs"),
    "lines.csv": ('"in\nput",label\na,b\n', "it is in put='a', label='b'"),
    "a.yaml": ("- input: a\n  output: b\n", "is a YAML file: save it as JSON lines"),
    "yaml": ("---\n- input: a\n  output: b\n", "is a YAML file: save it as JSON lines"),
    "stream.arrow": (b"\xff\xff\xff\xff\x10\0\0\0", "is an Arrow file: save it as Parquet"),
    "a.csv.lz4": (b'\x04"M\x18abc', "is compressed with lz4"),
    "cut.csv.gz": (gzip.compress(csv_text().encode() * 100)[:-20], "is cut off or damaged"),
    "cut.json": ('[{"input": "a", "output": "b"}, {"inp', "is not JSON"),
    "cut.xlsx": (b"PK\x03\x04 and no more", "is cut off or damaged"),
    "cut.parquet": (b"PAR1 and no more", "can't be read as Parquet"),
    "old.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old format: save it as .xlsx or .csv"),
    "a.zip": (b"BZh91AY", "bunzip2"),
    "twice.csv.gz": (gzip.compress(gzip.compress(csv_text().encode())), "is compressed twice"),
    "a.tar": (b"a.csv" + bytes(252) + b"ustar\x0000" + bytes(300), "is a tar archive: unpack it first"),
    "a.tar.gz": (gzip.compress(b"a.csv" + bytes(252) + b"ustar  " + bytes(300)), "is a tar archive"),
    "page.csv": ("\ufeff\n <!DOCTYPE html>\n<html>Sign in</html>", "is a web page, perhaps of a login"),
    "table.xls": ("<table><tr><td>input</td></tr></table>", "is an HTML table: open it in a spreadsheet program"),
    "pointer.parquet": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
        "is a pointer of Git LFS and not the file: run `git lfs pull`",
    ),
    "title.csv": (
        "Reviews 2026,\n\ninput,label\na,x\nb,y\n",
        "line 3: has 2 cells, the header 1 (Reviews 2026): a cell with the delimiter in it must be in double quotes; "
        "if the first line is a title, delete it",
    ),
    "a.xml": ('<?xml version="1.0"?><rows/>', "is an XML file"),
    "a.rtf": (r"{\rtf1\ansi a,b}", "is a document of a word processor"),
    "old.pkl": (b"\x80\x02}q\x00.", "is a pickle"),
    "number.jsonl": (
        '{"input": ' + "9" * 5000 + '}\n{"input": "a", "output": "b"}\n',
        "line 1: has a number with too many digits",
    ),
    "noise": (bytes(range(256)) * 4, "has NUL bytes, as binary formats have"),
    "stray.csv": (b"input,label\na\0b,x\n", "or name the encoding of a text (--encoding utf-16-le)"),
    "program": (b"\x7fELF\x02\x01" + bytes(58) + b"\x90\x17\0\0" * 30, "has NUL bytes, as binary formats have"),
    "latin.csv": ("text,label\nschön,a\n".encode("latin-1"), "line 2: is not UTF-8: byte 0xf6 at character 4"),
    "secret.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "has a password or is of the old format of Excel"),
    "quote.csv": ('text,label\n"a,b\nc,d\n', 'line 2: has a quote (") that is never closed'),
    "cells.csv": ("text,label\na, b,c\n", "line 2: has 3 cells, the header 2"),
    "twice.csv": ("text,text\na,b\n", "names a column twice"),
    "deep.csv": ("messages\n" + "[" * 100_000 + "\n", "must be a list of turns"),
    "keys.jsonl": (
        '{"input": "a", "input": "b", "output": "c"}\n{"input": "a", "output": "c"}\n',
        "'input' is there twice",
    ),
    "digits.jsonl": (
        '{"input": "a", "digits": 1, "digits": 2}\n{"input": "a", "output": "c"}\n',
        "'digits' is there twice",
    ),
    "lists.jsonl": ('["a", "b"]\n["c", "d"]\n', "line 1: must be an object"),
    "turns.jsonl": ('[{"role": "user", "content": "a"}]\n' * 2, 'or {"messages": [...]}, not a list (also line 2)'),
    "one-line.json": ('[{"input": "a", "output": "b"}, {"input": "c" "output": "d"}]', "item 2: is not JSON"),
    "cut-line.json": (
        '[{"input": "a", "output": "b"}, {"input": "c", "output": "d"}',
        "item 2: the file ends inside the array",
    ),
    "cut-after-comma.json": ('[{"input": "a", "output": "b"},\n', "the file ends inside the array"),
    "cut-at-once.json": ("[", "the file ends inside the array"),
    "two-arrays.json": ('[{"input": "a", "output": "b"}] {"input": "c", "output": "d"}', "text follows the end"),
    "commas.jsonl": (
        '{"input": "a", "output": "b"},\n{"input": "c", "output": "d"}\n',
        "line 1: has a comma after the object: remove it",
    ),
    "table.md": (
        "| input | label |\n|:---|---|\n| a | b |\n",
        "is a Markdown table: save it as CSV",
    ),
    "table.json": ("input,output\na,b\n", "is not JSON, despite its name: if it is a table"),
    "empty.zip": (b"PK\x05\x06" + bytes(18), "is an empty archive"),
    "empty-cell.csv": ("text,label\na,\n", "line 2 label: is empty"),
    "mixed.jsonl": (
        '{"input": "a", "output": "b"}\n{"input": "a", "label": "b"}\n',
        "is classification, earlier examples are generation",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_file_of_examples_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, reason = MISTAKES[name]
    with pytest.raises(InvalidInput) as refused:
        prepare(written(tmp_path / name, content))
    assert reason in str(refused.value)
    assert len(refused.value.violations) == 1


def test_a_directory_names_its_files_and_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", csv_text())
    with pytest.raises(InvalidInput, match=r"is a directory; name one of its files, such as train\.csv"):
        prepare(tmp_path)
    (tmp_path / "link.csv").symlink_to("gone.csv")
    with pytest.raises(InvalidInput, match=r"is a link to 'gone\.csv', which does not exist"):
        prepare(tmp_path / "link.csv")
    for path in (tmp_path / "no.csv", tmp_path / "train.csv" / "x"):
        with pytest.raises(NotFound):
            prepare(path)
    for odd in ("a\0b", "x" * 5000):
        with pytest.raises(InvalidInput, match="can't read"):
            prepare(odd)


def test_a_url_is_no_path() -> None:
    for url in ("https://example.com/train.csv", "hf://datasets/a/b"):
        with pytest.raises(NotFound, match="a URL is not read: download the file and name it"):
            prepare(url)


def test_a_header_of_several_lines_decides_the_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '"Feedback\r\nof customers";label\r\n"a, b";x\r\nc;y\r\n')
    wanted = [{"input": "a, b", "label": "x"}, {"input": "c", "label": "y"}]
    assert examples_of(prepare(Data(path, input="Feedback\nof customers"))) == wanted


@pytest.mark.parametrize(("declared", "header"), [("^", "input^label, of both"), (";", "input;label, of both")])
def test_the_declared_delimiter_is_used(declared: str, header: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"sep={declared}\r\n{header}\r\na, b{declared}x\r\n")
    assert examples_of(prepare(Data(path, label="label, of both"))) == [{"input": "a, b", "label": "x"}]


def test_many_mistakes_make_one_message(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        '{"input": "a", "output": "b"}\n' + '{"input": "a"}\n' * 30 + '{"input": "a", "output": ""}\n',
    )
    with pytest.raises(UnusableData) as refused:
        prepare(path)
    first, second = refused.value.violations
    assert (first.field, second.field) == ("dataset line 2", "dataset line 32 output")
    assert first.description.endswith("(also lines 3, 4 and 27 more)")
    assert str(refused.value).startswith("a.jsonl: ")


def test_an_example_that_trainers_refuse_for_its_length_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"input,label\n{'x' * (1 << 20)},good\nshort,bad\n")
    found = check(Data(str(path)))
    assert ([problem.place for problem in found.problems], found.num_examples) == (["line 2"], 1)


PANDAS_FORMS = {
    "split": {"columns": ["question", "answer"], "index": [0, 1, 2], "data": ROWS},
    "index": {str(number): item for number, item in enumerate(OBJECTS)},
    "columns": {name: [item[name] for item in OBJECTS] for name in COLUMNS},
    "records": OBJECTS,
}


@pytest.mark.parametrize("orient", PANDAS_FORMS)
def test_every_form_of_to_json_of_pandas_that_names_columns_is_read(orient: str, tmp_path: Path) -> None:
    assert examples_of(prepare(written(tmp_path / "a.json", json.dumps(PANDAS_FORMS[orient])))) == WANTED


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"prompt": [QUESTION], "completion": [ANSWER]}, {"messages": [QUESTION, ANSWER]}),
        ({"input": "a", "output": "b", "spans": [{"start": 1}]}, {"input": "a", "output": "b"}),
        ({"text": "v1", "data": [{"input": "a", "output": "b"}]}, {"input": "a", "output": "b"}),
        (
            {"data": [{"input": "a", "output": "b"}], "authors": [{"name": "x"}], "prompt": "p"},
            {"input": "a", "output": "b"},
        ),
        ({"mails": [{"from": "x", "input": "a", "output": "b"}]}, {"input": "a", "output": "b"}),
    ],
)
def test_a_file_of_one_example_is_no_list_of_examples(
    document: dict[str, object], wanted: dict[str, object], tmp_path: Path
) -> None:
    assert examples_of(prepare(Data(written(tmp_path / "a.jsonl", json.dumps(document)), drop_extra=True))) == [wanted]


def test_numbered_columns_are_no_rows(tmp_path: Path) -> None:
    """`to_json` of a table that pandas read without a header."""
    table = {"0": {"0": "good", "1": "bad", "2": "fine"}, "1": {"0": "pos", "1": "neg", "2": "pos"}}
    data = Data(written(tmp_path / "a.json", json.dumps(table)), input="0", label="1")
    assert examples_of(prepare(data))[0] == {"input": "good", "label": "pos"}


def test_of_several_lists_of_examples_one_must_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps({"train": OBJECTS, "test": OBJECTS[:1]}))
    with pytest.raises(UnusableData, match="has several lists of examples: 'train', 'test'; save the one") as refused:
        prepare(path)
    assert not refused.value.fix


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("chosen", "rejected"),
        ("preferred_output", "non_preferred_output"),
        ("preferred", "unpreferred"),
        ("positive", "negative"),
    ],
)
def test_an_answer_that_was_rejected_is_never_advised(better: str, worse: str, tmp_path: Path) -> None:
    row = {"prompt": "Is it good?", better: "Yes, it is very good.", worse: "I refuse to say that here."}
    with pytest.raises(UnusableData) as refused:
        prepare(written(tmp_path / "a.jsonl", f"{json.dumps(row)}\n" * 2))
    assert refused.value.fix == {"--output": better, "--drop-extra": ""}


def test_python_dictionaries_are_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match=r"line 1: is a Python dictionary and not JSON: write it with json\.dumps"):
        prepare(written(tmp_path / "a.jsonl", f"{OBJECTS[0]}\n{OBJECTS[1]}\n"))


@pytest.mark.parametrize("around", ["\u200b", "\ufeff", "\u200f\u00a0", "\u3000", "\t"])
def test_what_cannot_be_seen_around_a_label_is_removed(around: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"input,label\na,good{around}\nb,{around}good\nc,bad\n")
    prepared = prepare(path)
    assert [example["label"] for example in examples_of(prepared)] == ["good", "good", "bad"]
    assert "labels without the space around them: 2" in prepared.report


def test_labels_that_look_the_same_are_told_however_many_they_are(tmp_path: Path) -> None:
    labels = ["caf\u00e9", "cafe\u0301", "so\u00adso", "soso", "Yes", "yes", "2", "3", "1", "1.0", "01"]
    path = written(tmp_path / "a.csv", "input,label\n" + "".join(f"{label} x,{label}\n" for label in labels))
    (note,) = check(Data(str(path))).repetition.label_notes
    assert "'1.0' (1) and '1' (1)" in note, "pandas writes so where a column has empty cells"
    assert note.startswith("labels that look the same but are different, with their examples: ")
    assert "'cafe\\u0301' (1) and 'caf\\xe9' (1), 'soso' (1) and 'so\\xadso' (1), '1.0' (1)" in note
