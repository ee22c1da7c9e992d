"""Training's compiled kernels (`native_kernels.c`): loaded once, and called with tensors. All of them on the CPU, float32 or bfloat16.

They read memory and don't ask: every function here checks what it is given, or makes it itself.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from shared import native_code
from trainer_service.training.attention.packing import Spans

SOURCE = Path(__file__).with_name("native_kernels.c")
LANES = 16
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class _Heads(ctypes.Structure):
    _fields_ = (("data", _POINTER), ("token_stride", _SIZE), ("head_stride", _SIZE))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, _SIZE) for name in ("heads", "kv_heads", "width", "window", "half", "num_items")),
        ("items", _POINTER),
        ("rows", _POINTER),
        ("scale", ctypes.c_float),
        ("threads", _INT),
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """None where they can't be had: `native_code.load` says why."""
    kernels = native_code.load(SOURCE)
    if kernels is None:
        return None
    mode, heads, call = (_INT, _INT), ctypes.POINTER(_Heads), ctypes.POINTER(_Attention)
    for name, arguments in {
        "norm": (*(_POINTER,) * 4, _SIZE, _SIZE, ctypes.c_float, *mode),
        "norm_backward": (*(_POINTER,) * 5, _SIZE, _SIZE, *mode),
        "swiglu": (*(_POINTER,) * 3, _SIZE, *mode),
        "swiglu_backward": (*(_POINTER,) * 4, _SIZE, *mode),
        "rotate": (heads, *(_POINTER,) * 3, *(_SIZE,) * 3, _INT, *mode),
        "attention": (call, *(heads,) * 4, *(_POINTER,) * 5),
    }.items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, ctypes.c_int if name == "attention" else None
    return kernels


def takes(tensor: torch.Tensor, width: int) -> bool:
    """Whether the kernels compute with such tensors of rows of `width` numbers."""
    return (
        tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16) and width % LANES == 0 and width > 0
    ) and load() is not None


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., width], weight [width] float32 -> RMSNorm like x, and what x was multiplied by, [rows] float32."""
    x, weight, width = _whole(x), _whole(weight, torch.float32), weight.shape[0]
    _same(x.shape[-1], width)
    y, scales = torch.empty_like(x), torch.empty(x.numel() // width)
    _kernels().norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), scales.data_ptr(), scales.numel(), width, epsilon, *_mode(x))
    return y, scales


def norm_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    x, dy, weight, width = _whole(x), _whole(dy, x.dtype), _whole(weight, torch.float32), weight.shape[0]
    _same((dy.shape, x.shape[-1], scales.shape), (x.shape, width, (x.numel() // width,)))
    scales = scales.float().contiguous()
    dx = torch.empty_like(x)
    pointers = (dy.data_ptr(), x.data_ptr(), weight.data_ptr(), scales.data_ptr(), dx.data_ptr())
    _kernels().norm_backward(*pointers, scales.numel(), width, *_mode(x))
    return dx


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, all of one shape."""
    gate, up = _whole(gate), _whole(up, gate.dtype)
    _same(up.shape, gate.shape)
    y = torch.empty_like(gate)
    _kernels().swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel(), *_mode(gate))
    return y


def swiglu_backward(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up; the latter is written over dy."""
    gate, up, dy = _whole(gate), _whole(up, gate.dtype), _whole(dy, gate.dtype)
    _same((dy.shape, up.shape), (gate.shape, gate.shape))
    dgate = torch.empty_like(gate)
    pointers = (gate.data_ptr(), up.data_ptr(), dy.data_ptr(), dgate.data_ptr())
    _kernels().swiglu_backward(*pointers, gate.numel(), *_mode(gate))
    return dgate, dy


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
    """Rotary embedding: x [heads, tokens, width], cos and sin [tokens, width], width a multiple of 32 -> like x."""
    heads, tokens, width = x.shape
    cos, sin = (_whole(angles, x.dtype) for angles in (cos, sin))
    _same((cos.shape, sin.shape, width % (2 * LANES)), ((tokens, width), (tokens, width), 0))
    y, view = x.new_empty(tokens, heads, width), _heads(x)
    pointers = (ctypes.byref(view[1]), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
    _kernels().rotate(*pointers, tokens, heads, width, int(backward), *_mode(x))
    return y.transpose(0, 1)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [heads, tokens, width], key and value [kv_heads, tokens, width] -> [tokens, heads, width], and of each softmax's sum the
    logarithm of base 2, [tokens, heads] float32."""
    heads, tokens, width = query.shape
    out, log_sums = query.new_empty(tokens, heads, width), torch.empty(tokens, heads)
    views = [_heads(tensor) for tensor in (query, _like(key, query), _like(value, query))]
    call = _call(query, key, value, spans, scale, window)
    pointers = (out.data_ptr(), log_sums.data_ptr(), None, None, None)
    status = _kernels().attention(ctypes.byref(call), *(ctypes.byref(view[1]) for view in views), None, *pointers)
    return _checked(status, out), log_sums


def attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_sums: torch.Tensor,
    spans: Spans,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """grad [tokens, heads, width] -> gradients like query, key and value."""
    (heads, tokens, width), kv_heads = query.shape, key.shape[0]
    _same((grad.shape, log_sums.shape), ((tokens, heads, width), (tokens, heads)))
    log_sums = log_sums.float().contiguous()
    dquery, dkey, dvalue = query.new_empty(tokens, heads, width), *(query.new_empty(tokens, kv_heads, width) for _ in range(2))
    partials = torch.empty(spans.num_partial, kv_heads, 2, width)
    views = [_heads(tensor) for tensor in (query, _like(key, query), _like(value, query), _like(grad, query).transpose(0, 1))]
    pointers = [tensor.data_ptr() for tensor in (dquery, log_sums, dkey, dvalue, partials)]
    call = _call(query, key, value, spans, scale, window)
    status = _kernels().attention(ctypes.byref(call), *(ctypes.byref(view[1]) for view in views), *pointers)
    _checked(status, dquery)
    return dquery.transpose(0, 1), dkey.transpose(0, 1), dvalue.transpose(0, 1)


def _call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, window: int | None) -> _Attention:
    (heads, tokens, width), kv_heads = query.shape, key.shape[0]
    _same((key.shape, value.shape, heads % kv_heads), ((kv_heads, tokens, width), (kv_heads, tokens, width), 0))
    _same(spans.num_tokens, tokens)
    half, threads = _mode(query)
    sizes = (heads, kv_heads, width, window or 0, half, len(spans.items))
    return _Attention(*sizes, spans.items.data_ptr(), spans.rows.data_ptr(), scale, threads)


def _kernels() -> ctypes.CDLL:
    kernels = load()
    assert kernels is not None, "ask `takes` first"
    return kernels


def _heads(x: torch.Tensor) -> tuple[torch.Tensor, _Heads]:
    """x [heads, tokens, width], whose heads may lie anywhere; the tensor that keeps the memory, and its description."""
    _wanted(x, x.dtype)
    x = x if x.stride(2) == 1 else x.contiguous()
    return x, _Heads(x.data_ptr(), x.stride(1), x.stride(0))


def _whole(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    _wanted(x, dtype or x.dtype)
    return x.contiguous()


def _like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    _wanted(x, other.dtype)
    return x


def _wanted(x: torch.Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype or not takes(x, x.shape[-1]):
        raise ValueError(f"{x.dtype} {tuple(x.shape)} on {x.device}, where {dtype} in rows of a multiple of {LANES} on the CPU is wanted")


def _same(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{found} where {wanted} is wanted")


def _mode(x: torch.Tensor) -> tuple[int, int]:
    """What all kernels end with: is it bfloat16, and how many threads."""
    return int(x.dtype == torch.bfloat16), torch.get_num_threads()


def _checked(status: int, out: torch.Tensor) -> torch.Tensor:
    if status != 0:
        raise MemoryError(f"no memory for the attention of {out.shape[0]} tokens")
    return out
