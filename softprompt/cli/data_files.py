"""`softprompt data`: check, preview and convert files of examples on this machine, without a service."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.text.counted import counted
from softprompt.cli.data import LabelsOption, label_set, mending_command, read_examples, source_of, with_data_options
from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import print_json, show, show_facts, stderr, table
from softprompt.types.data import Data
from softprompt.types.type_names import listed

app = typer.Typer(no_args_is_help=True)
FileArgument = Annotated[
    str, typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON or JSON lines, may be gzipped; - reads standard input.")
]
_LABELS_SHOWN = 20


@app.command(epilog=example("softprompt data check train.csv --input question --output answer"))
@with_data_options
def check(
    file: FileArgument,
    *,
    how: Data,
    labels: LabelsOption = None,
    problems: Annotated[int, typer.Option(min=0, max=1000, help="Largest number of problems to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show which columns are read as what, problems by row, lengths, labels, duplicates and contradictions."""
    from dataclasses import replace

    from softprompt.data import checking

    found = checking.check(replace(how, source=source_of(file)), label_set(labels))
    if as_json:
        print_json(replace(found, problems=found.problems[:problems]))
    else:
        _show_report(found)
        first = found.problems[:problems]
        has_parts = any(problem.part for problem in first)
        shown = table("PLACE", *(["PART"] if has_parts else []), "PROBLEM")
        for problem in first:
            shown.add_row(problem.place, *([problem.part] if has_parts else []), problem.reason)
        if first:
            show(shown)
        if (rest := found.num_problems - len(first)) and problems:
            show(f"and {rest} more")
    hint = "; ".join(filter(None, (mending_command(sys.argv[1:], found.fix) if found.fix else "", found.advice)))
    if found.num_problems:
        raise Failure(f"{found.name}: {counted(found.num_problems, 'row')} can't be used", EXIT_INVALID, hint)
    if not found.num_examples:
        raise Failure(f"{found.name} has no examples", EXIT_INVALID)


@app.command(epilog=example("softprompt data preview train.xlsx --rows 3"))
@with_data_options
def preview(
    file: FileArgument,
    *,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of examples to show.")] = 5,
    how: Data,
    as_json: JsonOption = False,
) -> None:
    """Show the first examples as the model learns them."""
    from softprompt.data.checking import examples_in
    from softprompt.data.examples import ExampleReader
    from softprompt.data.files import file_rows
    from softprompt.data.problems import Unusable

    source, reader, num_shown = file_rows(source_of(file), how, "dataset"), ExampleReader(how, ()), 0
    for number, found in examples_in(source, reader):
        if num_shown == rows:
            break
        num_shown += 1
        place = str(source.place(number))
        if isinstance(found, Unusable):
            problem = " ".join(filter(None, (found.part, found.reason)))
            if fix := reader.layouts.fix:
                hint = mending_command(sys.argv[1:], fix)
                raise Failure(f"{source.name} {place}: {problem}", EXIT_INVALID, hint)
            stderr().print(f"{place}: {problem}", markup=False, soft_wrap=True)
        elif as_json:
            print_json(found)
        else:
            _show_example(place, found)
    if not num_shown:
        raise Failure(f"{source.name} has no examples", EXIT_INVALID)


@app.command(epilog=example("softprompt data convert train.xlsx train.jsonl"))
@with_data_options
def convert(
    file: FileArgument,
    *,
    to: Annotated[
        str, typer.Argument(metavar="OUT", help="File to write: .jsonl, .csv, .tsv, .xlsx, .parquet; - is stdout.")
    ],
    format: Annotated[
        str, typer.Option(help="Format. By default the ending of OUT decides: jsonl, csv, tsv, xlsx, parquet.")
    ] = "",
    how: Data,
    labels: LabelsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write the examples in another format: with the columns input and output, input and label, or messages."""
    from softprompt.data.writing import STANDARD_OUTPUT, check_output, format_of, write_rows
    from softprompt.types.data import PreparedData

    check_output(to, overwrite)
    chosen = format_of(to, format)
    prepared = read_examples(file, how, label_set(labels))
    if not isinstance(prepared, PreparedData):
        raise Failure(f"{file} is not a file on this machine: download it first", EXIT_INVALID)
    examples = _examples(prepared.content)
    with closing(examples):
        first = next(examples)
        write_rows(to, chosen, list(first), chain([first], examples), overwrite=overwrite)
    if to != STANDARD_OUTPUT:
        show(to)


def _examples(content: Path | bytes) -> Generator[dict[str, Any]]:
    """Each example of prepared data, with its fields in the same order."""
    with content.open("rb") if isinstance(content, Path) else BytesIO(content) as lines:
        for line in lines:
            if line.strip():
                fields = json.loads(line.decode("utf-8-sig"))
                yield {name: fields[name] for name in ("input", "output", "label", "messages") if name in fields}


def _show_report(found: Any) -> None:
    facts = {
        "file": f"{found.name} ({found.format})" if found.format else found.name,
        "examples": f"{found.num_examples}" + (f", {found.task}" if found.task else ""),
        "labels": listed([f"{label} {count}" for label, count in found.labels.items()], _LABELS_SHOWN),
        "inputs": _lengths(found.inputs),
        "targets": _lengths(found.targets),
    }
    show_facts(facts)
    repetition = found.repetition
    counts = {
        ("repeats", "repeat", "an earlier one exactly"): repetition.num_duplicates,
        ("has", "have", "nearly the input of an earlier one"): repetition.num_near_duplicates,
        ("has", "have", "an input that also has another label"): repetition.num_contradictions,
    }
    for (one, several, what), count in counts.items():
        if count:
            show(f"{'':<11}{counted(count, 'example')} {one if count == 1 else several} {what}")
    if found.contradiction:
        show(f"{'':<11}contradicting, for example: {' and '.join(found.contradiction)}")
    if not found.finds_similar and found.num_examples:
        show(f"{'':<11}similar inputs were not looked for: numpy is missing, or there is too much text")
    for sentence in (*repetition.label_notes, *found.notes):
        show(f"{'note':<11}{sentence}")


def _lengths(found: Any) -> str:
    return f"{found.shortest} to {found.longest} characters, median {found.median:g}" if found else ""


def _show_example(place: str, fields: Mapping[str, Any]) -> None:
    show(place)
    for turn in fields.get("messages", ()):
        show(f"  {turn['role']:<10}{turn['content']}")
    for name in ("input", "output", "label"):
        if name in fields:
            show(f"  {name:<10}{fields[name]}")
