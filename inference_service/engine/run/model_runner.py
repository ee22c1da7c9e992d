"""Runs planned steps over a row cache: the only module besides caches and sampler that touches tensors of a step.

One forward pass of transformers' own model carries every chunk, packed one after another as a batch of one. Position
ids give the place of each token; the registered attention function does the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.kv.kv_cache import PrefixKV, RowKVCache
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.kv.rows import CopyPrefix, CopyRow, RowOp, Trim
from inference_service.engine.kv.upload import upload
from inference_service.engine.run.attention import CachedAttention, StepLayout, lay_out
from inference_service.engine.run.finite_check import FiniteCheck
from shared.kernels.fused_decoder import FusedDecoder, OtherStructure
from shared.model.attention_calls import register_attention
from shared.model.base_model import BaseModel

log = logging.getLogger(__name__)


class Runner(Protocol):
    """The engine's interface to a runner."""

    scratch_row: int
    finite: FiniteCheck

    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        """Apply the plan's operations, run the model, and return logits `[n, vocab]` at every wanted position."""

    def snapshot(self, row: int, length: int) -> PrefixKV:
        """A copy of the keys and values in the row's first slots."""


class ModelRunner:
    """Runs plans over a row cache. The self-check computes in `scratch_row`, which no sequence gets."""

    def __init__(self, base: BaseModel, cache: RowKVCache) -> None:
        self._model: Any = base.model
        self._device, self._dtype = base.device, base.dtype
        self._cache = cache
        self._attention = CachedAttention(cache)
        self.scratch_row = cache.num_rows - 1
        self.finite = FiniteCheck(base.model)
        self._model.set_attn_implementation(register_attention(self._attention))
        self.fused: FusedDecoder | None = None

    @torch.inference_mode()
    def run(self, plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        """Logits `[n, vocab]` at every wanted position, in the order of `wanted_positions`."""
        do_ops(plan.ops, self._cache, prefixes)
        self.finite.begin()
        inputs = model_inputs(plan.chunks, self._model, prefixes, self._device, self._dtype)
        wanted = wanted_positions(plan.chunks)
        layout = lay_out(plan.chunks, self._device)
        if self.fused is not None and layout.rows.shape[0] == plan.num_positions:
            return self._run_fused(self.fused, inputs, layout, wanted)
        self._attention.layout = layout
        try:
            # Some layers accept no empty selection: one position is computed and dropped.
            keep = torch.tensor(wanted or [0], device=self._device)
            logits: torch.Tensor = self._model(**inputs, use_cache=False, logits_to_keep=keep).logits[0]
        finally:
            self._attention.layout = None
        return kept(logits, keep)[: len(wanted)]

    @torch.inference_mode()
    def snapshot(self, row: int, length: int) -> PrefixKV:
        return self._cache.snapshot(row, length)

    def fuse(self) -> None:
        """Compute steps without branches by one call of a kernel, if the model has the structure for it.

        The model must have run once, so that the attention of its layers is known; the caller checks the result.
        """
        try:
            found = [self._attention.plain[index] for index in range(len(self._attention.plain))]
            self.fused = FusedDecoder(self._model, [layer for layer in found if layer is not None])
        except OtherStructure as reason:
            log.debug("steps are not fused: %s", reason)

    def _run_fused(
        self, fused: FusedDecoder, inputs: dict[str, torch.Tensor], layout: StepLayout, wanted: list[int]
    ) -> torch.Tensor:
        hidden = inputs.get("inputs_embeds")
        if hidden is None:
            hidden = self._model.get_input_embeddings()(inputs["input_ids"])
        logits, last = fused(hidden[0], layout.rows, layout.positions, torch.tensor(wanted, dtype=torch.long))
        self.finite.look(last)
        return logits


def kept(logits: torch.Tensor, keep: torch.Tensor | int) -> torch.Tensor:
    """The rows of `[positions, vocab]` that `logits_to_keep` selects.

    Models that don't know this argument return all rows; this function then selects them.
    """
    return logits if isinstance(keep, int) or logits.shape[0] == keep.shape[0] else logits[keep]


def do_ops(ops: Sequence[RowOp], cache: RowKVCache, prefixes: PrefixCache) -> None:
    """Apply copies and trims in order: a later one may use what an earlier one wrote."""
    for op in ops:
        match op:
            case Trim(row, first):
                cache.trim(row, first)
            case CopyPrefix(prefix_id, row):
                cache.restore(prefixes.get(prefix_id), row)
            case CopyRow(source, row, length):
                cache.copy_row(source, row, length)


def fed_tokens(chunk: Chunk) -> list[int]:
    """Tokens fed for a chunk: the main ones (0 in place of virtual ones), then every branch without its last token."""
    sequence = chunk.sequence
    first = chunk.start + chunk.num_virtual - sequence.num_virtual
    fed = [0] * chunk.num_virtual + sequence.tokens[first : first + chunk.count - chunk.num_virtual]
    for branch in chunk.branches:
        fed += branch[:-1]
    return fed


def virtual_tokens(chunk: Chunk, prefixes: PrefixCache, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The embeddings `[chunk.num_virtual, hidden_size]` of the chunk's virtual tokens."""
    assert chunk.sequence.prefix_id is not None
    embeddings = prefixes.prefix(chunk.sequence.prefix_id).input(dtype, device).embeddings
    assert embeddings is not None  # keys and values are never computed
    return embeddings[chunk.start : chunk.start + chunk.num_virtual]


def model_inputs(
    chunks: Sequence[Chunk], model: Any, prefixes: PrefixCache, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Model inputs of a packed pass: token ids and positions, `[1, tokens]`.

    If the chunks have virtual tokens, embeddings `[1, tokens, hidden_size]` replace the ids.
    """
    token_ids = upload([token for chunk in chunks for token in fed_tokens(chunk)], torch.long, device)
    positions = upload([position for chunk in chunks for position in fed_positions(chunk)], torch.long, device)
    if not any(chunk.num_virtual for chunk in chunks):
        return {"input_ids": token_ids[None], "position_ids": positions[None]}
    embeddings, begin = model.get_input_embeddings()(token_ids).clone(), 0
    for chunk in chunks:
        if chunk.num_virtual:
            embeddings[begin : begin + chunk.num_virtual] = virtual_tokens(chunk, prefixes, device, dtype)
        begin += chunk.num_positions
    return {"inputs_embeds": embeddings[None], "position_ids": positions[None]}


def fed_positions(chunk: Chunk) -> list[int]:
    """Position of each token of `fed_tokens`; every branch continues from the last main position."""
    after = chunk.start + chunk.count
    return [*range(chunk.start, after), *(after + i for branch in chunk.branches for i in range(len(branch) - 1))]


def wanted_positions(chunks: Sequence[Chunk]) -> list[int]:
    """Indices into the packed batch of the positions whose logits are needed.

    These are the last position of each chunk that samples or scores, positions before input tokens whose
    log-probabilities are wanted, and all positions of branches.
    """
    wanted: list[int] = []
    begin = 0
    for chunk in chunks:
        wanted.extend(range(begin + chunk.count - chunk.num_main_logits, begin + chunk.num_positions))
        begin += chunk.num_positions
    return wanted
