"""The reference pages are what the code says."""

from __future__ import annotations

from typing import Any

import pytest

from tests import cli_reference, proto_reference, python_reference, settings_reference

PAGES = {
    "commands": cli_reference,
    "settings": settings_reference,
    "Python": python_reference,
    "proto": proto_reference,
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_page_is_current(page: Any) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.reference(), f"run python -m {page.__name__}"
