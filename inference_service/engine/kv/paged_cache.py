"""The KV cache for GPUs: keys and values in blocks, with a block table for each row, in every layer.

Knows tensors; `blocks` assigns the blocks. Block 0 is for padding. The last blocks belong to the scratch row, where the
self-check computes; sequences get neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_service.engine.kv.blocks import NULL_BLOCK, BlockOp, ClearBlocks, CopyBlock, SetTable, WritePrefix
from inference_service.engine.kv.kv_cache import LayerShape, LayerTensors, PrefixKV
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.kv.upload import upload

SCRATCH_TOKENS = 32


class PagedKVCache(LayerTensors):
    """A paged cache, with tensors `[layers, blocks, block_tokens, heads, width]`.

    `tables` is `[rows, blocks of the longest sequence]`, int32, on the device. After the rows of sequences come the
    scratch row and the null row, whose table is all padding.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_rows: int,
        max_length: int,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens, self.max_length = block_tokens, max_length
        self.scratch_row, self.null_row = num_rows, num_rows + 1
        width = -(-max_length // block_tokens)
        scratch = -(-min(max_length, SCRATCH_TOKENS) // block_tokens)
        self.tables = torch.full((num_rows + 2, width), NULL_BLOCK, dtype=torch.int32, device=device)
        self.tables[self.scratch_row, :scratch] = torch.arange(
            1 + num_blocks, 1 + num_blocks + scratch, dtype=torch.int32
        )
        self._device = device

        def zeros(layers: int, heads: int, last: int) -> torch.Tensor:
            size = (layers, 1 + num_blocks + scratch, block_tokens, heads, last)
            return torch.zeros(size, dtype=dtype, device=device)

        super().__init__(shapes, zeros)

    def slots(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Slots of the rows' positions, counted over all blocks. All `[n]`, int64; doesn't wait for the device."""
        block = self.tables[rows, positions // self.block_tokens].long()
        return block * self.block_tokens + positions % self.block_tokens

    def do(self, ops: Sequence[BlockOp], prefixes: PrefixCache) -> None:
        """Apply operations in order: a later one may use what an earlier one wrote."""
        for op in ops:
            match op:
                case SetTable(row, first, blocks):
                    self.tables[row, first : first + len(blocks)] = upload(blocks, torch.int32, self._device)
                case ClearBlocks(_, blocks):
                    for tensor in (*self._keys, *self._values):
                        tensor[:, list(blocks)] = 0
                case CopyBlock(_, source, block):
                    for tensor in (*self._keys, *self._values):
                        tensor[:, block] = tensor[:, source]
                case WritePrefix(prefix_id, row, start):
                    self.restore(prefixes.get(prefix_id), row, start)

    def snapshot(self, row: int, length: int) -> PrefixKV:
        """A copy of the row's first `length` slots."""
        index = self._first_slots(row, 0, length)
        keys = tuple(tensor.flatten(1, 2)[:, index].transpose(1, 2).contiguous() for tensor in self._keys)
        return PrefixKV(
            length, keys, tuple(tensor.flatten(1, 2)[:, index].transpose(1, 2).contiguous() for tensor in self._values)
        )

    def restore(self, prefix: PrefixKV, row: int, start: int = 0) -> None:
        """Write the prefix's slots from `start` on into the row's blocks."""
        index = self._first_slots(row, start, prefix.num_virtual)
        for tensor, saved in zip((*self._keys, *self._values), (*prefix.keys, *prefix.values), strict=True):
            tensor.flatten(1, 2)[:, index] = saved[:, :, start:].transpose(1, 2)

    def _first_slots(self, row: int, start: int, end: int) -> torch.Tensor:
        positions = torch.arange(start, end, device=self._device)
        return self.slots(torch.full_like(positions, row), positions)
