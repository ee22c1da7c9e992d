"""A small engine, whose bookkeeping is checked after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference_service.engine.engine import Engine
from tests.inference_service.engine.builders import build


@pytest.fixture
def engine() -> Iterator[Engine]:
    subject = build()
    yield subject
    subject.check_integrity()
