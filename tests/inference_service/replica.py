"""A whole replica in the test's event loop: the real server on port 0, the real engine over a tiny model, a real store
in a directory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import torch
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from inference_service.config import InferenceSettings
from inference_service.server import serve
from shared.model import base_model
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import GoldenRecord, Manifest, utc_now
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.rpc.errors import error_from_rpc
from shared.store import PromptStore, VersionRecord, open_store
from shared.text.template import Template
from tests.metric_samples import sample_of
from tests.waiting import until


def matrix(seed: int, num_virtual_tokens: int = 8, hidden_size: int = 64) -> torch.Tensor:
    """A random soft prompt `[num_virtual_tokens, hidden_size]`, large enough to change what a tiny model says."""
    return torch.randn(num_virtual_tokens, hidden_size, generator=torch.Generator().manual_seed(seed))


def blob(
    model_dir: Path,
    content: torch.Tensor | Prefix,
    prompt: str = "tone",
    template: Template | None = None,
    golden: tuple[GoldenRecord, ...] = (),
    **manifest: Any,
) -> bytes:
    """A version's bytes; `content` is a prefix of any kind, or the matrix of a soft prompt."""
    info = base_model.inspect(model_dir)
    prefix = content if isinstance(content, Prefix) else SoftPrompt(content)
    hidden_size = prefix.hidden_size if isinstance(prefix, SoftPrompt) else info.hidden_size
    written = Manifest(
        prompt=prompt,
        base_model=replace(info, hidden_size=hidden_size),
        template=template or Template(text="{input}"),
        kind=prefix.kind,
        num_virtual_tokens=prefix.num_virtual_tokens,
        hidden_size=hidden_size,
        golden=golden,
        created_at=utc_now(),
    )
    return encode_blob(prefix, written.model_copy(update=manifest))


def publish(store: PromptStore, data: bytes, prompt: str = "tone", alias: str | None = "default") -> VersionRecord:
    return store.publish(prompt, data, job=f"job-{store.refresh().revision}", alias=alias)


@dataclass
class Replica:
    """A client's view of the running replica, and the store behind it."""

    store: PromptStore
    store_dir: Path
    port: int
    channel: grpc.aio.Channel
    stub: Any
    metrics_port: int
    stop: asyncio.Event
    done: asyncio.Task[None] = field(repr=False)

    async def generate(self, text: str = "hello", prompt: str = "", **sampling: Any) -> generation_pb2.GenerateResponse:
        return await self.stub.Generate(generate_request(text, prompt, **sampling))

    async def served_version(self, prompt: str = "tone") -> str:
        """The version that a request of this moment gets."""
        return str((await self.generate("hello", prompt, max_new_tokens=1)).start.version)

    async def loaded(self, prompt: str = "") -> dict[str, generation_pb2.LoadedPrompt]:
        response = await self.stub.ListLoadedPrompts(generation_pb2.ListLoadedPromptsRequest(prompt=prompt))
        return {item.version: item for item in response.prompts}

    async def state(self, version: str, state: str) -> generation_pb2.LoadedPrompt:
        """Wait until the version is in this state."""
        wanted = generation_pb2.LoadedPrompt.State.Value(f"STATE_{state}")

        async def look() -> generation_pb2.LoadedPrompt | None:
            found = (await self.loaded()).get(version)
            return found if found is not None and found.state == wanted else None

        return await until(look)

    async def metric(self, name: str, **labels: str) -> float:
        return await self.sample(f"softprompt_inference_{name}", **labels)

    async def sample(self, name: str, **labels: str) -> float:
        return await sample_of(self.metrics_port, name, **labels)


def generate_request(text: str = "hello", prompt: str = "", **sampling: Any) -> generation_pb2.GenerateRequest:
    sampling.setdefault("max_new_tokens", 8)
    return generation_pb2.GenerateRequest(
        input=generation_pb2.GenerationInput(prompt=prompt, text=text), sampling=common_pb2.SamplingParams(**sampling)
    )


def stream_request(text: str = "hello", prompt: str = "", **sampling: Any) -> generation_pb2.GenerateStreamRequest:
    request = generate_request(text, prompt, **sampling)
    return generation_pb2.GenerateStreamRequest(input=request.input, sampling=request.sampling)


async def refusal(call: Any) -> Any:
    """The domain error that a call ends with; its cause is the status on the wire."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        found = error_from_rpc(error)
        found.__cause__ = error
        return found
    raise AssertionError("the call was not refused")


@asynccontextmanager
async def running_replica(model_dir: Path, directory: Path, **settings: Any) -> AsyncIterator[Replica]:
    """Serve until the block ends, then drain. `store_dir` or `store_url` among the settings: a store that others use,
    too.
    """
    store_dir = Path(settings.pop("store_dir", directory / "store"))
    store_url = settings.pop("store_url", str(store_dir))
    directory.mkdir(parents=True, exist_ok=True)
    ready_file = directory / "ready.json"
    store = open_store(store_url)
    defaults = {"dtype": "float32", "device": "cpu", "poll_seconds": 0.02, "grace_seconds": 600, "heartbeat_seconds": 1}
    chosen = InferenceSettings(
        base_model=str(model_dir), store_url=store_url, ready_file=str(ready_file), **{**defaults, **settings}
    )
    stop = asyncio.Event()
    done = asyncio.create_task(serve(chosen, stop))
    await until(lambda: ready_file.exists() or done.done())
    if done.done():
        done.result()
    ports = json.loads(ready_file.read_text())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['port']}") as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            yield Replica(store, store_dir, ports["port"], channel, stub, ports["metrics_port"], stop, done)
    finally:
        stop.set()
        await asyncio.gather(done, return_exceptions=True)
        ready_file.unlink(missing_ok=True)
