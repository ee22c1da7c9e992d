"""Keys and values of running sequences: one row of slots for each, in every layer. Knows tensors; who holds which row
is `rows`' business.

On the CPU a row is address space for the longest sequence, and the operating system commits a page when it is first
written (the idea of vAttention, Prabhu et al. 2024): attention reads neighbouring rows as one dense tensor, with no
block table and no gathering, and a short sequence costs the memory of a short sequence. `trim` gives a row's pages
back. On other devices rows are allocated whole.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class LayerShape:
    """Of one layer's cache: heads, and the width of a key and of a value (they differ in some architectures)."""

    num_heads: int
    key_width: int
    value_width: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.num_heads * (self.key_width + self.value_width) * dtype.itemsize


@dataclass(frozen=True)
class PrefixKV:
    """The keys and values of a soft prompt's positions. `keys[g]`: `[layers of group g, heads, num_virtual, width]`."""

    num_virtual: int
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(tensor).all()) for tensor in (*self.keys, *self.values))


class KVCache(Protocol):
    """What the model runner needs of a cache, whatever its memory looks like."""

    num_rows: int
    max_length: int
    bytes_per_token: int

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) of a layer, each `[rows, heads, max_length, width]`; written and read in place."""

    def copy_row(self, source: int, row: int, length: int) -> None: ...

    def snapshot(self, row: int, length: int) -> PrefixKV: ...

    def restore(self, prefix: PrefixKV, row: int) -> None: ...

    def trim(self, row: int, first: int = 0) -> None: ...


class RowKVCache:
    """Layers of one shape share one tensor `[layers, rows, heads, max_length, width]`, so that a prefix is copied in
    one operation.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], num_rows: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_rows, self.max_length = num_rows, max_length
        self.bytes_per_token = sum(shape.bytes_per_token(dtype) for shape in shapes)
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._maps: list[tuple[torch.Tensor, mmap.mmap]] = []
        self._page_bytes = mmap.PAGESIZE
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(shapes)
        for shape in dict.fromkeys(shapes):
            members = [index for index, other in enumerate(shapes) if other == shape]
            for tensors, width in ((self._keys, shape.key_width), (self._values, shape.value_width)):
                tensors.append(
                    self._allocate((len(members), num_rows, shape.num_heads, max_length, width), dtype, device)
                )
            for position, index in enumerate(members):
                self._layers[index] = (self._keys[-1][position], self._values[-1][position])

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._layers[index]

    def copy_row(self, source: int, row: int, length: int) -> None:
        for tensor in (*self._keys, *self._values):
            tensor[:, row, :, :length] = tensor[:, source, :, :length]

    def snapshot(self, row: int, length: int) -> PrefixKV:
        keys = tuple(tensor[:, row, :, :length].clone() for tensor in self._keys)
        return PrefixKV(length, keys, tuple(tensor[:, row, :, :length].clone() for tensor in self._values))

    def restore(self, prefix: PrefixKV, row: int) -> None:
        for tensor, saved in zip((*self._keys, *self._values), (*prefix.keys, *prefix.values), strict=True):
            tensor[:, row, :, : prefix.num_virtual] = saved

    def trim(self, row: int, first: int = 0) -> None:
        """Give the row's pages from slot `first` on back; its slots read as zeros afterwards (so a NaN that was there
        is gone, too).
        """
        if not self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            for tensor in (*self._keys, *self._values):
                tensor[:, row, :, first:] = 0
            return
        for tensor, memory in self._maps:
            for layer in tensor[:, row, :, first:].unbind():
                # From slot 0 on, the heads of a layer lie in one piece.
                for piece in layer.unbind() if first else [layer]:
                    self._drop(piece.reshape(-1), memory)

    def _drop(self, row: torch.Tensor, memory: mmap.mmap) -> None:
        """Whole pages go back to the system; what shares a page with a neighbour is zeroed."""
        begin, num_bytes = row.storage_offset() * row.element_size(), row.nbytes
        first = -(-begin // self._page_bytes) * self._page_bytes
        last = (begin + num_bytes) // self._page_bytes * self._page_bytes
        if last <= first:
            row.zero_()
            return
        width = row.element_size()
        row[: (first - begin) // width] = 0
        row[(last - begin) // width :] = 0
        memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        num_bytes = max(1, torch.Size(shape).numel() * dtype.itemsize)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, num_bytes, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A huge page would span the beginnings of several rows and commit what nobody uses.
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        tensor = torch.frombuffer(memory, dtype=dtype, count=torch.Size(shape).numel()).view(shape)
        self._maps.append((tensor, memory))
        return tensor
