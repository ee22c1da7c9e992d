"""Chromium for tests of the page, and a page that must log nothing and load nothing from elsewhere.

`conftest.py` makes the two fixtures of this module known.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.softprompt.gateway.running import World

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(
    not CHROMIUM, reason="LOUD: no Chromium (CHROMIUM names one); the page was not tried"
)
MILLISECONDS = 600_000
"""As long as pytest's timeout."""


@pytest.fixture(scope="module")  # no longer, because asyncio's tests can't run beside its event loop
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, services: World) -> Iterator[Page]:
    """A page that must log nothing on its console and load nothing from elsewhere."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    made = context.new_page()
    made.set_default_timeout(MILLISECONDS)
    complaints: list[str] = []
    requested: list[str] = []
    made.on("console", lambda message: complaints.append(message.text) if is_fault(message) else None)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("request", lambda request: requested.append(request.url))
    made.goto(services.url)
    yield made
    context.close()
    assert complaints == []
    assert [url for url in requested if not url.startswith(services.url)] == []


def is_fault(message: ConsoleMessage) -> bool:
    """Chromium reports each refused request as an error, also where the page explains it."""
    return message.type == "error" and not re.search(r"status of (400|404|413)", message.text)
