"""Runs planned steps on the device: the only module besides the caches and the sampler that touches tensors of a step.

One forward pass of transformers' own model carries every chunk, packed behind one another as a batch of one; position ids say where each
token stands, and the registered attention function knows the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from inference_service.engine.attention import CachedAttention, StepLayout, Stretch, lay_out
from inference_service.engine.finite_check import FiniteCheck
from inference_service.engine.kv_cache import KVCache, PrefixKV
from inference_service.engine.prefix_cache import PrefixCache
from inference_service.engine.probe import register_attention
from inference_service.engine.rows import CopyPrefix, CopyRow, RowOp, Trim
from inference_service.engine.scheduler import Chunk, StepPlan
from shared.base_model import BaseModel
from shared.soft_prompt import SoftPrompt


class Runner(Protocol):
    """What the engine needs of a runner."""

    scratch_row: int

    finite: FiniteCheck

    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor: ...

    def compute_prefix(self, soft_prompt: SoftPrompt) -> PrefixKV: ...


class ModelRunner:
    """`scratch_row` is a row of the cache that no sequence ever gets: prefix KV is computed there."""

    def __init__(self, base: BaseModel, cache: KVCache) -> None:
        self._model: Any = base.model
        self._device, self._dtype = base.device, base.dtype
        self._cache = cache
        self._attention = CachedAttention(cache)
        self.scratch_row = cache.num_rows - 1
        self.finite = FiniteCheck(base.model)
        self._model.set_attn_implementation(register_attention(self._attention))

    @torch.inference_mode()
    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        """Logits `[n, vocab]` at every wanted position, in the order of `wanted_positions`."""
        do_ops(plan.ops, self._cache, prefixes)
        self.finite.begin()
        token_ids: list[int] = []
        positions: list[int] = []
        for chunk in plan.chunks:
            token_ids += fed_tokens(chunk)
            positions += fed_positions(chunk)
        wanted = wanted_positions(plan.chunks)
        if not wanted:
            # Some layers do not take an empty selection: one position is computed and dropped.
            return self._forward(lay_out(plan.chunks, self._device), positions, [0], token_ids=token_ids)[:0]
        return self._forward(lay_out(plan.chunks, self._device), positions, wanted, token_ids=token_ids)

    @torch.inference_mode()
    def compute_prefix(self, soft_prompt: SoftPrompt) -> PrefixKV:
        """The keys and values of a soft prompt's positions. Raises DamagedBlob if it overflows the model's dtype."""
        count = soft_prompt.num_virtual_tokens
        rows, positions = torch.full((count,), self.scratch_row, device=self._device), torch.arange(count, device=self._device)
        layout = StepLayout([], [Stretch(0, count, self.scratch_row, 0, (), self._device)], 0, rows, positions)
        self._forward(layout, list(range(count)), [count - 1], embeddings=soft_prompt.cast(self._dtype, self._device))
        return self._cache.snapshot(self.scratch_row, count)

    def _forward(
        self,
        layout: StepLayout,
        positions: Sequence[int],
        wanted: Sequence[int],
        *,
        token_ids: Sequence[int] = (),
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs: dict[str, torch.Tensor] = {}
        if embeddings is None:
            inputs["input_ids"] = torch.tensor(token_ids, device=self._device)[None]
        else:
            inputs["inputs_embeds"] = embeddings[None]
        self._attention.layout = layout
        try:
            logits: torch.Tensor = self._model(
                **inputs,
                position_ids=torch.tensor(positions, device=self._device)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, device=self._device),
            ).logits[0]
        finally:
            self._attention.layout = None
        return logits


def do_ops(ops: Sequence[RowOp], cache: KVCache, prefixes: PrefixCache) -> None:
    """Copies and trims, in order: a later one may use what an earlier one wrote."""
    for op in ops:
        match op:
            case Trim(row):
                cache.trim(row)
            case CopyPrefix(prefix_id, row):
                cache.restore(prefixes.get(prefix_id), row)
            case CopyRow(source, row, length):
                cache.copy_row(source, row, length)


def fed_tokens(chunk: Chunk) -> list[int]:
    """Main tokens of the chunk, then every branch without its last token."""
    sequence = chunk.sequence
    first = chunk.start - sequence.num_virtual
    fed = sequence.tokens[first : first + chunk.count]
    for branch in chunk.branches:
        fed += branch[:-1]
    return fed


def fed_positions(chunk: Chunk) -> list[int]:
    after = chunk.start + chunk.count
    return [*range(chunk.start, after), *(after + i for branch in chunk.branches for i in range(len(branch) - 1))]


def wanted_positions(chunks: Sequence[Chunk]) -> list[int]:
    """Indices into the packed batch: the last position of each chunk that samples; of a score, that and every branch's."""
    wanted: list[int] = []
    begin = 0
    for chunk in chunks:
        if chunk.samples or chunk.branches:
            wanted.append(begin + chunk.count - 1)
        wanted.extend(range(begin + chunk.count, begin + chunk.num_positions))
        begin += chunk.num_positions
    return wanted
