"""Excel sheets and Parquet: cells as the sheet shows them, sheets that are chosen, other formats, and limits."""

from __future__ import annotations

import re
import zipfile
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet

from shared.errors import InvalidInput
from softprompt import Data
from softprompt.data.checking import check
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import LABELLED, checked, examples_of, xlsx


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


def test_a_hidden_sheet_is_read_only_if_no_other_has_rows(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        book.active.sheet_state = "hidden"
        for row in LABELLED[:2]:
            book.create_sheet("Seen") if len(book.worksheets) == 1 else None
            book["Seen"].append(row)

    assert checked(tmp_path / "a.xlsx", LABELLED, hide).num_examples == 1


def test_hidden_rows_and_columns_are_read_and_counted(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        sheet = book["Sheet"]
        sheet.auto_filter.ref = "A1:B4"
        sheet.row_dimensions[2].hidden = sheet.row_dimensions[4].hidden = True
        sheet.column_dimensions["B"].hidden = True

    found = checked(tmp_path / "a.xlsx", LABELLED, hide)
    assert found.num_examples == 3
    assert found.notes == (
        "hidden or filtered rows are read, too: 2 (the first is row 2); hidden columns are read, too: B",
    )
    assert not checked(tmp_path / "b.xlsx", LABELLED, lambda book: None).notes
    assert prepare(tmp_path / "a.xlsx").report == found.notes


def test_many_hidden_columns_are_one_short_line_and_the_header_is_no_hidden_row(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        book["Sheet"].column_dimensions.group("C", "AZ", hidden=True)
        book["Sheet"].row_dimensions[1].hidden = True

    rows = [("input", "label", *(f"c{number}" for number in range(50))), ("a", "b", *["x"] * 50)]
    checked(tmp_path / "a.xlsx", rows, hide)
    notes = check(Data(str(tmp_path / "a.xlsx"), drop_extra=True)).notes
    assert "hidden columns are read, too: C, D, E, F, G and 45 more" in notes


def test_a_full_sheet_that_hides_nothing_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr("softprompt.data.sheets._hidden_and_empty", refuse)
    assert checked(tmp_path / "a.xlsx", LABELLED, lambda book: None).num_examples == 3


def test_what_a_sheet_that_is_not_read_hides_is_not_reported(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        book["Sheet"].column_dimensions["B"].hidden = True
        for row in LABELLED:
            book.create_sheet("Data") if len(book.worksheets) == 1 else None
            book["Data"].append(row)

    notes = checked(tmp_path / "a.xlsx", LABELLED[:1], hide).notes
    assert not any("hidden" in note for note in notes)


def test_hidden_rows_without_a_value_are_not_counted(tmp_path: Path) -> None:
    def hide(book: openpyxl.Workbook) -> None:
        for number in (9, 10):
            book["Sheet"].row_dimensions[number].hidden = True
        book["Sheet"].column_dimensions.group("X", "Z", hidden=True)

    assert not checked(tmp_path / "a.xlsx", LABELLED, hide).notes


@pytest.mark.parametrize("merge", [False, True], ids=["one cell", "merged"])
def test_a_title_above_the_header_is_named(tmp_path: Path, merge: bool) -> None:
    def change(book: openpyxl.Workbook) -> None:
        if merge:
            book["Sheet"].merge_cells("A1:B1")

    found = checked(tmp_path / "a.xlsx", [("Reviews 2026", None), *LABELLED], change)
    assert found.problems[0].reason == (
        "has 2 cells, the header 1 (Reviews 2026): every column needs a name; if the first line is a title, delete it"
    )


def test_a_whole_number_of_a_sheet_has_no_exponent(tmp_path: Path) -> None:
    found = checked(tmp_path / "a.xlsx", [("input", "label"), ("a", 1e16), ("b", 3.0), ("c", 0.5)], lambda book: None)
    assert set(found.labels) == {"10000000000000000", "3", "0.5"}


def test_postcodes_of_a_sheet_keep_the_zeros_that_it_shows(tmp_path: Path) -> None:
    def zip_codes(book: openpyxl.Workbook) -> None:
        sheet = book["Sheet"]
        sheet["B2"].number_format = sheet["B3"].number_format = "00000"

    found = checked(tmp_path / "a.xlsx", [("input", "label"), ("a", 1234), ("b", 98765), ("c", 1234)], zip_codes)
    assert set(found.labels) == {"01234", "98765", "1234"}


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
