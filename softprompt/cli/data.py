"""Examples on the command line: options that say how to read a file, what was read, and the command that mends what was not understood."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.output import stderr
from softprompt.types.data import Data

if TYPE_CHECKING:
    from softprompt.data.prepare import PreparedData
    from softprompt.types.tuning import DatasetStatistics

PANEL = "Data"
InputOption = Annotated[
    str, typer.Option("--input", metavar="COLUMN", help="Column of the inputs, if its name doesn't tell.", rich_help_panel=PANEL)
]
OutputOption = Annotated[str, typer.Option("--output", metavar="COLUMN", help="Column of the outputs, likewise.", rich_help_panel=PANEL)]
LabelOption = Annotated[str, typer.Option("--label", metavar="COLUMN", help="Column of the labels, likewise.", rich_help_panel=PANEL)]
MessagesOption = Annotated[
    str, typer.Option("--messages", metavar="COLUMN", help="Column of the conversations, likewise.", rich_help_panel=PANEL)
]
DropExtraOption = Annotated[
    bool, typer.Option("--drop-extra", help="Leave out columns that are not used, instead of refusing them.", rich_help_panel=PANEL)
]
EncodingOption = Annotated[
    str, typer.Option("--encoding", help="Of a text file that isn't UTF-8 or UTF-16, such as cp1252.", rich_help_panel=PANEL)
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels", help="Allowed labels, comma-separated; one with a comma in quotes: '\"Yes, please\",No'.", rich_help_panel=PANEL
    ),
]
_COMMANDS = (["tune"], ["datasets", "upload"])
"""Those that have the options above."""


def label_set(given: Sequence[str] | None) -> tuple[str, ...]:
    """The labels of one or several `--labels`, each a line of CSV."""
    lines = csv.reader(given or (), skipinitialspace=True)
    return tuple(label.strip() for line in lines for label in line if label.strip())


def read_examples(text: str, how: Data, labels: Sequence[str], which: str = "dataset") -> PreparedData | str:
    """A dataset name or URI as it is; a file, or `-` for standard input, read as `how` says. What was read is told on stderr."""
    from softprompt.data.prepare import prepare

    if text.startswith("datasets/sha256-") or "://" in text:
        return text
    prepared = prepare(replace(how, source="/dev/stdin" if text == "-" else text), labels, which)
    told = "".join(f"; {sentence}" for sentence in prepared.report)
    stderr().print(f"{prepared.name}: {prepared.num_examples} examples ({prepared.format}){told}", markup=False, soft_wrap=True)
    return prepared


def repetition(statistics: DatasetStatistics | None) -> list[str]:
    """What a job's creation counted, for those who don't follow the job and its notes."""
    if statistics is None:
        return []
    counts = {
        "examples that repeat an earlier one": statistics.num_duplicates,
        "examples with nearly the input of an earlier one": statistics.num_near_duplicates,
        "examples whose input also has another label": statistics.num_contradictions,
    }
    return [f"{sentence}: {count}" for sentence, count in counts.items() if count]


def mending_command(arguments: Sequence[str], fix: Mapping[str, str]) -> str:
    """The command of these arguments with options added or replaced. Of a command that lacks the options: where to give them."""
    options = [part for option, value in fix.items() for part in ((option, value) if value else (option,))]
    if not any(list(arguments[: len(command)]) == command for command in _COMMANDS):
        return f"softprompt datasets upload FILE {shlex.join(options)}   (and give the name that it prints)"
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.partition("=")[0] in fix:
            skip = not skip and argument in fix and bool(fix[argument])
        else:
            kept.append(argument)
    return shlex.join(["softprompt", *kept, *options])
