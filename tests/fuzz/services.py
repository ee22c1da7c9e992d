"""A real trainer, replica and gateway that get damaged requests through real sockets.

Each damaged request may be refused, and must not be answered with INTERNAL, UNKNOWN or a status of 500, nor hang.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from prompttuning.v1 import generation_pb2, prompts_pb2, tuning_pb2

from shared.errors import InvalidInput
from tests.fuzz.mutate import damage_message, damaged_bytes, damaged_json
from tests.inference_service.replica import blob as blob_of
from tests.inference_service.replica import generate_request, matrix, publish, stream_request
from tests.softprompt.gateway.running import World, world
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.requests import tuning_spec

Reader = Callable[[Random], object]

DEADLINE_SECONDS = 10.0
FORBIDDEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
FILES = (generation_pb2, prompts_pb2, tuning_pb2)
WATCHES, WATCH_SECONDS = ("WatchPrompts", "WatchTuningJob"), 0.3
"""They run until their caller leaves, after this time."""
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"model": "tone", "messages": MESSAGES, "max_tokens": 4, "logit_bias": {"5": 1}, "n": 2}),
    ("/v1/chat/completions", {"model": "tone", "messages": MESSAGES, "max_tokens": 4, "stream": True, "stop": ["x"]}),
    ("/v1/completions", {"model": "tone@1", "prompt": "hello", "max_tokens": 4, "logprobs": 2, "seed": 7}),
    ("/v1/responses", {"model": "tone", "input": "hello", "max_output_tokens": 16, "temperature": 0.5}),
    ("/v1/fine_tuning/jobs", {"model": "tiny-llama", "training_file": "file-1", "suffix": "x", "seed": 1}),
)


class Broken(Exception):
    """A service answered as it never should."""


@contextmanager
def services(directory: Path) -> Iterator[dict[str, Reader]]:
    """The targets by name, while the services run."""
    directory.mkdir(parents=True, exist_ok=True)
    model = save_tiny_llama(directory / "tiny-llama")
    with world(model, directory) as running, httpx.Client(base_url=running.url, timeout=DEADLINE_SECONDS) as http:
        publish(running.store, blob_of(model, matrix(1)))
        with _Calls(running) as rpc:
            yield {"rpc": rpc, "http": lambda random: _post(http, random)}


class _Calls:
    def __init__(self, running: World) -> None:
        ports = {
            generation_pb2: running.replica.port,
            prompts_pb2: running.trainer.port,
            tuning_pb2: running.trainer.port,
        }
        self._channels = {file: grpc.insecure_channel(f"127.0.0.1:{port}") for file, port in ports.items()}
        self._methods = [
            (file, service.full_name, method)
            for file in FILES
            for service in file.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        ]

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def __call__(self, random: Random) -> None:
        file, service, method = random.choice(self._methods)
        request = _valid(GetMessageClass(method.input_type)())
        damage_message(request, random)
        data = request.SerializeToString()
        if random.random() < 0.1:
            data = damaged_bytes(data, [data], random)
        kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
        call = getattr(self._channels[file], kind)(f"/{service}/{method.name}")
        is_watch = method.name in WATCHES
        timeout_seconds = WATCH_SECONDS if is_watch else DEADLINE_SECONDS
        try:
            answer = call(iter([data]) if method.client_streaming else data, timeout=timeout_seconds)
            if method.server_streaming:
                list(answer)
        except grpc.RpcError as error:
            if is_watch and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return
            if error.code() not in FORBIDDEN:
                raise InvalidInput.of("request", error.code().name) from error
            raise Broken(f"{method.name}: {error.code().name}: {error.details()}\n{request}") from error


def _valid(request: Message) -> Message:
    """The request with what most of its kind need."""
    match request:
        case tuning_pb2.CreateTuningJobRequest():
            request.spec.CopyFrom(tuning_spec())
            request.validate_only = True
        case generation_pb2.GenerateRequest():
            request.CopyFrom(generate_request(prompt="tone", max_new_tokens=2))
        case generation_pb2.GenerateStreamRequest():
            request.CopyFrom(stream_request(prompt="tone", max_new_tokens=2))
        case generation_pb2.ScoreRequest():
            request.input.CopyFrom(generate_request(prompt="tone").input)
            request.candidates.extend(["yes", "no"])
        case generation_pb2.CountTokensRequest():
            request.input.CopyFrom(generate_request(prompt="tone").input)
        case tuning_pb2.UploadDatasetRequest():
            request.header.SetInParent()
        case _:
            fields = request.DESCRIPTOR.fields_by_name
            for name, value in (("prompt", "tone"), ("version", 1), ("alias", "default"), ("name", "tuningJobs/x")):
                field = fields.get(name)
                if field is not None and not field.is_repeated and field.message_type is None:
                    setattr(request, name, value)
    return request


def _post(http: httpx.Client, random: Random) -> None:
    path, body = random.choice(BODIES)
    data = json.dumps(damaged_json(body, random)).encode()
    if random.random() < 0.2:
        data = damaged_bytes(data, [data], random)
    answer = http.post(path, content=data, headers={"Content-Type": "application/json"})
    if answer.status_code == 500 or (_is_stream(answer) and not ("[DONE]" in answer.text or '"error"' in answer.text)):
        raise Broken(f"POST {path}: {answer.status_code}: {answer.text[:500]}\n{data!r}")
    if answer.is_error:
        raise InvalidInput.of("body", str(answer.status_code))


def _is_stream(answer: httpx.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")
