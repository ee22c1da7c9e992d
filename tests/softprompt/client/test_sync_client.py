"""The synchronous client: the same methods, and its own ways of ending."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.errors import NotFound
from softprompt import AsyncClient, Client, Example, TuningSpec
from softprompt.client.chat import AsyncChat, Chat
from softprompt.client.stream import GenerationStream, SyncGenerationStream
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB
from tests.waiting import wait_until

RENAMED = {
    "AsyncGenerator[bytes]": "Iterator[bytes]",
    "AsyncIterator[JobEvent]": "Iterator[JobEvent]",
    "AsyncIterator[PromptChange]": "Iterator[PromptChange]",
    "GenerationStream": "SyncGenerationStream",
    "AsyncIterator[GenerationOutcome]": "Iterator[GenerationOutcome]",
    "AsyncChat": "Chat",
    "AsyncClient": "Client",
}


def public_methods(cls: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Client, AsyncClient), (SyncGenerationStream, GenerationStream), (Chat, AsyncChat)]
)
def test_both_clients_have_the_same_methods(ours: type, theirs: type) -> None:
    assert public_methods(ours).keys() == public_methods(theirs).keys()


def test_the_methods_take_and_return_the_same() -> None:
    theirs = public_methods(AsyncClient)
    for name, method in public_methods(Client).items():
        mine, other = inspect.signature(method), inspect.signature(theirs[name])
        assert mine.parameters == other.parameters, name
        assert mine.return_annotation == RENAMED.get(other.return_annotation, other.return_annotation), name


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with Client(services.trainer_endpoint, services.inference_endpoint) as made:
        yield made


def test_tuning_and_watching(client: Client) -> None:
    assert client.tune(TuningSpec("tone", [Example("a", output="b")])).result.version == "prompts/tone/versions/1"
    assert [event.number for event in client.watch_job(JOB)] == [1, 2, 3, 4, 5, 6]


def test_a_stream(client: Client) -> None:
    stream = client.stream("hi", prompt="tone")
    assert "".join(delta.text for delta in stream) == "Hello wide world"
    assert (stream.start.version, stream.end.output_tokens) == ("prompts/tone/versions/2", 3)


def test_breaking_out_of_a_stream_cancels_it(client: Client, services: Services) -> None:
    services.inference.endless = True
    for delta in client.stream("hi"):
        assert delta.text == "Hello"
        break
    wait_until(services.inference.stream_ended.is_set)


def test_errors_are_the_same(client: Client) -> None:
    with pytest.raises(NotFound):
        client.get_job("tuningJobs/none")


def test_several_threads_share_a_client(client: Client) -> None:
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(client.generate("hi").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["Hello wide world"] * 8


def test_a_closed_client_says_so_and_leaves_no_thread(services: Services) -> None:
    services.inference.endless = True
    client = Client(services.trainer_endpoint, services.inference_endpoint)
    half_read = iter(client.stream("hi"))
    next(half_read)
    client.close()
    client.close()
    half_read.close()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="closed"):
        client.get_job(JOB)
    assert not [thread for thread in threading.enumerate() if thread.name == "softprompt-client"]
