"""Logging: the standard library, one line an event, with the ids of what the line is about.

`bind(job=..., request_id=...)` puts fields into every line of the current task and of what it awaits. Fields given as
`log.info("published", extra={"fields": {...}})` belong to one line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_bound: ContextVar[Mapping[str, object]] = ContextVar("softprompt_log_fields", default={})  # noqa: B039 - never mutated


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add fields to every line logged inside, in this task and those that it starts."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, object]:
    return _bound.get()


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    own: Mapping[str, object] = getattr(record, "fields", {})
    return {**_bound.get(), **own}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, fields, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """`12:00:00.123 INFO  message key=value ...` for people."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={_one_line(str(value))}" for key, value in fields_of(record).items())
        text = f"{time} {record.levelname:<7} {_one_line(record.getMessage())}" + (f"  {fields}" if fields else "")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _one_line(text: str) -> str:
    """What a caller sent can neither begin a line of its own nor move the terminal's cursor."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def configure(format: str = "console", level: str = "INFO") -> None:
    """Send all logging to standard error in one format. Libraries that chatter are kept to warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatterer in ("transformers", "httpx", "urllib3", "huggingface_hub", "alembic", "filelock"):
        logging.getLogger(chatterer).setLevel(logging.WARNING)
    logging.getLogger("opentelemetry.trace").setLevel(
        logging.ERROR
    )  # it warns of every bad header, so callers could fill the log
