"""Files as people have them become the same examples, whatever they are written in."""

from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from shared.errors import InvalidInput, NotFound
from softprompt import Data
from softprompt.data.checking import DataReport, check
from softprompt.data.inputs import input_columns, input_of
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from softprompt.types.data import PreparedData

COLUMNS = ("question", "answer")
ROWS = [("Wie heißt das?", "So, und so"), ('Say "hi"', "two\nlines"), ("7", "x")]
WANTED = [{"input": question, "output": answer} for question, answer in ROWS]


def csv_text(delimiter: str = ",", end: str = "\n") -> str:
    lines = [COLUMNS, *ROWS]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) + end for line in lines)


def xlsx(path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [(), ("Question ", "answer"), *ROWS[:2], (None, None), (7, "x")]:
        book.active.append(row)
    book.save(path)


def to_parquet(path: Path) -> None:
    questions, answers = zip(*ROWS, strict=True)
    parquet.write_table(pyarrow.table({"question": questions, "answer": answers}), path)


OBJECTS = [{"question": question, "answer": answer} for question, answer in ROWS]
LINES = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in OBJECTS)
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
}


def examples_of(prepared: PreparedData) -> list[dict[str, object]]:
    content = prepared.content if isinstance(prepared.content, bytes) else prepared.content.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines() if line]


def written(path: Path, content: str | bytes | Callable[[Path], None]) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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


def test_a_pipe_of_the_shell_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, csv_text().encode())
    os.close(writing)
    assert examples_of(prepare(f"/dev/fd/{reading}")) == WANTED
    os.close(reading)


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("", "'empty.csv' is empty"),
    "header.csv": ("text,label\n", "has no examples, only a header"),
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
    "lists.jsonl": ('["a", "b"]\n["c", "d"]\n', "line 1: must be an object"),
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


def test_a_document_of_another_program_is_no_archive(tmp_path: Path) -> None:
    for name, inner in (("a.docx", "[Content_Types].xml"), ("a.numbers", "Index/Document.iwa")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inner, "")
        with pytest.raises(InvalidInput, match="is a document of another program"):
            prepare(tmp_path / name)


def test_a_workbook_of_the_strict_format_is_refused_for_it(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (("input", "label"), ("a", "b")):
        book.active.append(row)
    book.save(tmp_path / "transitional.xlsx")
    office, strict = (
        b"http://schemas.openxmlformats.org/officeDocument/2006/",
        b"http://purl.oclc.org/ooxml/officeDocument/",
    )
    with zipfile.ZipFile(tmp_path / "transitional.xlsx") as old, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(office, strict))
    with pytest.raises(InvalidInput, match=r"has no sheet that can be read.*save it as CSV UTF-8"):
        prepare(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([1 << 60], pyarrow.timestamp("us")),
        pyarrow.array([1 << 30], pyarrow.date32()),
        pyarrow.array([b"\xff\xfe"]).view(pyarrow.string()),
    ],
    ids=["moment", "day", "bytes"],
)
def test_a_value_of_parquet_that_python_does_not_have_is_refused(column: Any, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"input": column, "label": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"'a\.parquet' can't be read as Parquet after row 0"):
        prepare(tmp_path / "a.parquet")


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "latin.csv", "text,label\nschön,a\n".encode("cp1252"))
    assert examples_of(prepare(Data(path, encoding="cp1252"))) == [{"input": "schön", "label": "a"}]
    for encoding in ("klingon", "rot13", "base64", "utf\0"):
        with pytest.raises(InvalidInput, match="is not a known encoding"):
            prepare(Data(path, encoding=encoding))
    with pytest.raises(InvalidInput, match="is not in UTF-16"):
        prepare(Data(path, encoding="utf-16"))


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


def test_an_error_in_a_cell_of_a_sheet_is_named(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (("text", "label"), ("a", "b"), ("c", "#N/A")):
        book.active.append(row)
    book["Sheet"]["B3"].data_type = "e"
    book.create_sheet("Notes").append(("x",))
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(InvalidInput, match=r"row 3: the cell B3 has the error #N/A"):
        prepare(tmp_path / "a.xlsx")


def test_other_sheets_are_named_if_the_first_is_not_understood(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "About"
    for row in (("File", "Colours"), ("Made by", "Petra")):
        book.active.append(row)
    book.create_sheet("Examples").append(("input", "output"))
    book.save(tmp_path / "two.xlsx")
    with pytest.raises(UnusableData) as refused:
        prepare(tmp_path / "two.xlsx")
    assert refused.value.advice == (
        "sheet 'About' is read; not 'Examples': save the sheet that you need as a separate file"
    )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('<row r="99999999999999"><c r="A2" t="inlineStr"><is><t>x</t></is></c></row>', "rows beyond 1048576"),
        ('<row><c r="XFD1"><v>1</v></c></row>' * 100, "more than 1000000 empty cells"),
    ],
    ids=["a row far away", "cells far away"],
)
def test_a_small_sheet_can_not_keep_a_reader_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, reason: str
) -> None:
    monkeypatch.setattr("softprompt.data.sheets._MAX_EMPTY_CELLS", 1_000_000)
    xlsx(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "a.xlsx") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (sheet,) = [name for name in parts if name.startswith("xl/worksheets/")]
    parts[sheet] = parts[sheet].replace(b"</sheetData>", rows.encode() + b"</sheetData>")
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InvalidInput, match=reason):
        prepare(tmp_path / "bomb.xlsx")


LABELLED = [("input", "label"), ("one", "good"), ("two", "bad"), ("three", "good")]


def checked(path: Path, rows: Sequence[tuple[Any, ...]], change: Callable[[openpyxl.Workbook], object]) -> DataReport:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    change(book)
    book.save(path)
    return check(Data(str(path)))


@pytest.mark.parametrize(
    ("content", "problems", "num_examples"),
    [
        (b'{"input": "a", "label": "x"}\n{"input": "b\xff", "label": "x"}\n{"input": 1}\n', [2, 3], 1),
        (b'input,label\na,x\n"two\nl\xe9nes",y\nb,x\n', [4], 2),
        (b"input,label,\xe9\na,x,1\nb\xe9,y,1\n", [1], 0),
        (b'[{"input": "a", "label": "x"},\n{"input": "\xe9", "label": "x"}]', [2], 0),
    ],
    ids=["lines", "a cell of two lines", "header", "document"],
)
def test_a_row_of_an_unknown_encoding_is_counted_once(
    tmp_path: Path, content: bytes, problems: list[int], num_examples: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    found = check(Data(str(path)))
    assert [problem.place for problem in found.problems] == [f"line {line}" for line in problems]
    assert (found.num_problems, found.num_examples) == (len(problems), num_examples)
    assert found.fix == {"--encoding": "cp1252"}


def test_an_example_that_trainers_refuse_for_its_length_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"input,label\n{'x' * (1 << 20)},good\nshort,bad\n")
    found = check(Data(str(path)))
    assert ([problem.place for problem in found.problems], found.num_examples) == (["line 2"], 1)


def test_empty_cells_of_a_sheet_are_explained(tmp_path: Path) -> None:
    merged = checked(tmp_path / "merged.xlsx", LABELLED, lambda book: book.active.merge_cells("B2:B4"))
    assert [problem.place for problem in merged.problems] == ["row 3", "row 4"]
    assert re.fullmatch(r"merged cells [^;]*\(B2:B4\)", merged.advice)
    formula = checked(tmp_path / "formula.xlsx", [*LABELLED, ("four", '=IF(A2="x","good","bad")')], lambda book: None)
    assert [problem.place for problem in formula.problems] == ["row 5"]
    assert re.fullmatch(r"formulas without a saved value [^;]*\(B5\)", formula.advice)
    whole_row = checked(tmp_path / "row.xlsx", [*LABELLED, ("=1+1", "=A2")], lambda book: None)
    assert any("formulas without a saved value" in note for note in whole_row.notes)
    with pytest.raises(UnusableData) as refused:
        prepare(str(tmp_path / "formula.xlsx"))
    assert "B5" in refused.value.advice


def test_dates_of_a_sheet_have_no_time_unless_the_cell_shows_one(tmp_path: Path) -> None:
    rows = [("input", "label"), ("a", date(2026, 3, 5)), ("b", datetime(2026, 3, 5, 0, 0)), ("c", "x")]
    assert set(checked(tmp_path / "a.xlsx", rows, lambda book: None).labels) == {
        "2026-03-05",
        "2026-03-05T00:00:00",
        "x",
    }


def test_control_characters_of_a_sheet_are_not_read_as_excel_escapes_them(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [("input", "label"), ("one_x000D_\ntwo", "x"), ("snake_x000d_case_x0041_ _x005F_x000D_", "y")]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert [example["input"] for example in examples_of(prepare(tmp_path / "a.xlsx"))] == [
        "one\r\ntwo",
        "snake\rcase_x0041_ _x000D_",
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quotes_may_begin_after_spaces(delimiter: str, tmp_path: Path) -> None:
    header, plain = delimiter.join(("input", ' "label"')), delimiter.join(("hello", " positive"))
    quoted = delimiter.join((f'"one{delimiter} two"', '  "negative"'))
    text = delimiter.join((f'"say{delimiter} ""so"""', "negative"))
    path = written(tmp_path / "a.csv", "\n".join([header, plain, quoted, text, '"two', f'lines{delimiter} ""x"""']))
    path.write_text(path.read_text() + f'{delimiter}"positive"\n')
    assert [tuple(example.values()) for example in examples_of(prepare(path))] == [
        ("hello", "positive"),
        (f"one{delimiter} two", "negative"),
        (f'say{delimiter} "so"', "negative"),
        (f'two\nlines{delimiter} "x"', "positive"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_quotes_after_spaces_are_read_in_the_first_cell_and_in_a_row_of_several_lines(
    delimiter: str, tmp_path: Path
) -> None:
    rows = [("input", "output"), (f' "one{delimiter} two"', "a"), ('"two\nlines"', ' "b"'), (' "three"', '"c\nd"')]
    path = written(tmp_path / "a.csv", "\n".join(map(delimiter.join, rows)))
    assert [tuple(example.values()) for example in examples_of(prepare(path))] == [
        (f"one{delimiter} two", "a"),
        ("two\nlines", "b"),
        ("three", "c\nd"),
    ]
    path = written(tmp_path / "a.csv", f'input{delimiter}output\nhello{delimiter} "two\nlines{delimiter} more"\n')
    with pytest.raises(UnusableData, match=r"line 2: has a quote .* after a space that is not closed on the same line"):
        prepare(path)


QUESTION, ANSWER = {"role": "user", "content": 'it\'s "new"\nline'}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
def test_conversations_in_cells_are_read_as_json_and_as_pandas_writes_them(
    write: Callable[[object], str], tmp_path: Path
) -> None:
    wanted = [{"messages": [QUESTION, ANSWER]}]
    chat, trl = pd.DataFrame({"messages": [write([QUESTION, ANSWER])]}), tmp_path / "trl.csv"
    chat.to_csv(tmp_path / "a.csv", index=False)
    assert examples_of(prepare(tmp_path / "a.csv")) == wanted
    pd.DataFrame({"prompt": [write([QUESTION])], "completion": [write([ANSWER])]}).to_csv(trl, index=False)
    assert examples_of(prepare(trl)) == wanted
    row = pd.read_csv(trl).to_dict("records")[0]
    assert input_of(row, input_columns(list(row))) == [QUESTION]
    label = written(tmp_path / "label.jsonl", json.dumps({"input": write([QUESTION]), "label": "x"}) + "\n")
    assert examples_of(prepare(label)) == [{"input": write([QUESTION]), "label": "x"}], "a text with a label stays one"


@pytest.mark.parametrize("write", [json.dumps, str, list], ids=["JSON", "Python", "list"])
def test_a_conversation_in_a_column_of_any_name_is_asked_as_it_is_learned(write: Callable[[object], Any]) -> None:
    """Learned with `--messages dialog`, asked with `--input dialog`."""
    row = {"id": 1, "dialog": write([QUESTION, ANSWER])}
    assert examples_of(prepare(Data([row], messages="dialog", drop_extra=True))) == [{"messages": [QUESTION, ANSWER]}]
    assert input_of(row, input_columns(list(row), "dialog")) == [QUESTION]
    labelled = {"text": str([QUESTION]), "label": "x"}
    assert input_of(labelled, input_columns(list(labelled))) == labelled["text"]


@pytest.mark.parametrize("columns", [("messages",), ("prompt", "completion")])
def test_arrays_of_turns_that_pandas_wrote_are_refused_in_a_sentence(columns: tuple[str, ...], tmp_path: Path) -> None:
    cell = str(np.array([QUESTION, ANSWER], dtype=object))  # without commas
    pd.DataFrame({name: [cell] * 3 for name in columns}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UnusableData, match=r"this looks like a Python value: write it with json\.dumps") as refused:
        prepare(tmp_path / "a.csv")
    assert len(refused.value.violations) == 1


def test_a_turn_may_say_the_same_under_both_names(tmp_path: Path) -> None:
    both = {"role": "user", "from": "human", "content": "a", "value": "a"}
    assert examples_of(prepare([{"messages": [both, ANSWER]}])) == [
        {"messages": [{"role": "user", "content": "a"}, ANSWER]}
    ]
    for name, other in (("from", "gpt"), ("value", "b")):
        with pytest.raises(InvalidInput, match=f"has '{name}' beside role and content"):
            prepare([{"messages": [{**both, name: other}, ANSWER]}])


UNMARKED = {
    "Chinese": ("这个产品非常好用，我很喜欢", "好"),
    "Japanese": ("これは、とても\u3000良い", "良い"),
    "Russian": ("Это очень хороший товар", "да"),
    "Gurmukhi": ("ਇਹ ਬਹੁਤ ਵਧੀਆ ਹੈ", "ਹਾਂ"),
    "emoji": ("\U0001f44d\U0001f3fd" * 9, "\U0001f44d"),
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("script", UNMARKED)
def test_utf_16_without_a_mark_is_read_in_any_script(script: str, encoding: str, tmp_path: Path) -> None:
    text, label = UNMARKED[script]
    wanted = [{"input": text * count, "label": label} for count in (1, 300, 2)]
    lines = [json.dumps(example, ensure_ascii=False) for example in wanted]
    table = "".join(f'"{example["input"]}",{label}\r\n' for example in wanted)
    files = {"a.csv": "input,label\r\n" + table, "a.jsonl": "\n".join(lines), "a.json": f"[{','.join(lines)}]"}
    for name, content in files.items():
        prepared = prepare(written(tmp_path / name, content.encode(encoding)))
        assert examples_of(prepared) == wanted
        assert encoding.upper() in prepared.format


def test_a_hidden_sheet_is_read_only_if_no_other_has_rows(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        book.active.sheet_state = "hidden"
        for row in LABELLED[:2]:
            book.create_sheet("Seen") if len(book.worksheets) == 1 else None
            book["Seen"].append(row)

    assert checked(tmp_path / "a.xlsx", LABELLED, hide).num_examples == 1


@pytest.mark.parametrize("name", ["a.csv", "a.xlsx"])
def test_a_column_that_is_named_twice_is_one_problem(tmp_path: Path, name: str) -> None:
    rows = [("input", "input", "label"), *([("a", "b", "c")] * 9)]
    if name == "a.xlsx":
        found = checked(tmp_path / name, rows, lambda book: None)
    else:
        (tmp_path / name).write_text("\n".join(",".join(map(str, row)) for row in rows))
        found = check(Data(str(tmp_path / name)))
    assert ["names a column twice" in problem.reason for problem in found.problems] == [True]


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


def test_postcodes_of_a_sheet_keep_the_zeros_that_it_shows(tmp_path: Path) -> None:
    def zip_codes(book: openpyxl.Workbook) -> None:
        sheet = book["Sheet"]
        sheet["B2"].number_format = sheet["B3"].number_format = "00000"

    found = checked(tmp_path / "a.xlsx", [("input", "label"), ("a", 1234), ("b", 98765), ("c", 1234)], zip_codes)
    assert set(found.labels) == {"01234", "98765", "1234"}


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("schön “gut”", "cp1252", "cp1252"),
        ("привет", "cp1251", ""),
        ("你好，世界", "gb18030", ""),
        ("日本", "shift_jis", ""),
    ],
)
def test_an_encoding_is_advised_only_where_it_is_likely(text: str, encoding: str, named: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"input,label\n{text},a\n".encode(encoding))
    with pytest.raises(UnusableData, match="line 2: is not UTF-8: byte") as refused:
        prepare(path)
    assert refused.value.fix == ({"--encoding": named} if named else {})
    assert (named or "such as cp1251 (Cyrillic), gb18030 (Chinese) or shift_jis") in refused.value.advice
    assert check(Data(str(path))).fix == refused.value.fix
    assert examples_of(prepare(Data(path, encoding=encoding)))[0]["input"] == text


def test_a_byte_that_the_named_encoding_does_not_have_is_no_matter_of_utf_8(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"input,label\na\x81b,x\n")
    with pytest.raises(UnusableData, match="line 2: is not CP1252: byte 0x81 at character 2") as refused:
        prepare(Data(path, encoding="cp1252"))
    assert not refused.value.fix, "it is the encoding that was named"
