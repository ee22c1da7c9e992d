"""The attention function for paged caches: writes new keys and values to their slots and attends by block table.

With a kernel that reads block tables (`varlen_kernel`) all sequences of a step attend in one call. Without one, or for
features that the kernel lacks (soft-capping, sinks, candidates of a score), blocks are gathered and attended to with a
mask. The function knows nothing of scheduling, sampling or the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from inference_service.engine.kv.paged_cache import PagedKVCache
from inference_service.engine.kv.upload import upload
from inference_service.engine.run.masked_attention import LayerScoring, QuerySegment, additive, attend
from inference_service.engine.run.varlen_kernel import PackedSequences, VarlenKernel


@dataclass
class PagedLayout:
    """How one packed forward pass is divided: decodes first, then `segments`."""

    slots: torch.Tensor
    """Slot of each position's keys and values, `[tokens]`."""
    decode_rows: torch.Tensor
    """Row of each decode, `[decodes]`."""
    decode_positions: torch.Tensor
    """Position of each decode, `[decodes]`."""
    segments: Sequence[QuerySegment]
    longest: int
    """Slots of the longest decode; in a captured graph, of the longest possible one."""
    tables: torch.Tensor
    """The cache's block tables, `[rows, blocks]`."""

    @property
    def num_decodes(self) -> int:
        """Decodes of the pass."""
        return self.decode_rows.shape[0]

    @cached_property
    def packed(self) -> PackedSequences:
        """Arguments of the kernel, built once per step: decodes, then the segments without candidates."""
        device = self.slots.device
        segments = [segment for segment in self.segments if not segment.branch_lengths]
        offsets = torch.arange(self.num_decodes + 1, dtype=torch.int32, device=device)
        used, rows = (self.decode_positions + 1).int(), self.decode_rows
        if segments:
            moved = upload(
                [
                    [segment.count for segment in segments],
                    [segment.end for segment in segments],
                    [segment.row for segment in segments],
                ],
                torch.long,
                device,
            )
            offsets = torch.cat([offsets, (self.num_decodes + moved[0].cumsum(0)).int()])
            used, rows = torch.cat([used, moved[1].int()]), torch.cat([rows, moved[2]])
        longest = max([self.longest, *(segment.end for segment in segments)])
        return PackedSequences(
            offsets, used, self.tables[rows], max([1, *(segment.count for segment in segments)]), longest
        )

    @cached_property
    def plain_index(self) -> torch.Tensor:
        """Indices `[n]` of the packed batch's positions that the kernel computes, if candidates are among them."""
        plain = [
            position
            for segment in self.segments
            if not segment.branch_lengths
            for position in range(segment.begin, segment.begin + segment.count)
        ]
        return upload([*range(self.num_decodes), *plain], torch.long, self.slots.device)


class PagedAttention:
    """The attention function over a `PagedKVCache`, registered with `transformers.AttentionInterface`.

    `layout` is set before each forward pass.
    """

    def __init__(self, cache: PagedKVCache, kernel: VarlenKernel | None) -> None:
        self.cache, self.kernel = cache, kernel
        self.layout: PagedLayout | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
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
        keys, values = self.cache.layer(module.layer_idx)  # type: ignore[arg-type]
        keys.flatten(0, 1)[layout.slots] = key[0].transpose(0, 1)
        values.flatten(0, 1)[layout.slots] = value[0].transpose(0, 1)
        scoring = LayerScoring(
            scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window or 0, softcap, s_aux
        )
        packed = query[0].transpose(0, 1)  # [T, heads, width]
        if self.kernel is not None and scoring.plain and keys.shape[-1] == values.shape[-1]:
            return self._by_kernel(self.kernel, packed, keys, values, layout, scoring)[None], None
        return self._gathered(packed, keys, values, layout, scoring)[None], None

    def _by_kernel(
        self,
        kernel: VarlenKernel,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: PagedLayout,
        scoring: LayerScoring,
    ) -> torch.Tensor:
        packed, trees = layout.packed, [segment for segment in layout.segments if segment.branch_lengths]
        if not trees:
            return kernel(query, keys, values, packed, scoring)
        out = query.new_empty(*query.shape[:2], values.shape[-1])
        if packed.num_sequences:
            out[layout.plain_index] = kernel(query[layout.plain_index], keys, values, packed, scoring)
        for segment in trees:
            self._attend_segment(out, query, keys, values, segment, scoring)
        return out

    def _gathered(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, scoring: LayerScoring
    ) -> torch.Tensor:
        out = query.new_empty(*query.shape[:2], values.shape[-1])
        decodes = layout.num_decodes
        if decodes:
            blocks = -(-layout.longest // self.cache.block_tokens)
            tables = self.cache.tables[layout.decode_rows, :blocks]
            slots = torch.arange(blocks * self.cache.block_tokens, device=query.device)
            seen = slots <= layout.decode_positions[:, None]
            if scoring.window:
                seen &= slots > layout.decode_positions[:, None] - scoring.window
            mask = additive(seen, query.dtype)[:, None, None]
            attended = attend(query[:decodes, :, None], gather(keys, tables), gather(values, tables), mask, scoring)
            out[:decodes] = attended[:, :, 0]
        for segment in layout.segments:
            self._attend_segment(out, query, keys, values, segment, scoring)
        return out

    def _attend_segment(
        self,
        out: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        segment: QuerySegment,
        scoring: LayerScoring,
    ) -> None:
        part = slice(segment.begin, segment.begin + segment.count)
        table = self.cache.tables[segment.row : segment.row + 1, : -(-segment.end // self.cache.block_tokens)]
        k, v = gather(keys, table)[:, :, : segment.end], gather(values, table)[:, :, : segment.end]
        mask = segment.mask(scoring.window, query.dtype, query.device)
        attended = attend(query[part].transpose(0, 1)[None], k, v, mask, scoring)
        out[part] = attended[0].transpose(0, 1)


def gather(pool: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Keys or values of sequences from their blocks.

    pool `[blocks, block_tokens, heads, width]`, tables `[n, k]` -> `[n, heads, k * block_tokens, width]`.
    """
    return pool[tables.long()].flatten(1, 2).transpose(1, 2)
