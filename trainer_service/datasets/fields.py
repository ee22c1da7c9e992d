"""How violations name what is wrong with a dataset, as it passes from parser to caller.

The parser says `line 4 output`; the dataset store `dataset line 4 output`; a job may have a `validation dataset` too;
and a caller who sent the examples inside the request reads `spec.dataset.inline.examples[3].output`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import FieldViolation, InvalidInput

DATASET, VALIDATION = "dataset", "validation dataset"
_LINE = re.compile(r"(?P<which>.*)line (?P<number>\d+)(?: (?P<part>.*))?")


@contextmanager
def renamed(rename: Callable[[str], str]) -> Iterator[None]:
    """Violations that leave the block have their fields renamed."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(
            [FieldViolation(rename(violation.field), violation.description) for violation in error.violations]
        ) from error


def in_dataset(which: str) -> Callable[[str], str]:
    """`line 4 output` -> `dataset line 4 output`, for DATASET or VALIDATION."""
    return lambda field: f"{which} {field}" if field.startswith("line ") else which if field == DATASET else field


def in_request(which: str, examples_field: str) -> Callable[[str], str]:
    """`dataset line 4 output` -> `spec.dataset.inline.examples[3].output`; other fields stay."""

    def rename(field: str) -> str:
        match = _LINE.fullmatch(field)
        if match is None or match["which"].strip() != which:
            return field
        return f"{examples_field}[{int(match['number']) - 1}]" + (f".{match['part']}" if match["part"] else "")

    return rename


def labels_under(message: str) -> Callable[[str], str]:
    """`labels[2]` -> `spec.labels[2]`: the message that has the label set."""
    return lambda field: f"{message}.{field}" if field == "labels" or field.startswith("labels[") else field
