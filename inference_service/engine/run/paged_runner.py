"""Runs planned steps over a paged cache: the counterpart of `model_runner.ModelRunner` for GPUs.

It uses the same packed forward pass; steps that consist of decodes alone run through captured graphs if available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.kv.kv_cache import PrefixKV
from inference_service.engine.kv.paged_cache import PagedKVCache
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.kv.upload import upload
from inference_service.engine.run.decode_graphs import DecodeGraphs
from inference_service.engine.run.finite_check import FiniteCheck
from inference_service.engine.run.masked_attention import QuerySegment
from inference_service.engine.run.model_runner import fed_tokens, kept, model_inputs, wanted_positions
from inference_service.engine.run.paged_attention import PagedAttention, PagedLayout
from inference_service.engine.run.varlen_kernel import VarlenKernel
from shared.model.attention_calls import register_attention
from shared.model.base_model import BaseModel


class PagedRunner:
    """Runs plans over a paged cache. `graphs` may be set after the self-check of the runner."""

    def __init__(self, base: BaseModel, cache: PagedKVCache, kernel: VarlenKernel | None) -> None:
        self._model: Any = base.model
        self._device, self._dtype = base.device, base.dtype
        self.cache = cache
        self.kernel = kernel
        self._attention = PagedAttention(cache, kernel)
        self.scratch_row = cache.scratch_row
        self.graphs: DecodeGraphs | None = None
        self.finite = FiniteCheck(base.model)
        self._model.set_attn_implementation(register_attention(self._attention))

    @torch.inference_mode()
    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        """Like `ModelRunner.run`: logits `[n, vocab]` in the order of `wanted_positions`."""
        self.cache.do(plan.ops, prefixes)
        self.finite.begin()
        if self.graphs is not None and all(chunk.num_positions == 1 and chunk.samples for chunk in plan.chunks):
            logits = self.graphs.run([(fed_tokens(chunk)[0], chunk.row, chunk.start) for chunk in plan.chunks])
            if logits is not None:
                return logits
        wanted = wanted_positions(plan.chunks)
        inputs = model_inputs(plan.chunks, self._model, prefixes, self._device, self._dtype)
        # Some layers accept no empty selection: one position is computed and dropped.
        return self._forward(self._lay_out(plan.chunks), inputs, self._tensor(wanted or [0]))[: len(wanted)]

    @torch.inference_mode()
    def snapshot(self, row: int, length: int) -> PrefixKV:
        return self.cache.snapshot(row, length)

    @torch.inference_mode()
    def decode(self, inputs: torch.Tensor) -> torch.Tensor:
        """One decode step: `[3, batch]` token ids, rows, positions -> logits `[batch, vocab]`.

        Everything stays on the device, so that it can be captured.
        """
        ids, rows, positions = inputs.unbind(0)
        layout = PagedLayout(
            self.cache.slots(rows, positions), rows, positions, (), self.cache.max_length, self.cache.tables
        )
        return self._forward(layout, {"input_ids": ids[None], "position_ids": positions[None]}, 0)

    def _lay_out(self, chunks: Sequence[Chunk]) -> PagedLayout:
        """Build the layout of a step from `chunks` in the order of `StepPlan`."""
        decodes = [chunk for chunk in chunks if chunk.num_positions == 1]
        segments, begin = list[QuerySegment](), len(decodes)
        for chunk in chunks[len(decodes) :]:
            segments.append(QuerySegment(begin, chunk.num_positions, chunk.row, chunk.start, chunk.branch_lengths))
            begin += chunk.num_positions
        places = [(chunk.row, slot) for chunk in chunks for slot in range(chunk.start, chunk.end)]
        rows, slots = self._tensor(places).T.unbind(0)
        longest = max((chunk.start + 1 for chunk in decodes), default=0)
        count = len(decodes)
        return PagedLayout(
            self.cache.slots(rows, slots), rows[:count], slots[:count], segments, longest, self.cache.tables
        )

    def _tensor(self, values: Any) -> torch.Tensor:
        return upload(values, torch.long, self._device)

    def _forward(self, layout: PagedLayout, inputs: dict[str, torch.Tensor], keep: torch.Tensor | int) -> torch.Tensor:
        self._attention.layout = layout
        try:
            logits: torch.Tensor = kept(self._model(**inputs, use_cache=False, logits_to_keep=keep).logits[0], keep)
        finally:
            self._attention.layout = None
        return logits
