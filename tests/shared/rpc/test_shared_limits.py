"""Limits that two servers count together in a real Redis server, which is killed and started again."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2

from shared.caller import Caller, CallerLimits
from shared.config import ConfigError, ServerSettings, load_settings, settings_config
from shared.errors import Overloaded
from shared.security import shared_limits
from shared.security.shared_limits import SharedLimits
from shared.security.tokens import hash_token, new_token
from tests.shared.rpc.service import count_request, refusal, running_server
from tests.waiting import until, wait_until


class Redis:
    """A Redis server on one port of this machine, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._folder = str(folder)
        self.start()

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
        return False


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    pytest.importorskip("limits")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing; `make tools` installs it")
    server = Redis(tmp_path)
    yield server
    server.kill()


async def test_two_processes_count_requests_together_and_alone_while_the_server_is_away(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "_PAUSE_SECONDS", 0.05)
    registry = CollectorRegistry()
    one, other = SharedLimits(redis.address, registry), SharedLimits(redis.address)
    caller = Caller("shop", frozenset(), limits=CallerLimits(requests_per_second=0.5))
    for limits in (one, other, one, other, one):  # 5 in 10 seconds
        await limits.begin(caller)
    for limits in (one, other):
        with pytest.raises(Overloaded, match=r"you may make 0\.5 requests a second") as caught:
            await limits.begin(caller)
        assert 1 <= caught.value.retry_after_seconds <= 10
    await one.begin(replace(caller, name="web"))

    redis.kill()
    for _ in range(10):
        await one.begin(caller)
    assert registry.get_sample_value("softprompt_shared_limits_available") == 0
    redis.start()

    async def is_refused() -> bool:
        with suppress(Overloaded):
            await one.begin(caller)
            return False
        return True

    await until(is_refused)
    assert registry.get_sample_value("softprompt_shared_limits_available") == 1
    await one.close()
    await other.close()


async def test_tokens_of_a_tenant_are_counted_over_replicas(redis: Redis, tmp_path: Path) -> None:
    token = new_token()
    caller = {"name": "shop", "tenant": "acme", "roles": ["generator"], "token_sha256": [hash_token(token)]}
    callers_file = tmp_path / "callers.json"
    tenants = [{"name": "acme", "limits": {"tokens_per_second": 18}}]
    callers_file.write_text(json.dumps({"callers": [caller], "tenants": tenants}))
    settings: Any = {"callers_file": str(callers_file), "limits_storage": redis.address}
    request = generation_pb2.GenerateRequest(input=generation_pb2.GenerationInput(prompt="tone"))
    metadata = (("authorization", f"Bearer {token}"),)
    async with running_server(**settings) as one, running_server(**settings) as other:
        await one.stub.Generate(request, metadata=metadata)  # 100 tokens, of 180 in ten seconds
        await other.stub.Generate(request, metadata=metadata)

        errors = list[Any]()

        async def is_refused() -> bool:
            with suppress(AssertionError):
                errors.append(await refusal(other.stub.CountTokens(count_request(), metadata=metadata)))
            return bool(errors)

        await until(is_refused)
        assert "your tenant may use 18 tokens a second" in errors[0].message, "80 tokens are left to this replica"
        assert isinstance(await refusal(one.stub.Generate(request, metadata=metadata)), Overloaded)


class Limited(ServerSettings):
    model_config = settings_config("SOFTPROMPT_LIMITED_")


@pytest.mark.parametrize("address", ["localhost:6379", "http://redis:6379", "redis://redis", "redis://redis:port"])
def test_an_address_that_can_not_be_used_ends_the_start(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "callers.json").write_text('{"callers": []}')
    monkeypatch.setenv("SOFTPROMPT_LIMITED_CALLERS_FILE", str(tmp_path / "callers.json"))
    monkeypatch.setenv("SOFTPROMPT_LIMITED_LIMITS_STORAGE", address)
    with pytest.raises(ConfigError, match="LIMITS_STORAGE"):
        load_settings(Limited)
