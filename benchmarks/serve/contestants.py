"""Our engine and transformers' static-batch `generate`, behind the same two questions: tokens a second, seconds to the first token."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import torch

from benchmarks.serve.workload import NUM_NEW, Workload
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.config import EngineConfig
from inference_service.engine.engine import load_engine
from inference_service.engine.request import GenerationRequest, SamplingParams
from shared.base_model import load
from shared.manifest import GoldenRecord
from shared.soft_prompt import SoftPrompt

_ids = itertools.count()


class EngineContestant:
    """Through `AsyncEngine.generate`, as the service uses it. Text prefixes aren't reused: every round computes its inputs anew."""

    def __init__(self, model: Path) -> None:
        self._engine = load_engine(model, dtype="bfloat16", config=EngineConfig(max_running=32, max_length=1024, reuse_text_prefixes=False))
        self._async = AsyncEngine(self._engine)
        self.table = self._engine.base.embedding_table

    async def start(self) -> None:
        self._async.start()

    async def stop(self) -> None:
        await self._async.check_integrity()
        await self._async.stop()

    async def load(self, workload: Workload, name: str) -> float:
        """Seconds to load each prompt, on average."""
        begun = time.perf_counter()
        for index, prompt in enumerate(workload.prompts):
            await self._async.load_prefix(f"{name}{index}", SoftPrompt(prompt))
        return (time.perf_counter() - begun) / len(workload.prompts)

    async def golden(self, prompt: torch.Tensor, inputs: list[tuple[int, ...]]) -> tuple[GoldenRecord, ...]:
        """What a trainer would send along with the prompt for replicas to replay."""
        await self._async.load_prefix("golden", SoftPrompt(prompt))
        records = []
        for ids in inputs:
            top = await self._async.top_logprobs("golden", ids, 8)
            tokens, logprobs = zip(*top, strict=True)
            records.append(GoldenRecord(text="-", input_ids=ids, top_token_ids=tokens, top_logprobs=logprobs, dtype="bfloat16"))
        await self._async.unload_prefix("golden")
        return tuple(records)

    async def tokens_per_second(self, workload: Workload, name: str, num_requests: int) -> float:
        begun = time.perf_counter()
        counts = await asyncio.gather(
            *(self._stream(workload.inputs[i], f"{name}{i % len(workload.prompts)}", NUM_NEW) for i in range(num_requests))
        )
        return sum(counts) / (time.perf_counter() - begun)

    async def first_token_seconds(self, input_ids: tuple[int, ...], prefix_id: str | None) -> float:
        begun = time.perf_counter()
        await self._stream(input_ids, prefix_id, 1)
        return time.perf_counter() - begun

    async def _stream(self, input_ids: tuple[int, ...], prefix_id: str | None, new: int) -> int:
        sampling = SamplingParams(temperature=0.0, max_new_tokens=new, ignore_eos=True)
        request = GenerationRequest(f"bench-{next(_ids)}", input_ids, sampling, prefix_id)
        return sum([len(delta.token_ids) async for delta in self._async.generate(request)])


class TransformersContestant:
    """One static batch, prompts prepended as embeddings: what one gets without an engine."""

    def __init__(self, model: Path) -> None:
        self._base = load(model, dtype="bfloat16", device="cpu")

    @torch.inference_mode()
    def tokens_per_second(self, workload: Workload, num_requests: int) -> float:
        table = self._base.model.get_input_embeddings()
        rows = [
            torch.cat([workload.prompts[i % len(workload.prompts)].to(torch.bfloat16), table(torch.tensor(workload.inputs[i]))])
            for i in range(num_requests)
        ]
        embeds = torch.stack(rows)
        begun = time.perf_counter()
        out = self._base.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=NUM_NEW,
            min_new_tokens=NUM_NEW,
            do_sample=False,
            pad_token_id=0,
        )
        return int(out.numel()) / (time.perf_counter() - begun)
