"""Log lines with the fields that they would be written with: those of their own and those that the task has bound."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.log import fields_of


@contextmanager
def log_lines(logger: str, message: str = "") -> Iterator[list[dict[str, Any]]]:
    """Fields of what `logger` says while the block runs, at INFO and above; `message`: only of such lines."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not message or record.getMessage() == message:
                lines.append(fields_of(record))  # now: what is bound changes

    heard, handler = logging.getLogger(logger), Keep()
    level = heard.level
    heard.addHandler(handler)
    heard.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        heard.removeHandler(handler)
        heard.setLevel(level)
