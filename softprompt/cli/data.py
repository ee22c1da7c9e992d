"""Training examples on the command line: options for a file, a report, and the command that repairs a mistake."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from shared.errors import InvalidInput
from shared.text.counted import counted
from softprompt.cli.field_options import Command, replacing
from softprompt.cli.options import options_under
from softprompt.cli.output import stderr
from softprompt.types.data import VALIDATION_DATASET, Data

if TYPE_CHECKING:
    from shared.values.results import DatasetStatistics
    from softprompt.types.data import PreparedData

PANEL = "Data"
in_data = options_under(PANEL)

_OPTIONS: Mapping[str, Any] = {
    "input": Annotated[str, in_data(metavar="COLUMN", help="Column that holds the inputs, if not found by name.")],
    "output": Annotated[str, in_data(metavar="COLUMN", help="Column that holds the outputs.")],
    "label": Annotated[str, in_data(metavar="COLUMN", help="Column that holds the labels.")],
    "messages": Annotated[str, in_data(metavar="COLUMN", help="Column that holds the conversations.")],
    "drop_extra": Annotated[bool, in_data("--drop-extra", help="Ignore unused columns instead of refusing the file.")],
    "encoding": Annotated[
        str, in_data(help="Encoding of a text file that is neither UTF-8 nor UTF-16, such as cp1252.")
    ],
}
"""By the field of Data that they set."""
LabelsOption = Annotated[
    list[str] | None,
    in_data("--labels", help="Allowed labels, separated by commas. Quote a label with a comma: '\"Yes, please\",No'."),
]
_COLUMNS = {"--input", "--output", "--label", "--messages"}
_COMMANDS = (["tune"], ["datasets", "upload"], ["data", "check"], ["data", "preview"], ["data", "convert"])
"""Commands that have these options."""


def with_data_options(command: Command) -> Command:
    """Replace the argument `how` of a command by options for the fields of Data; its source stays empty."""
    defaults = {field.name: field.default for field in fields(Data)}
    return replacing("how", _OPTIONS, lambda given: Data("", **given), defaults)(command)


def label_set(given: Sequence[str] | None) -> tuple[str, ...]:
    """The labels of all `--labels` options; each option is one line of CSV. Raises InvalidInput for an option without a
    label, and for a repeated label.
    """
    from softprompt.data.prepare import checked_labels
    from softprompt.data.values import shown

    found: list[str] = []
    for line in given or ():
        try:
            cells = [cell.strip() for cells in csv.reader([line], skipinitialspace=True, strict=True) for cell in cells]
        except csv.Error as error:
            why = f"is not a line of CSV: {error}"
            if "new-line" in why:
                why = "has a line break: put the label in double quotes"
            raise InvalidInput.of("--labels", f"{shown(line)} {why}") from None
        if not any(cells):
            raise InvalidInput.of("--labels", "has no label: leave the option out to allow every label of the data")
        found += filter(None, cells)
    return checked_labels(found)


def source_of(text: str) -> str:
    """The path of an argument: `-` is standard input."""
    return "/dev/stdin" if text == "-" else text


def read_examples(text: str, how: Data, labels: Sequence[str], which: str = "dataset") -> PreparedData | str:
    """A dataset name or URI unchanged; the examples of a file or, for `-`, of standard input. Reports on stderr."""
    from softprompt.data.prepare import prepare
    from softprompt.data.problems import UnusableData

    if text.startswith("datasets/sha256-") or "://" in text:
        return text
    try:
        prepared = prepare(replace(how, source=source_of(text)), labels, which)
    except UnusableData as error:
        if which == VALIDATION_DATASET and error.fix.keys() & _COLUMNS:
            error.fix, error.advice = {}, "the column options are those of both files: rename the columns of this one"
        raise
    report = "".join(f"; {sentence}" for sentence in prepared.report)
    examples = counted(prepared.num_examples, "example")
    stderr().print(f"{prepared.name}: {examples} ({prepared.format}){report}", markup=False, soft_wrap=True)
    return prepared


def repetition(statistics: DatasetStatistics | None) -> list[str]:
    """Sentences about repeated and contradictory examples. A job that is followed shows them as notes instead."""
    if statistics is None:
        return []
    counts = {
        "examples that repeat an earlier one": statistics.num_duplicates,
        "examples with nearly the input of an earlier one": statistics.num_near_duplicates,
        "examples whose input also has another label": statistics.num_contradictions,
    }
    return [*statistics.label_notes, *(f"{sentence}: {count}" for sentence, count in counts.items() if count)]


def mending_command(arguments: Sequence[str], fix: Mapping[str, str]) -> str:
    """`arguments` with the options of `fix` added or replaced, or the command that has these options."""
    options = [part for option, value in fix.items() for part in ((option, value) if value else (option,))]
    if not any(list(arguments[: len(command)]) == command for command in _COMMANDS):
        return f"softprompt datasets upload FILE {shlex.join(options)}   (then use the name that it prints)"
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.partition("=")[0] in fix:
            skip = not skip and argument in fix and bool(fix[argument])
        else:
            kept.append(argument)
    return shlex.join(["softprompt", *kept, *options])
