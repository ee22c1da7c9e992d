"""Logging with the standard library: one line per event, with fields such as job and request ids.

`bind(job=..., request_id=...)` adds fields to every line of the current task and of the tasks that it starts.
`log.info("published", extra={"fields": {...}})` adds fields to one line.
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
    """Add fields to every line logged inside the `with` block, in this task and in tasks that it starts."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, object]:
    """The fields that `bind` has added in this context."""
    return _bound.get()


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """All fields of a record: those of `bind` and those of `extra`."""
    own: Mapping[str, object] = getattr(record, "fields", {})
    return {**_bound.get(), **own}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, fields, and the traceback of an error."""

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
    """Lines for people: `12:00:00.123 INFO    message  key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={_one_line(str(value))}" for key, value in fields_of(record).items())
        text = f"{time} {record.levelname:<7} {_one_line(record.getMessage())}" + (f"  {fields}" if fields else "")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _one_line(text: str) -> str:
    """The text with control characters escaped: input of callers must not start a new line or move the cursor."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def configure(format: str = "console", level: str = "INFO") -> None:
    """Send all log lines to standard error in one format. Verbose libraries log only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for verbose in ("transformers", "httpx", "urllib3", "huggingface_hub", "alembic", "filelock"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    # It warns about every invalid header, so callers could fill the log.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
