"""The compiled kernels as functions of tensors, on a CPU.

Kernels read memory unchecked, so every function here checks dtype, device and shapes, and raises ValueError if its
kernel would misread a tensor. Tensors are bfloat16 or float32, arithmetic is float32. Call `takes`, `can_attend` or
`library.load` first to check that the kernels are available.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch

from shared.kernels import library

LANES = 16
"""Sizes are multiples of this: the numbers of float32 in the widest vector register (`PANEL` of simd.h)."""
_PARALLEL_NUMEL = 1 << 16
"""With fewer numbers, waking other threads takes longer than an elementwise kernel."""
DTYPES = (torch.float32, torch.bfloat16)
_CACHE_WIDTHS = (32, 64, 96, 128)
OUTSIDE = -2
_WEIGHTS = library.STRUCTURES["Weights"]


def takes(tensor: torch.Tensor, width: int) -> bool:
    """Whether the elementwise kernels and `packed_attention` are available for such tensors with rows of `width`."""
    fits = tensor.is_cpu and tensor.dtype in DTYPES and width % LANES == 0 and width > 0
    return fits and library.load() is not None


@dataclass(frozen=True)
class PackedWeights:
    """A matrix `[out, in]` in the layout of linear.c: in bfloat16 (`pack_weights`), or in blocks of 4 or 8 bits."""

    panels: torch.Tensor
    bits: int
    bias: torch.Tensor | None
    """`[out]` float32."""
    in_features: int
    out_features: int

    @cached_property
    def struct(self) -> ctypes.Structure:
        """What the kernels read; valid as long as this object. Made once, because a step calls hundreds of products."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return _WEIGHTS(self.panels.data_ptr(), bias, self.in_features, self.out_features, self.bits)


def pack_weights(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedWeights:
    """weight `[out, in]` bfloat16, both multiples of 16; bias `[out]` float32. One vector lane per output."""
    outputs, inputs = weight.shape
    panels = _checked(weight.detach(), torch.bfloat16).view(outputs // LANES, LANES, inputs // 2, 2)
    return PackedWeights(panels.permute(0, 2, 1, 3).contiguous(), 16, bias, inputs, outputs)


def linear(x: torch.Tensor, weights: PackedWeights) -> torch.Tensor:
    """x `[..., in]` bfloat16 -> `[..., out]`. Raises MemoryError."""
    x = _checked(x, torch.bfloat16, weights.in_features)
    y, rows = x.new_empty((*x.shape[:-1], weights.out_features)), x.numel() // weights.in_features
    if _library().linear(weights.struct, x.data_ptr(), y.data_ptr(), rows, torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory for {rows} rows")
    return y


def expands_blocks(inputs: int) -> bool:
    """Whether a product with `inputs` inputs has the same bits from weights in blocks as from weights in bfloat16."""
    return bool(_library().expands_blocks(inputs))


def find_codes(blocks: torch.Tensor, smallest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The codes from which blocks `[n, 32]` bfloat16 were dequantised; None if a block was not.

    `smallest` is the smallest code: 0, -8 or -128. Returns codes `[n, 32]` uint8, counted from it, and scale and least
    `[n, 1]` float16.
    """
    blocks, threads = blocks.contiguous(), torch.get_num_threads()
    codes, numbers = torch.empty(blocks.shape, dtype=torch.uint8), torch.empty(len(blocks), 2)
    pointers = blocks.data_ptr(), len(blocks), smallest, codes.data_ptr(), numbers.data_ptr()
    if blocks.dtype != torch.bfloat16 or not _library().find_codes(*pointers, threads):
        return None
    numbers = numbers.half()
    if not bool(numbers.isfinite().all()):  # beyond float16
        return None
    return codes, numbers[:, :1], numbers[:, 1:]


def can_attend(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `cached_attention` takes a layer of the cache: keys, values `[rows, kv_heads, max_length, width]`."""
    return (
        keys.dtype == torch.bfloat16
        and keys.device.type == "cpu"
        and keys.shape[3] in _CACHE_WIDTHS
        and keys.stride() == values.stride()
        and keys.shape == values.shape
        and keys.stride()[2:] == (keys.shape[3], 1)
        and library.load() is not None
    )


def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scaling: float | None,
) -> torch.Tensor:
    """Writes each token's key and value to its row and position of the cache; the token then attends to everything in
    its row up to there, or to the last `window` positions if that is not 0.

    query `[tokens, heads, width]`, key and value `[tokens, kv_heads, width]`, keys and values as in `can_attend`, rows
    and positions `[tokens]` int64 -> like query. Takes half the time of torch's kernel for a batch of decodes or a
    short prefill. Raises ValueError, with nothing written, for a place outside the cache; MemoryError.
    """
    (tokens, heads, _), (max_rows, kv_heads, max_length, width) = query.shape, keys.shape
    query, key, value = (_checked(x, torch.bfloat16, width) for x in (query, key, value))
    numel = tokens * kv_heads * width
    counts = key.numel(), value.numel(), rows.numel(), positions.numel(), heads % kv_heads
    _same(counts, (numel, numel, tokens, tokens, 0))
    out = torch.empty_like(query)
    scale = width**-0.5 if scaling is None else scaling
    pointers = [tensor.data_ptr() for tensor in (query, key, value, keys, values, out, rows, positions)]
    sizes = (tokens, heads, kv_heads, width, keys.stride(0), keys.stride(1), max_rows, max_length, window)
    status = _library().cached_attention(*pointers, *sizes, scale, torch.get_num_threads())
    if status == OUTSIDE:
        places = f"rows {rows.tolist()} at {positions.tolist()}"
        raise ValueError(f"{places} lie outside of a cache of {max_rows} rows of {max_length} slots")
    return _succeeded(status, out)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x `[..., width]`, weight `[width]` float32 -> `weight * x / sqrt(mean(x^2) + epsilon)`, like x."""
    return _rms_norm(x, weight, epsilon, None)


def rms_norm_and_scales(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and what `rms_norm_backward` needs: the factor of each row of x, `[rows]` float32."""
    scales = torch.empty(x.numel() // weight.shape[0])
    return _rms_norm(x, weight, epsilon, scales), scales


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, scales: torch.Tensor | None) -> torch.Tensor:
    width = weight.shape[0]
    x, weight = _checked(x, width=width), _checked(weight, torch.float32)
    y, rows, kept = torch.empty_like(x), x.numel() // width, None if scales is None else scales.data_ptr()
    _library().rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), kept, rows, width, epsilon, *_mode(x))
    return y


def rms_norm_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """dy and x `[..., width]`, weight `[width]` float32, scales `[rows]` of the forward pass -> the gradient of x."""
    x, dy, weight, width = _checked(x), _checked(dy, x.dtype), _checked(weight, torch.float32), weight.shape[0]
    _same((dy.shape, x.shape[-1], scales.shape), (x.shape, width, (x.numel() // width,)))
    scales = scales.float().contiguous()
    dx = torch.empty_like(x)
    pointers = (dy.data_ptr(), x.data_ptr(), weight.data_ptr(), scales.data_ptr(), dx.data_ptr())
    _library().rms_norm_backward(*pointers, scales.numel(), width, *_mode(x))
    return dx


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`, all of one shape and dtype. Two parts of one product `[1, tokens, ...]` are not copied."""
    _check(gate)
    _check(up, gate.dtype)
    _same(up.shape, gate.shape)
    width = stride = gate.shape[-1]
    if gate.dim() == 3 and len(gate) == gate.stride(2) == 1 and gate.stride() == up.stride():
        stride = gate.stride(1)
    else:
        gate, up = gate.contiguous(), up.contiguous()
    y = gate.new_empty(gate.shape)
    pointers = (gate.data_ptr(), up.data_ptr(), y.data_ptr())
    _library().swiglu(*pointers, gate.numel() // width, width, stride, *_mode(gate))
    return y


def swiglu_backward(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of gate and up, all of one shape and dtype. The second one overwrites dy."""
    gate, up, dy = _checked(gate), _checked(up, gate.dtype), _checked(dy, gate.dtype)
    _same((dy.shape, up.shape), (gate.shape, gate.shape))
    dgate = torch.empty_like(gate)
    pointers = (gate.data_ptr(), up.data_ptr(), dy.data_ptr(), dgate.data_ptr())
    _library().swiglu_backward(*pointers, gate.numel(), *_mode(gate))
    return dgate, dy


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
    """The rotary embedding, or its gradient: x `[heads, tokens, width]`, cos and sin `[tokens, width]` -> like x.

    All of one dtype; width is a multiple of 32.
    """
    heads, tokens, width = x.shape
    _check(x)
    cos, sin = (_checked(angles, x.dtype) for angles in (cos, sin))
    _same((cos.shape, sin.shape, width % (2 * LANES)), ((tokens, width), (tokens, width), 0))
    x, y = _side_by_side(x), x.new_empty(tokens, heads, width)
    view, pointers = (x.data_ptr(), x.stride(1), x.stride(0)), (cos.data_ptr(), sin.data_ptr(), y.data_ptr())
    _library().rotate(*view, *pointers, tokens, heads, width, int(backward), *_mode(x))
    return y.transpose(0, 1)


@dataclass(frozen=True)
class Spans:
    """Which positions of a packed batch `packed_attention` computes together; int64, on the CPU."""

    items: torch.Tensor
    """`[items, 5]`: first shared position (-1: none), shared length, first row, number of rows, sum of the previous
    items' shared lengths.
    """
    rows: torch.Tensor
    """`[rows, 2]`: first packed position, length."""
    num_tokens: int
    num_partial: int
    """Sum of the shared lengths of all items."""


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row attends to its item's shared positions and causally to itself, at most `window` positions back.

    query `[heads, tokens, width]`, key and value `[kv_heads, tokens, width]` -> `[tokens, heads, width]`, and the
    base-2 logarithm of each softmax's sum, `[tokens, heads]` float32. Raises MemoryError.
    """
    heads, tokens, width = query.shape
    out, log_sums = query.new_empty(tokens, heads, width), torch.empty(tokens, heads)
    views = [_heads(tensor, query.dtype) for tensor in (query, key, value)]
    call = _call(query, key, value, spans, scale, window)
    status = _library().packed_attention(call, *views, None, out.data_ptr(), log_sums.data_ptr(), None, None, None)
    return _succeeded(status, out), log_sums


def packed_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_sums: torch.Tensor,
    spans: Spans,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """grad `[tokens, heads, width]`, the forward pass's log_sums -> gradients like the operands. Raises MemoryError."""
    (heads, tokens, width), kv_heads = query.shape, key.shape[0]
    _same((grad.shape, log_sums.shape), ((tokens, heads, width), (tokens, heads)))
    log_sums = log_sums.float().contiguous()
    dquery, dkey, dvalue = (query.new_empty(tokens, count, width) for count in (heads, kv_heads, kv_heads))
    partials = torch.empty(spans.num_partial, kv_heads, 2, width)
    views = [_heads(tensor, query.dtype) for tensor in (query, key, value, grad.transpose(0, 1))]
    pointers = [tensor.data_ptr() for tensor in (dquery, log_sums, dkey, dvalue, partials)]
    status = _library().packed_attention(_call(query, key, value, spans, scale, window), *views, *pointers)
    _succeeded(status, dquery)
    return dquery.transpose(0, 1), dkey.transpose(0, 1), dvalue.transpose(0, 1)


def _call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, window: int | None
) -> ctypes.Structure:
    (heads, tokens, width), kv_heads = query.shape, key.shape[0]
    _same((key.shape, value.shape, heads % kv_heads), ((kv_heads, tokens, width), (kv_heads, tokens, width), 0))
    _same(spans.num_tokens, tokens)
    sizes = (heads, kv_heads, width, window or 0, int(query.dtype == torch.bfloat16), len(spans.items))
    pointers = (spans.items.data_ptr(), spans.rows.data_ptr())
    return library.STRUCTURES["PackedAttention"](*sizes, *pointers, scale, torch.get_num_threads())


def _heads(x: torch.Tensor, dtype: torch.dtype) -> ctypes.Structure:
    """x `[heads, tokens, width]`, with any strides between heads and tokens."""
    _check(x, dtype)
    x = _side_by_side(x)
    heads = library.STRUCTURES["Heads"](x.data_ptr(), x.stride(1), x.stride(0))
    heads.tensor = x  # keeps the memory alive that it describes
    return heads


def _library() -> ctypes.CDLL:
    found = library.load()
    assert found is not None, "ask `takes` first"
    return found


def _checked(x: torch.Tensor, dtype: torch.dtype | None = None, width: int | None = None) -> torch.Tensor:
    """x, contiguous, after `_check`."""
    _check(x, dtype, width)
    return x.contiguous()


def _check(x: torch.Tensor, dtype: torch.dtype | None = None, width: int | None = None) -> None:
    """Raises ValueError if the kernels can't compute with x's dtype, width or device, or if it is of another dtype or
    width than given. A decode step calls this about 600 times, so it takes less than half a microsecond.
    """
    found, numbers = x.dtype, x.shape[-1]
    wrong_dtype = found not in DTYPES if dtype is None else found != dtype or dtype not in DTYPES
    if wrong_dtype or numbers % LANES or (width is not None and numbers != width) or not x.is_cpu:
        expected = f"{dtype or 'float32 or bfloat16'} [..., {width or f'a multiple of {LANES}'}] on the CPU"
        raise ValueError(f"expected {expected}, got {found} {tuple(x.shape)} on {x.device}")


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """x, copied unless the numbers of each row lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _same(found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"expected {expected}, got {found}")


def _mode(x: torch.Tensor) -> tuple[int, int]:
    """The last arguments of every elementwise kernel: whether x is bfloat16, and the number of threads."""
    return int(x.dtype == torch.bfloat16), 1 if x.numel() < _PARALLEL_NUMEL else torch.get_num_threads()


def _succeeded(status: int, out: torch.Tensor) -> torch.Tensor:
    if status != 0:
        raise MemoryError(f"no memory for the attention of {out.shape[0]} tokens")
    return out
