"""Every call has a deadline but the watches, and each method is either repeated after a failure or known to be unsafe
to repeat.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import generation_pb2, prompts_pb2, tuning_pb2

from shared.errors import NotFound, SoftPromptError
from shared.values.spec import TuningSpec
from softprompt.client import connection
from softprompt.client.async_client import AsyncClient
from softprompt.client.channel import RETRIED_METHODS, service_config
from softprompt.client.datasets import SLOWEST_BYTES_PER_SECOND

METHODS = {
    (service.name, method.name)
    for file in (tuning_pb2, prompts_pb2, generation_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
UNSAFE_TO_REPEAT = {
    ("TuningService", "PauseTuningJob"),
    ("TuningService", "ResumeTuningJob"),
    ("TuningService", "DeleteTuningJob"),
    ("TuningService", "DeleteDataset"),
    ("TuningService", "TestWebhook"),
    ("PromptService", "SetPromptAlias"),
    ("PromptService", "DeletePromptVersion"),
    ("PromptService", "ImportPromptVersion"),
}
ENDLESS = {"WatchTuningJob", "WatchPrompts"}
JOB, VERSION, DATASET = "tuningJobs/1", "prompts/tone/versions/1", "datasets/sha256-" + 64 * "a"


class Recorded(SoftPromptError):
    """Ends a call as soon as it was noted."""


class Recorder:
    """A channel that notes the deadline of each call by method, and answers none but that a dataset is unknown."""

    def __init__(self) -> None:
        self.timeouts: dict[str, float | None] = {}

    def _method(self, path: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
        def call(request: Any, timeout: float | None = None, **options: Any) -> Any:
            name = path.rpartition("/")[2]
            self.timeouts[name] = timeout
            if name == "GetDataset":
                raise NotFound("dataset", "any")  # so that an upload, which asks first, goes on
            raise Recorded("noted")

        return call

    unary_unary = unary_stream = stream_unary = stream_stream = _method

    async def close(self, grace: float | None = None) -> None: ...


async def everything(client: AsyncClient, directory: Path) -> AsyncIterator[Any]:
    """Every method of the client once, as awaitables."""
    data = directory / "data.jsonl"
    data.write_text('{"input": "a", "output": "b"}\n')
    yield client.upload_dataset(data)
    yield client.list_datasets()
    yield client.get_dataset(DATASET)
    yield anext(client.download_dataset(DATASET))
    yield client.delete_dataset(DATASET)
    yield client.create_job(TuningSpec("tone", DATASET))
    for of_a_job in (client.get_job, client.cancel_job, client.pause_job, client.resume_job, client.delete_job):
        yield of_a_job(JOB)
    yield client.job_report(JOB)
    yield client.list_jobs()
    yield anext(aiter(client.watch_job(JOB)))
    yield client.service_info()
    yield client.list_webhooks()
    yield client.test_webhook("ci")
    yield client.retry_webhook("ci")
    yield client.list_usage(["tenant"])
    yield client.list_prompts()
    yield client.get_prompt("tone")
    yield client.list_versions("tone")
    yield client.get_version(VERSION)
    yield client.prompt_status("tone")
    yield client.set_alias("tone", "default", 1)
    yield client.delete_version(VERSION)
    yield client.download_version(VERSION)
    yield client.generate("hello")
    yield client.stream("hello").started()
    yield client.score("hello", candidates=["a"])
    yield client.count_tokens("hello")
    yield client.model_info()
    yield client.loaded_prompts()


async def test_every_call_has_a_deadline_but_the_watches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder()
    monkeypatch.setattr(connection, "open_channel", lambda endpoint, security, retry_overloaded: recorder)
    client = AsyncClient()
    async for call in everything(client, tmp_path):
        with pytest.raises((Recorded, NotFound)):
            await call
    missing = {name for _, name in METHODS} - recorder.timeouts.keys()
    assert missing <= {"ImportPromptVersion", "WatchPrompts"}
    assert {
        name for name, timeout in recorder.timeouts.items() if timeout is None
    } == ENDLESS & recorder.timeouts.keys()


def test_each_method_is_repeated_or_known_to_be_unsafe() -> None:
    repeated = {(service.rpartition(".")[2], method) for service, method in RETRIED_METHODS}
    assert repeated | UNSAFE_TO_REPEAT == METHODS
    assert not repeated & UNSAFE_TO_REPEAT
    assert service_config(has_replicas=True)["healthCheckConfig"] == {"serviceName": ""}
    assert "healthCheckConfig" not in service_config(has_replicas=False)


async def test_the_deadline_of_an_upload_grows_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder()
    monkeypatch.setattr(connection, "open_channel", lambda endpoint, security, retry_overloaded: recorder)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": "a" * 9990, "output": "b"}) + "\n")
    data.write_text(data.read_text() * 655)
    async with AsyncClient(timeout_seconds=30) as client:
        with pytest.raises(Recorded):
            await client.upload_dataset(data)
    assert recorder.timeouts["UploadDataset"] == pytest.approx(30 + data.stat().st_size / SLOWEST_BYTES_PER_SECOND)
    assert data.stat().st_size / SLOWEST_BYTES_PER_SECOND > 100
