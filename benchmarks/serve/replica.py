"""The inference service in its own process with a local store; this process calls it through gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import grpc
import torch
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from benchmarks.serve.workload import NUM_NEW, Workload
from shared.model import base_model
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import GoldenRecord, Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import open_store
from shared.text.template import Template

START_SECONDS = 120.0


class ReplicaContestant:
    """The workload's prompts are the versions few-0@1 to few-7@1."""

    def __init__(self, model: Path, directory: Path) -> None:
        self._model, self._directory = model, directory
        self._store = open_store(str(directory / "store"))
        self._info = base_model.inspect(model)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, workload: Workload) -> None:
        for index, prompt in enumerate(workload.prompts):
            self._store.publish(f"few-{index}", await self.blob(f"few-{index}", prompt), job=f"tuningJobs/few-{index}")
        ready, log = self._directory / "ready.json", self._directory / "replica.log"
        settings = {
            "BASE_MODEL": str(self._model),
            "STORE_URL": str(self._directory / "store"),
            "DTYPE": "bfloat16",
            "DEVICE": "cpu",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "METRICS_PORT": "0",
            "MAX_LENGTH": "1024",
            "READY_FILE": str(ready),
        }
        environment = {**os.environ, **{f"SOFTPROMPT_INFERENCE_{name}": value for name, value in settings.items()}}
        with log.open("wb") as file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inference_service", env=environment, stdout=file, stderr=file
            )
        begun = time.monotonic()
        while not ready.exists():
            if self._process.returncode is not None or time.monotonic() - begun > START_SECONDS:
                raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{json.loads(ready.read_text())['port']}")
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        await self.tokens_per_second(workload, 16)  # by then, the engine in this process is warm, too

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self._channel.close()
            self._process.terminate()
            await self._process.wait()

    async def blob(self, name: str, matrix: torch.Tensor, golden: tuple[GoldenRecord, ...] = ()) -> bytes:
        soft_prompt = SoftPrompt(matrix)
        manifest = Manifest(
            prompt=name,
            base_model=self._info,
            template=Template(text="{input}"),
            num_virtual_tokens=soft_prompt.num_virtual_tokens,
            hidden_size=soft_prompt.hidden_size,
            golden=golden,
            created_at=utc_now(),
        )
        return encode_blob(soft_prompt, manifest)

    async def tokens_per_second(self, workload: Workload, num_requests: int) -> float:
        begun = time.perf_counter()
        names = [f"few-{i % len(workload.prompts)}" for i in range(num_requests)]
        counts = await asyncio.gather(
            *(self._stream(name, ids, NUM_NEW) for name, ids in zip(names, workload.inputs, strict=False))
        )
        return sum(counts) / (time.perf_counter() - begun)

    async def publish_to_first_token_seconds(self, name: str, blob: bytes, input_ids: tuple[int, ...]) -> float:
        begun = time.perf_counter()
        await asyncio.to_thread(self._store.publish, name, blob, job=f"tuningJobs/{name}")
        await self._stream(name, input_ids, 1)
        return time.perf_counter() - begun

    async def _stream(self, name: str, input_ids: tuple[int, ...], new: int) -> int:
        request = generation_pb2.GenerateStreamRequest(
            input=generation_pb2.GenerationInput(prompt=name, token_ids=generation_pb2.TokenIds(ids=input_ids)),
            sampling=common_pb2.SamplingParams(temperature=0.0, max_new_tokens=new, ignore_eos=True),
        )
        return sum([len(response.delta.token_ids) async for response in self._stub.GenerateStream(request)])
