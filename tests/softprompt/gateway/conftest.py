"""One gateway with its services for all tests of this folder, and OpenAI's client for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from inference_service.engine.engine import Engine
from shared.text.template import Template, TemplateFormat
from tests.inference_service.replica import blob, matrix, publish
from tests.softprompt.gateway.browser import browser as browser
from tests.softprompt.gateway.browser import page as page
from tests.softprompt.gateway.running import World, world


@pytest.fixture(scope="package")
def services(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With the prompt `tone`: version 1 is its default, version 2 its alias `canary`."""
    with world(tiny_model_dir, tmp_path_factory.mktemp("gateway")) as made:
        template = Template(text="{input}", format=TemplateFormat.CHAT)
        for seed, alias in ((1, "default"), (2, "canary")):
            publish(made.store, blob(tiny_model_dir, matrix(seed), template=template), alias=alias)
        made.loop.run(made.replica.state("prompts/tone/versions/2", "LOADED"))
        yield made


@pytest.fixture(scope="package")
def http(services: World) -> Iterator[httpx.Client]:
    """Plain HTTP. One client, because each new one reads the system's certificates."""
    with httpx.Client(base_url=services.url, timeout=30) as made:
        yield made


@pytest.fixture(scope="package")
def client(services: World) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{services.url}/v1", api_key="unused", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
def slow(services: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the engine take long enough for a client to leave in the middle of an answer."""
    step = Engine.step

    def slowly(self: Engine, *arguments: Any) -> Any:
        time.sleep(0.02)
        return step(self, *arguments)

    monkeypatch.setattr(Engine, "step", slowly)
