"""How a layer scores, the masks of a step's longer chunks, and attention with a mask, over rows or blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class LayerScoring:
    """How a layer scores: `cap(query . key * scale)`. Slots `window` or more positions back are hidden (0: none)."""

    scale: float
    window: int
    softcap: float | None = None
    """The cap is `softcap * tanh(score / softcap)` (Gemma 2)."""
    sinks: torch.Tensor | None = None
    """`[heads]`: one more score for each query head, which takes weight and has no value (gpt-oss)."""

    @property
    def plain(self) -> bool:
        """Whether the layer has neither a soft cap nor sinks."""
        return self.softcap is None and self.sinks is None


@dataclass
class QuerySegment:
    """Queries `[begin, begin + count)` of the packed batch: a chunk of several positions, or one with candidates."""

    begin: int
    count: int
    row: int
    start: int
    branch_lengths: tuple[int, ...] = ()
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

    def mask(self, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Additive mask `[1, 1, count, end]`, or None for a plain triangle; built once for each window size.

        Queries see earlier slots within `window` (0 means no window), and of the branches only their own.
        """
        if window not in self.masks:
            is_triangle = self.plainly_causal and not 0 < window < self.count
            self.masks[window] = None if is_triangle else self._build(window, dtype, device)
        return self.masks[window]

    def _build(self, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        query_positions = torch.tensor(self.positions(), device=device)
        slots = torch.arange(self.end, device=device)
        slot_positions = torch.cat([slots[: self.start], query_positions])
        seen = slots <= slots[self.start :, None]
        if self.branch_lengths:
            main = self.end - sum(self.branch_lengths)
            lengths = torch.tensor([main, *self.branch_lengths], device=device)
            branch = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
            seen &= (branch == 0) | (branch == branch[self.start :, None])
        if window:
            seen &= slot_positions > query_positions[:, None] - window
        return additive(seen, dtype)[None, None]


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask to add to scores: 0 where `seen`, else minus infinity."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scoring: LayerScoring
) -> torch.Tensor:
    """Attention with an additive mask, or with a plain triangle without one.

    query `[n, heads, q, width]`, keys and values `[n, kv_heads, k, width]`, mask `[n, 1, q, k]` -> `[n, heads, q, value
    width]`. In a decode the query heads of one key head may be the queries of that head.
    """
    if not scoring.plain:
        return attend_in_steps(query, keys, values, mask, scoring)
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scoring.scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def attend_in_steps(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scoring: LayerScoring
) -> torch.Tensor:
    """`attend` in plain operations, for features that the fused kernels lack."""
    rows, heads, queries, width = query.shape
    kv_heads, slots = keys.shape[1:3]
    scores = (query.reshape(rows, kv_heads, -1, width) @ keys.transpose(2, 3)).float() * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores = scores.view(rows, heads, queries, slots)
    if mask is None:
        mask = additive(torch.ones(queries, slots, dtype=torch.bool, device=query.device).tril(), scores.dtype)
    scores = scores + mask
    if scoring.sinks is not None:
        # In a decode with grouped heads, the view of the sinks is `[heads, queries]`, otherwise `[heads, 1]`.
        column = scoring.sinks.view(heads, -1)[None, :, :, None].expand(rows, heads, queries, 1)
        scores = torch.cat([scores, column.to(scores.dtype)], -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32)[..., :slots].to(values.dtype)
    return (weights.view(rows, kv_heads, -1, slots) @ values).view(rows, heads, queries, -1)
