"""The attention function for row caches: writes new keys and values to their rows and attends to them.

transformers' modules call it. One forward pass carries the positions of many sequences, packed one after another (batch
1). A `StepLayout`, built once per step, says which positions belong together and which slots they may see. The function
knows nothing of scheduling, sampling or the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F

from inference_service.engine.core.plan import Chunk
from inference_service.engine.kv.kv_cache import RowKVCache
from shared.kernels import ops
from shared.kernels.fused_decoder import LayerAttention


@dataclass
class DecodeGroup:
    """Decodes of neighbouring rows `[row, row + count)`: one dense attention call over their first `end` slots."""

    begin: int
    count: int
    row: int
    end: int
    positions: torch.Tensor
    """Position of each decode, `[count]`, on the device."""
    masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask `[count, 1, 1, end]`; built once per step for each window size (0 means no window)."""
        if window not in self.masks:
            slots = torch.arange(self.end, device=self.positions.device)
            seen = slots <= self.positions[:, None]
            if window:
                seen &= slots > self.positions[:, None] - window
            self.masks[window] = _additive(seen, dtype)[:, None, None]
        return self.masks[window]


@dataclass
class QuerySegment:
    """Consecutive queries of one sequence: prefill, or the candidates of a score."""

    begin: int
    count: int
    row: int
    start: int
    branch_lengths: tuple[int, ...]
    device: torch.device
    masks: dict[int, torch.Tensor | None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The position after its last query."""
        return self.start + self.count

    @property
    def plainly_causal(self) -> bool:
        """Whether the mask is a plain triangle, without a window."""
        return self.start == 0 and not self.branch_lengths

    def positions(self) -> list[int]:
        """Position of each query from the first virtual token on. Branches continue from the last main position."""
        main = self.count - sum(self.branch_lengths)
        after = self.start + main
        return [*range(self.start, after), *(after + i for length in self.branch_lengths for i in range(length))]

    def mask(self, window: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask `[1, 1, count, end]`, or None for a plain triangle.

        Queries see earlier slots, and of the branches only their own.
        """
        if window not in self.masks:
            self.masks[window] = (
                None if self.plainly_causal and not 0 < window < self.count else self._build(window, dtype)
            )
        return self.masks[window]

    def _build(self, window: int, dtype: torch.dtype) -> torch.Tensor:
        query_positions = torch.tensor(self.positions(), device=self.device)
        slots = torch.arange(self.end, device=self.device)
        slot_positions = torch.cat([slots[: self.start], query_positions])
        seen = slots <= slots[self.start :, None]
        if self.branch_lengths:
            main = self.count - sum(self.branch_lengths)
            branch = torch.repeat_interleave(
                torch.arange(len(self.branch_lengths) + 1, device=self.device),
                torch.tensor([main, *self.branch_lengths], device=self.device),
            )
            slot_branch = torch.cat([branch.new_zeros(self.start), branch])
            seen &= (slot_branch == 0) | (slot_branch == branch[:, None])
        if window:
            seen &= slot_positions > query_positions[:, None] - window
        return _additive(seen, dtype)[None, None]


@dataclass
class StepLayout:
    """How one packed forward pass is divided into attention calls."""

    groups: list[DecodeGroup]
    segments: list[QuerySegment]
    num_decodes: int
    """Number of decode tokens, which come first; `groups` covers them."""
    rows: torch.Tensor
    """Row of each token before the first branch, `[tokens]`, decodes first."""
    positions: torch.Tensor
    """Position of each of these tokens in its row."""


MAX_PADDING = 2.0
"""A decode group ends where padding to its longest row would read more than this multiple of its slots."""


def lay_out(chunks: Sequence[Chunk], device: torch.device) -> StepLayout:
    """Build the layout of a step.

    `chunks` must be in the order of `StepPlan`: those of one position first, by row, then by length, and those with
    branches last.
    """
    singles = [chunk for chunk in chunks if chunk.num_positions == 1]
    causal = list(takewhile(lambda chunk: not chunk.branch_lengths, chunks))
    rows = torch.tensor(
        [chunk.row for chunk in causal for _ in range(chunk.num_positions)], dtype=torch.long, device=device
    )
    positions = torch.tensor(
        [chunk.start + i for chunk in causal for i in range(chunk.num_positions)], dtype=torch.long, device=device
    )
    groups: list[DecodeGroup] = []
    begin = 0
    while begin < len(singles):
        stop, end, used = begin + 1, singles[begin].start + 1, singles[begin].start + 1
        while stop < len(singles) and singles[stop].row == singles[stop - 1].row + 1:
            wider = max(end, singles[stop].start + 1)
            used += singles[stop].start + 1
            if wider * (stop - begin + 1) > MAX_PADDING * used + 64:
                break
            stop, end = stop + 1, wider
        groups.append(DecodeGroup(begin, stop - begin, singles[begin].row, end, positions[begin:stop]))
        begin = stop
    segments: list[QuerySegment] = []
    offset = len(singles)
    for chunk in chunks[len(singles) :]:
        segments.append(QuerySegment(offset, chunk.num_positions, chunk.row, chunk.start, chunk.branch_lengths, device))
        offset += chunk.num_positions
    return StepLayout(groups, segments, len(singles), rows, positions)


class CachedAttention:
    """The attention function over a row cache, registered with `transformers.AttentionInterface` under a unique name.

    `layout` is set before each forward pass.
    """

    def __init__(self, cache: RowKVCache) -> None:
        self.cache = cache
        self.layout: StepLayout | None = None
        self.plain: dict[int, LayerAttention | None] = {}
        """Of each layer that was called: its attention, or None if it is not only scaled and perhaps windowed."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Write the keys and values of a packed pass and attend.

        query `[1, heads, T, width]`, key and value `[1, kv_heads, T, width]` -> `[1, T, heads, value width]`.
        """
        layout = self.layout
        if layout is None:
            raise RuntimeError("attention is called outside a step")
        index: int = module.layer_idx  # type: ignore[assignment]
        keys, values = self.cache.layer(index)
        window = sliding_window or 0
        if index not in self.plain:
            scale = query.shape[3] ** -0.5 if scaling is None else scaling
            is_plain = softcap is None and s_aux is None
            self.plain[index] = LayerAttention(keys, values, window, scale) if is_plain else None
        attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        if softcap is not None or s_aux is not None:
            attend = _Explicit(softcap, s_aux)
        heads, kv_heads, decodes = query.shape[1], value.shape[1], layout.num_decodes
        outputs: list[torch.Tensor] = []
        native = attend is F.scaled_dot_product_attention and ops.can_attend(keys, values)
        if first := layout.rows.shape[0] if native else decodes:
            new = (
                query[0, :, :first].transpose(0, 1),
                key[0, :, :first].transpose(0, 1),
                value[0, :, :first].transpose(0, 1),
            )
            if native:
                outputs.append(ops.cached_attention(*new, keys, values, layout.rows, layout.positions, window, scaling))
            else:
                outputs.append(self._attend_decodes(attend, layout, *new, keys, values, window, scaling))
        for segment in layout.segments:
            if segment.begin < first:
                continue
            part, row = slice(segment.begin, segment.begin + segment.count), slice(segment.row, segment.row + 1)
            keys[segment.row, :, segment.start : segment.end] = key[0, :, part]
            values[segment.row, :, segment.start : segment.end] = value[0, :, part]
            mask = segment.mask(window, query.dtype)
            seen = slice(max(0, segment.start + 1 - window) if window else 0, segment.end)
            attended = attend(
                query[:, :, part],
                keys[row, :, seen],
                values[row, :, seen],
                attn_mask=None if mask is None else mask[..., seen],
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=heads != kv_heads,
            )
            outputs.append(attended[0].transpose(0, 1))
        return _concatenate(outputs)[None], None

    @staticmethod
    def _attend_decodes(
        attend: Callable[..., torch.Tensor],
        layout: StepLayout,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int,
        scaling: float | None,
    ) -> torch.Tensor:
        """Attend for the step's decodes, with one call per group.

        query `[decodes, heads, width]`, key and value `[decodes, kv_heads, width]` -> `[decodes, heads, value width]`.
        """
        decodes, heads, _ = query.shape
        kv_heads, width = value.shape[1:]
        rows, positions = layout.rows[:decodes], layout.positions[:decodes]
        keys[rows, :, positions] = key
        values[rows, :, positions] = value
        # The query heads of one key head become the queries of that head, so no key is repeated.
        grouped = query.reshape(decodes, kv_heads, heads // kv_heads, query.shape[2])
        attended = []
        for group in layout.groups:
            part = slice(group.begin, group.begin + group.count)
            rows_of_group = slice(group.row, group.row + group.count)
            mask = group.mask(window, query.dtype)
            attended.append(
                attend(
                    grouped[part],
                    keys[rows_of_group, :, : group.end],
                    values[rows_of_group, :, : group.end],
                    attn_mask=mask,
                    scale=scaling,
                )
            )
        return _concatenate(attended).reshape(decodes, heads, width)


class _Explicit:
    """Attention in plain operations, for features that the fused kernels lack.

    These are soft-capped scores (Gemma 2) and attention sinks (gpt-oss).
    """

    def __init__(self, softcap: float | None, sinks: torch.Tensor | None) -> None:
        self.softcap, self.sinks = softcap, sinks

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        scale: float | None,
        is_causal: bool = False,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """query `[rows, heads, queries, width]`.

        With `enable_gqa` the number of heads is a multiple of the keys' heads; otherwise they are the grouped heads of
        a decode.
        """
        rows, heads, queries, width = query.shape
        kv_heads = key.shape[1]
        grouped = query.reshape(rows, kv_heads, -1, width)
        scores = grouped @ key.transpose(2, 3) * (width**-0.5 if scale is None else scale)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.view(rows, heads, queries, -1)
        if is_causal:
            seen = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - queries)
            scores = scores.masked_fill(~seen, -math.inf)
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = self._softmax(scores).to(value.dtype)
        return (weights.view(rows, kv_heads, -1, key.shape[2]) @ value).view(rows, heads, queries, -1)

    def _softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Softmax with sinks: one more score for each query head, which takes weight and has no value.

        In a decode the query heads are in the dimension of the queries, so the view of the sinks is `[heads, queries]`
        or `[heads, 1]`.
        """
        if self.sinks is None:
            return torch.softmax(scores, dim=-1, dtype=torch.float32)
        rows, heads, queries, slots = scores.shape
        column = self.sinks.view(heads, -1)[None, :, :, None].expand(rows, heads, queries, 1)
        return torch.softmax(torch.cat([scores, column.to(scores.dtype)], -1), dim=-1, dtype=torch.float32)[..., :slots]


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def _concatenate(parts: list[torch.Tensor]) -> torch.Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
