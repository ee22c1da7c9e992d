"""Renames the fields of violations on their way from the parser to the caller.

The parser reports `line 4 output`, the dataset store `dataset line 4 output` (or `validation dataset ...`), and if the
examples came inside the request, the caller gets `spec.dataset.inline.examples[3].output`.
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
    """Rename the fields of violations raised in the block."""
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
    """`labels[2]` -> `spec.labels[2]`, for the message that contains the label set."""
    return lambda field: f"{message}.{field}" if field == "labels" or field.startswith("labels[") else field
