"""One gateway with its services for all tests of this folder, and OpenAI's client for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from shared.text.template import Template, TemplateFormat
from tests.inference_service.conftest import Brake
from tests.inference_service.conftest import brake as brake
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
    with httpx.Client(base_url=services.url, timeout=None) as made:
        yield made


@pytest.fixture(scope="package")
def client(services: World) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{services.url}/v1", api_key="unused", max_retries=0, timeout=None) as made:
        yield made


@pytest.fixture
def held(services: World, brake: Brake) -> Brake:
    """Long answers stop after their first token, until the test lets them go on."""
    brake.holds = True
    return brake
