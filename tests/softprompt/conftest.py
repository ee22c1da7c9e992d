"""Both fakes on real sockets: in the test's own loop for the asynchronous client, in a thread for what blocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from softprompt.client import channel
from softprompt.client.async_client import AsyncClient
from softprompt.client.loop_thread import LoopThread
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.fakes import FakeInference, FakeTrainer, serving


@pytest.fixture
async def trainer() -> FakeTrainer:
    return FakeTrainer()


@pytest.fixture
async def inference() -> FakeInference:
    return FakeInference()


@pytest.fixture
async def client(trainer: FakeTrainer, inference: FakeInference) -> AsyncIterator[AsyncClient]:
    async with serving(trainer) as first, serving(inference) as second, AsyncClient(first, second) as made:
        yield made


@dataclass
class Services:
    """Both fakes, served by a thread."""

    trainer: FakeTrainer
    inference: FakeInference
    trainer_endpoint: str = ""
    inference_endpoint: str = ""


@pytest.fixture
def services() -> Iterator[Services]:
    loop = LoopThread("fakes")

    async def make() -> Services:
        return Services(FakeTrainer(), FakeInference())

    made = loop.run(make())
    first, second = serving(made.trainer), serving(made.inference)
    made.trainer_endpoint, made.inference_endpoint = loop.run(first.__aenter__()), loop.run(second.__aenter__())
    yield made
    loop.run(first.__aexit__(None, None, None))
    loop.run(second.__aexit__(None, None, None))
    loop.stop()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients find out quickly that a service stays away: their pauses between attempts are short."""
    for name in ("initialBackoff", "maxBackoff"):
        monkeypatch.setitem(channel.RETRY_POLICY, name, "0.01s")


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The fakes, as the services that the environment names."""
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", services.inference_endpoint)
    return services


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CliRunner:
    return CliRunner(monkeypatch, capsys)
