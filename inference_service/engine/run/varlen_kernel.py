"""PyTorch's variable-length attention over a block table (`torch.nn.attention.varlen`), tested on the device first.

Its requirements depend on the release and on the flash kernels inside: the size of a block, and whether it takes the
keys' offsets in addition to their counts. Each way of calling it is therefore tried on examples and compared with
attention in plain operations: a small one with every kind of sequence, and decodes of the longest sequences in batches
of different sizes, because the kernel may divide long keys among thread blocks. With a block table, this division
writes only the first sequence's rows (https://github.com/pytorch/pytorch/issues/194167), so it is switched off.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F

from inference_service.engine.run.masked_attention import LayerScoring, QuerySegment, attend_in_steps

log = logging.getLogger(__name__)

BLOCK_SIZES = (32, 256)
"""Block sizes to try: smaller blocks share more; FlashAttention 2 accepts only multiples of 256."""
_TOLERANCE = 0.03
_CHECKED_BYTES = 64 << 20
"""Memory of the keys and values with which a kernel is checked; those of `max_length` can take gigabytes."""


@dataclass(frozen=True)
class PackedSequences:
    """Sequences packed one after another; their queries are their last positions.

    `offsets` `[n + 1]` of their queries, `used` `[n]` slots, `tables` `[n, blocks]`, all int32.
    """

    offsets: torch.Tensor
    used: torch.Tensor
    tables: torch.Tensor
    max_queries: int
    longest: int

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.used.shape[0]

    @cached_property
    def key_offsets(self) -> torch.Tensor:
        """Cumulative counts of used slots, `[n + 1]`, int32."""
        return F.pad(self.used.cumsum(0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class VarlenKernel:
    """One way of calling `varlen_attn`, which is `attend`. `with_offsets` also passes the cumulative key counts."""

    attend: Callable[..., Any]
    block_tokens: int
    with_offsets: bool

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        packed: PackedSequences,
        scoring: LayerScoring,
    ) -> torch.Tensor:
        """Attend over the blocks of each sequence.

        query `[T, heads, width]`, keys and values `[blocks, block_tokens, kv_heads, width]` -> `[T, heads, width]`.
        """
        out: torch.Tensor = self.attend(
            query.contiguous(),
            keys,
            values,
            packed.offsets,
            packed.key_offsets if self.with_offsets else None,
            packed.max_queries,
            packed.longest,
            scale=scoring.scale,
            window_size=(scoring.window - 1 if scoring.window else -1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=packed.used,
            block_table=packed.tables,
        )
        return out


def find_kernel(
    num_heads: int,
    num_kv_heads: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    max_length: int,
    batches: Sequence[int],
) -> VarlenKernel | None:
    """The first way of calling `varlen_attn` that gives the right numbers on this device, or None.

    It is tried with decodes of `max_length` positions, or of as many as take `_CHECKED_BYTES`, in batches of these
    sizes. Raises torch.OutOfMemoryError.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    shape = num_heads, num_kv_heads, width, dtype, device
    length = min(max_length, _CHECKED_BYTES // (2 * num_kv_heads * width * dtype.itemsize))
    for kernel in variants(varlen_attn):
        try:
            difference = error_of(kernel, *shape)
            for batch in batches if difference < _TOLERANCE else ():
                difference = max(difference, decode_error_of(kernel, *shape, length, batch))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            log.info("varlen_attn does not support blocks of %d tokens: %s", kernel.block_tokens, error)
            continue
        if difference < _TOLERANCE:
            return kernel
        log.warning("varlen_attn with blocks of %d tokens is off by %.2g of the norm", kernel.block_tokens, difference)
    return None


def variants(varlen_attn: Callable[..., Any]) -> Iterator[VarlenKernel]:
    """The ways of calling a release's `varlen_attn` with block tables; none if it takes none."""
    parameters = inspect.signature(varlen_attn).parameters
    if "block_table" not in parameters:
        return
    attend = partial(varlen_attn, num_splits=1) if "num_splits" in parameters else varlen_attn
    for block_tokens in BLOCK_SIZES:
        for with_offsets in (False, True):
            yield VarlenKernel(attend, block_tokens, with_offsets)


@torch.inference_mode()
def error_of(
    kernel: VarlenKernel, num_heads: int, num_kv_heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The kernel's largest difference from attention in plain operations, relative to its norm.

    The example has decodes and a chunk, each with and without a window.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    size = kernel.block_tokens
    keys, values = random(7, size, num_kv_heads, width), random(7, size, num_kv_heads, width)
    tables = torch.tensor([[5, 2], [1, 6], [3, 0], [4, 5]], dtype=torch.int32, device=device)
    counts, ends = [1, 1, 1, 4], [size + 3, 2 * size, 5, size + 2]
    offsets = torch.tensor([0, 1, 2, 3, 7], dtype=torch.int32, device=device)
    packed = PackedSequences(offsets, torch.tensor(ends, dtype=torch.int32, device=device), tables, 4, 2 * size)
    decodes = PackedSequences(offsets[:4], packed.used[:3], tables[:3], 1, 2 * size)
    query = random(7, num_heads, width)
    differences = []
    for window in (0, 4):
        scoring = LayerScoring(width**-0.5, window)
        expected = torch.cat(
            [
                _in_steps(part, keys[table.long()], values[table.long()], end, scoring)
                for part, table, end in zip(torch.split(query, counts), tables, ends, strict=True)
            ]
        )
        for got, wanted in (
            (kernel(query, keys, values, packed, scoring), expected),
            (kernel(query[:3], keys, values, decodes, scoring), expected[:3]),
        ):
            differences.append(float((got.float() - wanted).norm() / wanted.norm()))
    return max(differences)


@torch.inference_mode()
def decode_error_of(
    kernel: VarlenKernel,
    num_heads: int,
    num_kv_heads: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    length: int,
    batch: int,
) -> float:
    """The largest difference of a decode in a batch of sequences of `length` positions; infinite for a missing row.

    All sequences have the same blocks, each in an order of its own. With one query each, the order doesn't matter if
    the blocks are full, so all must get the same numbers from the same query.
    """
    generator = torch.Generator().manual_seed(0)
    blocks = max(1, length // kernel.block_tokens)
    keys, values = (
        torch.randn(blocks, kernel.block_tokens, num_kv_heads, width, generator=generator).to(device, dtype)
        for _ in range(2)
    )
    query = torch.randn(1, num_heads, width, generator=generator).to(device, dtype)
    tables = torch.stack([torch.randperm(blocks, generator=generator) for _ in range(batch)]).int().to(device)
    end = blocks * kernel.block_tokens
    used = torch.full((batch,), end, dtype=torch.int32, device=device)
    packed = PackedSequences(torch.arange(batch + 1, dtype=torch.int32, device=device), used, tables, 1, end)
    scoring = LayerScoring(width**-0.5, 0)
    expected = _in_steps(query, keys, values, end, scoring)
    got = kernel(query.expand(batch, -1, -1), keys, values, packed, scoring).float()
    worst = float((got - expected).flatten(1).norm(dim=1).max() / expected.norm())
    return worst if math.isfinite(worst) else math.inf


def _in_steps(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, end: int, scoring: LayerScoring
) -> torch.Tensor:
    """Attention in plain operations, float32, for one sequence of the example.

    query `[q, heads, width]` are the last of `end` positions, whose keys and values are in
    `[blocks, block_tokens, kv_heads, width]`.
    """
    q, k, v = (
        tensor.float().transpose(0, 1)[None] for tensor in (query, keys.flatten(0, 1)[:end], values.flatten(0, 1)[:end])
    )
    count = query.shape[0]
    mask = QuerySegment(0, count, 0, end - count).mask(scoring.window, q.dtype, q.device)
    return attend_in_steps(q, k, v, mask, scoring)[0].transpose(0, 1)
