"""Keys and values of running sequences, with one row of slots per sequence in every layer.

Knows tensors; `rows` assigns the rows. On the CPU a row is address space for the longest sequence, and the operating
system commits a page when it is first written (the idea of vAttention, Prabhu et al. 2024). Attention reads
neighbouring rows as one dense tensor without block tables and gathering, and a short sequence takes little memory.
`trim` returns a row's pages. On other devices rows are allocated completely.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerShape:
    """Shape of one layer's cache: key-value heads, and the width of keys and of values (some architectures differ)."""

    num_heads: int
    key_width: int
    value_width: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of one position's key and value in this layer."""
        return self.num_heads * (self.key_width + self.value_width) * dtype.itemsize


@dataclass(frozen=True)
class PrefixKV:
    """The keys and values of a soft prompt's positions. `keys[g]`: `[layers of group g, heads, num_virtual, width]`."""

    num_virtual: int
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def finite(self) -> bool:
        """Whether all keys and values are finite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in (*self.keys, *self.values))


class LayerTensors:
    """The keys and values of all layers. Layers of one shape share one tensor, whose first dimension is the layer: one
    operation per shape copies a prefix.
    """

    def __init__(self, shapes: Sequence[LayerShape], allocate: Callable[[int, int, int], torch.Tensor]) -> None:
        """`allocate` makes the tensor of a number of layers, heads and a width, filled with zeros."""
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(shapes)
        for shape in dict.fromkeys(shapes):
            members = [index for index, other in enumerate(shapes) if other == shape]
            self._keys.append(allocate(len(members), shape.num_heads, shape.key_width))
            self._values.append(allocate(len(members), shape.num_heads, shape.value_width))
            for position, index in enumerate(members):
                self._layers[index] = (self._keys[-1][position], self._values[-1][position])

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) of a layer, without the first dimension, to be written and read in place."""
        return self._layers[index]


class RowKVCache(LayerTensors):
    """A row cache, with tensors `[layers, rows, heads, max_length, width]`."""

    def __init__(
        self, shapes: Sequence[LayerShape], num_rows: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_rows, self.max_length = num_rows, max_length
        self.bytes_per_token = sum(shape.bytes_per_token(dtype) for shape in shapes)
        self._maps: list[tuple[torch.Tensor, mmap.mmap]] = []
        super().__init__(
            shapes,
            lambda layers, heads, width: self._allocate((layers, num_rows, heads, max_length, width), dtype, device),
        )

    def copy_row(self, source: int, row: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to `row`."""
        for tensor in (*self._keys, *self._values):
            tensor[:, row, :, :length] = tensor[:, source, :, :length]

    def snapshot(self, row: int, length: int) -> PrefixKV:
        """A copy of the row's first `length` slots."""
        keys = tuple(tensor[:, row, :, :length].clone() for tensor in self._keys)
        return PrefixKV(length, keys, tuple(tensor[:, row, :, :length].clone() for tensor in self._values))

    def restore(self, prefix: PrefixKV, row: int) -> None:
        """Write the prefix into the row's first slots."""
        for tensor, saved in zip((*self._keys, *self._values), (*prefix.keys, *prefix.values), strict=True):
            tensor[:, row, :, : prefix.num_virtual] = saved

    def trim(self, row: int, first: int = 0) -> None:
        """Return the row's pages from slot `first` on to the system. The slots then read as zeros, NaNs too."""
        if not self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            for tensor in (*self._keys, *self._values):
                tensor[:, row, :, first:] = 0
            return
        for tensor, memory in self._maps:
            for layer in tensor[:, row, :, first:].unbind():
                # From slot 0 on, the heads of a layer are contiguous.
                for piece in layer.unbind() if first else [layer]:
                    self._drop(piece.reshape(-1), memory)

    def _drop(self, row: torch.Tensor, memory: mmap.mmap) -> None:
        """Return whole pages to the system; zero the parts of pages that are shared with neighbours."""
        begin, num_bytes = row.storage_offset() * row.element_size(), row.nbytes
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
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
            # A huge page would span the beginnings of several rows and commit unused memory.
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        tensor = torch.frombuffer(memory, dtype=dtype, count=torch.Size(shape).numel()).view(shape)
        self._maps.append((tensor, memory))
        return tensor
