"""Log lines contain the ids of their subject."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from shared import log as logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger("tests.log")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)


def test_bound_fields_are_in_every_line_inside(lines: io.StringIO) -> None:
    log = logging.getLogger("tests.log")
    with logs.bind(job="j1"), logs.bind(request_id="r1"):
        log.info("inside", extra={"fields": {"step": 3}})
    log.info("outside")
    inside, outside = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (inside["job"], inside["request_id"], inside["step"], inside["message"]) == ("j1", "r1", 3, "inside")
    assert "job" not in outside


def test_an_exception_is_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("what happened")
    except ValueError:
        logging.getLogger("tests.log").exception("failed")
    (line,) = lines.getvalue().splitlines()
    assert "what happened" in json.loads(line)["exception"]


def test_a_callers_text_can_not_forge_a_line() -> None:
    fields = {"prompt": "x\n12:00:00.000 INFO    audit  caller=admin\x1b[2J"}
    record = logging.makeLogRecord({"msg": "refused: %s", "args": ("a\r\nb",), "levelname": "INFO", "fields": fields})
    for formatter in (logs.ConsoleFormatter(), logs.JsonFormatter()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line


def test_the_console_format_is_readable() -> None:
    record = logging.makeLogRecord({"msg": "published", "levelname": "INFO", "fields": {"version": 3}})
    assert logs.ConsoleFormatter().format(record).endswith("INFO    published  version=3")
