"""PyTorch's variable-length attention over a block table (`torch.nn.attention.varlen`), proven on this device before it
is used.

What it takes depends on the release and on the flash kernels inside: the size of a block, and whether it wants the
keys' offsets beside their counts. So each way is tried on a small example and compared with attention written out.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

BLOCK_SIZES = (32, 256)
"""Smaller blocks share more; FlashAttention 2 takes only multiples of 256."""
_TOLERANCE = 0.03


class Scoring(Protocol):
    """What the kernel must know of `paged_attention.Rule`."""

    @property
    def scale(self) -> float: ...
    @property
    def window(self) -> int: ...


@dataclass(frozen=True)
class Packed:
    """Sequences behind one another: `offsets` `[n + 1]` of their queries, `used` `[n]` slots, `tables` `[n, blocks]`,
    all int32.

    The queries of a sequence are its last positions.
    """

    offsets: torch.Tensor
    used: torch.Tensor
    tables: torch.Tensor
    max_queries: int
    longest: int

    @property
    def num_sequences(self) -> int:
        return self.used.shape[0]

    @cached_property
    def key_offsets(self) -> torch.Tensor:
        return F.pad(self.used.cumsum(0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class VarlenKernel:
    """`attend` is `varlen_attn`; `with_offsets`: it wants the cumulative key counts, too."""

    attend: Callable[..., Any]
    block_tokens: int
    with_offsets: bool

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, packed: Packed, rule: Scoring
    ) -> torch.Tensor:
        """query `[T, heads, width]`, keys and values `[blocks, block_tokens, kv_heads, width]` -> `[T, heads, width]`."""
        out: torch.Tensor = self.attend(
            query.contiguous(),
            keys,
            values,
            packed.offsets,
            packed.key_offsets if self.with_offsets else None,
            packed.max_queries,
            packed.longest,
            scale=rule.scale,
            window_size=(rule.window - 1 if rule.window else -1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=packed.used,
            block_table=packed.tables,
        )
        return out


@dataclass(frozen=True)
class _Plain:
    scale: float
    window: int


def find_kernel(
    num_heads: int, num_kv_heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> VarlenKernel | None:
    """The first way of calling `varlen_attn` that gives the right numbers here; None where there is none."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if "block_table" not in inspect.signature(varlen_attn).parameters:
        return None
    for block_tokens in BLOCK_SIZES:
        for with_offsets in (False, True):
            kernel = VarlenKernel(varlen_attn, block_tokens, with_offsets)
            try:
                difference = error_of(kernel, num_heads, num_kv_heads, width, dtype, device)
            except (RuntimeError, TypeError, ValueError) as error:
                log.info("varlen_attn with blocks of %d tokens is not possible: %s", block_tokens, error)
                continue
            if difference < _TOLERANCE:
                return kernel
            log.warning("varlen_attn with blocks of %d tokens is off by %.2g of the norm", block_tokens, difference)
    return None


@torch.inference_mode()
def error_of(
    kernel: VarlenKernel, num_heads: int, num_kv_heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The largest difference from attention written out, relative to its norm, over decodes and a chunk, with a window
    and without.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    size = kernel.block_tokens
    keys, values = random(7, size, num_kv_heads, width), random(7, size, num_kv_heads, width)
    tables = torch.tensor([[5, 2], [1, 6], [3, 0], [4, 5]], dtype=torch.int32, device=device)
    counts, ends = [1, 1, 1, 4], [size + 3, 2 * size, 5, size + 2]
    offsets = torch.tensor([0, 1, 2, 3, 7], dtype=torch.int32, device=device)
    packed = Packed(offsets, torch.tensor(ends, dtype=torch.int32, device=device), tables, 4, 2 * size)
    decodes = Packed(offsets[:4], packed.used[:3], tables[:3], 1, 2 * size)
    query = random(7, num_heads, width)
    differences = []
    for window in (0, 4):
        rule = _Plain(width**-0.5, window)
        expected = torch.cat(
            [
                _written_out(part, keys[table.long()].flatten(0, 1), values[table.long()].flatten(0, 1), end, rule)
                for part, table, end in zip(torch.split(query, counts), tables, ends, strict=True)
            ]
        )
        for got, wanted in (
            (kernel(query, keys, values, packed, rule), expected),
            (kernel(query[:3], keys, values, decodes, rule), expected[:3]),
        ):
            differences.append(float((got.float() - wanted).norm() / wanted.norm()))
    return max(differences)


def _written_out(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, end: int, rule: _Plain) -> torch.Tensor:
    """query `[q, heads, width]` are the last of `end` positions -> the same shape, float32."""
    groups = query.shape[1] // keys.shape[1]
    q = query.float().transpose(0, 1)
    k = keys[:end].float().transpose(0, 1).repeat_interleave(groups, 0)
    v = values[:end].float().transpose(0, 1).repeat_interleave(groups, 0)
    slots = torch.arange(end, device=query.device)
    own = slots[end - query.shape[0] :, None]
    seen = slots <= own
    if rule.window:
        seen &= slots > own - rule.window
    scores = (q @ k.transpose(1, 2) * rule.scale).masked_fill(~seen, float("-inf"))
    return (torch.softmax(scores, -1) @ v).transpose(0, 1)
