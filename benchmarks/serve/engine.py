"""Our engine in this process. As in the service, one thread loads the model and ends, and another runs the steps."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.workload import NUM_NEW, Workload
from inference_service.completions import completion_requests
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.core.request import GenerationRequest
from inference_service.engine.engine import load_engine
from inference_service.engine.guide.compiler import GuideCompiler
from inference_service.engine.guide.matcher import CompiledGuide
from shared.model.options import ModelOptions
from shared.process.daemon_thread import on_daemon_thread
from shared.prompt.manifest import GoldenRecord
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.guide import Guide
from shared.values.sampling import SamplingParams

_ids = itertools.count()


class EngineContestant:
    """Uses `AsyncEngine.generate` like the service, without reuse of text prefixes, so that every round computes its
    inputs.
    """

    async def start(self, model: Path) -> None:
        config = EngineConfig(max_running=32, max_length=4096, text_reuse="off")
        engine = await on_daemon_thread(
            lambda: load_engine(model, ModelOptions(dtype="bfloat16"), config=config), "load-model"
        )
        self.table = engine.base.embedding_table
        self._guides = GuideCompiler(engine.base)
        self._async = AsyncEngine(engine)
        self._async.start()
        torch.set_num_threads(
            1
        )  # otherwise this thread would have its own OpenMP team (`shared/process/compute_thread.py`)

    async def stop(self) -> None:
        await self._async.check_integrity()
        await self._async.stop()

    async def load(self, workload: Workload, name: str) -> float:
        """Mean seconds to load a prompt."""
        begun = time.perf_counter()
        for index, prompt in enumerate(workload.prompts):
            await self._async.load_prefix(f"{name}{index}", SoftPrompt(prompt))
        return (time.perf_counter() - begun) / len(workload.prompts)

    async def golden(self, prompt: torch.Tensor, inputs: list[tuple[int, ...]]) -> tuple[GoldenRecord, ...]:
        """The golden records that a trainer would publish with the prompt."""
        await self._async.load_prefix("golden", SoftPrompt(prompt))
        records = []
        for ids in inputs:
            top = await self._async.top_logprobs("golden", ids, 8)
            tokens, logprobs = zip(*top, strict=True)
            records.append(
                GoldenRecord(text="-", input_ids=ids, top_token_ids=tokens, top_logprobs=logprobs, dtype="bfloat16")
            )
        await self._async.unload_prefix("golden")
        return tuple(records)

    async def tokens_per_second(
        self,
        workload: Workload,
        name: str,
        num_requests: int,
        guide: Guide | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> float:
        """Generated tokens per second of requests that arrive together, compilation of the guide included.

        `sampling` are fields of SamplingParams; by default, decoding is greedy.
        """
        begun = time.perf_counter()
        compiled = None if guide is None else await asyncio.to_thread(self._guides.compile, guide)
        counts = await asyncio.gather(
            *(
                self._stream(
                    workload.inputs[i], f"{name}{i % len(workload.prompts)}", NUM_NEW, guide, compiled, sampling
                )
                for i in range(num_requests)
            )
        )
        return sum(counts) / (time.perf_counter() - begun)

    async def arrivals(self, workload: Workload, per_second: float) -> tuple[list[float], float]:
        """All requests of the workload, as a Poisson process (fixed seed): each one's seconds to the first token, and
        the tokens per second until the last one ends.
        """
        rng, begun = random.Random(0), time.perf_counter()

        async def arrive(index: int, delay: float) -> tuple[float, int]:
            await asyncio.sleep(delay)
            arrived, first, count = time.perf_counter(), 0.0, 0
            params = SamplingParams(temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True)
            prompt = f"few-{index % len(workload.prompts)}"
            request = GenerationRequest(f"bench-{next(_ids)}", workload.inputs[index], params, prompt)
            async for delta in self._async.generate(request):
                first = first or time.perf_counter() - arrived
                count += len(delta.token_ids)
            return first, count

        delays = itertools.accumulate(rng.expovariate(per_second) for _ in workload.inputs)
        found = await asyncio.gather(*(arrive(index, delay) for index, delay in enumerate(delays)))
        tokens = sum(count for _, count in found)
        return [first for first, _ in found], tokens / (time.perf_counter() - begun)

    async def compile_seconds(self, guide: Guide) -> float:
        """Seconds to compile a guide."""
        begun = time.perf_counter()
        await asyncio.to_thread(self._guides.compile, guide)
        return time.perf_counter() - begun

    async def completions_seconds(self, input_ids: tuple[int, ...], *, share: bool) -> float:
        """Seconds until four completions of one input end, as one request or as separate ones."""
        begun = time.perf_counter()
        sampling = SamplingParams(temperature=1.0, seed=1, n=4, max_new_tokens=NUM_NEW, ignore_eos=True)
        first = GenerationRequest(f"bench-{next(_ids)}", input_ids, sampling, "few-0")
        requests = completion_requests(first)
        if share:
            await self._drain(*requests)
        else:
            await asyncio.gather(*(self._drain(replace(request, group="")) for request in requests))
        return time.perf_counter() - begun

    async def first_token_seconds(self, input_ids: tuple[int, ...], prefix_id: str | None) -> float:
        begun = time.perf_counter()
        await self._stream(input_ids, prefix_id, 1)
        return time.perf_counter() - begun

    async def _stream(
        self,
        input_ids: tuple[int, ...],
        prefix_id: str | None,
        new: int,
        guide: Guide | None = None,
        compiled: CompiledGuide | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> int:
        params = SamplingParams(
            **{"temperature": 0.0, "seed": 1, **(sampling or {})}, max_new_tokens=new, ignore_eos=True, guide=guide
        )
        request = GenerationRequest(f"bench-{next(_ids)}", input_ids, params, prefix_id, guide=compiled)
        return await self._drain(request)

    async def _drain(self, *requests: GenerationRequest) -> int:
        return sum([len(delta.token_ids) async for delta in self._async.generate(*requests)])
