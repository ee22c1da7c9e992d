"""The attention function for row caches: writes new keys and values to their rows and attends to them.

transformers' modules call it. One forward pass carries the positions of many sequences, packed one after another (batch
1). A `StepLayout`, built once per step, says which positions belong together and which slots they may see. The function
knows nothing of scheduling, sampling or the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk
from inference_service.engine.kv.kv_cache import RowKVCache
from inference_service.engine.run.masked_attention import LayerScoring, QuerySegment, additive, attend
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
            self.masks[window] = additive(seen, dtype)[:, None, None]
        return self.masks[window]


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
        segments.append(QuerySegment(offset, chunk.num_positions, chunk.row, chunk.start, chunk.branch_lengths))
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
        scoring = LayerScoring(query.shape[3] ** -0.5 if scaling is None else scaling, window, softcap, s_aux)
        if index not in self.plain:
            self.plain[index] = LayerAttention(keys, values, window, scoring.scale) if scoring.plain else None
        outputs: list[torch.Tensor] = []
        native = scoring.plain and ops.can_attend(keys, values)
        if first := layout.rows.shape[0] if native else layout.num_decodes:
            new = (
                query[0, :, :first].transpose(0, 1),
                key[0, :, :first].transpose(0, 1),
                value[0, :, :first].transpose(0, 1),
            )
            if native:
                outputs.append(
                    ops.cached_attention(*new, keys, values, layout.rows, layout.positions, window, scoring.scale)
                )
            else:
                outputs.append(_attend_decodes(layout, *new, keys, values, scoring))
        for segment in layout.segments:
            if segment.begin < first:
                continue
            part, row = slice(segment.begin, segment.begin + segment.count), slice(segment.row, segment.row + 1)
            keys[segment.row, :, segment.start : segment.end] = key[0, :, part]
            values[segment.row, :, segment.start : segment.end] = value[0, :, part]
            mask = segment.mask(window, query.dtype, query.device)
            seen = slice(max(0, segment.start + 1 - window) if window else 0, segment.end)
            shown = None if mask is None else mask[..., seen]
            attended = attend(query[:, :, part], keys[row, :, seen], values[row, :, seen], shown, scoring)
            outputs.append(attended[0].transpose(0, 1))
        return _concatenate(outputs)[None], None


def _attend_decodes(
    layout: StepLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scoring: LayerScoring,
) -> torch.Tensor:
    """Write the keys and values of the step's decodes and attend, with one call per group.

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
        part, place = slice(group.begin, group.begin + group.count), slice(group.row, group.row + group.count)
        mask = group.mask(scoring.window, query.dtype)
        attended.append(
            attend(grouped[part], keys[place, :, : group.end], values[place, :, : group.end], mask, scoring)
        )
    return _concatenate(attended).reshape(decodes, heads, width)


def _concatenate(parts: list[torch.Tensor]) -> torch.Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
