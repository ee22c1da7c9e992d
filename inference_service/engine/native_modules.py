"""What stands on the compiled kernels (`native_kernels.c`): bfloat16 in and out, float32 within, on processors with AVX-512."""

from __future__ import annotations

import torch
from torch import nn

from inference_service.engine import native_kernels

_LANES = 16


class WideningLinear(nn.Module):
    """In place of `linear`: weights stay bfloat16 and are multiplied in float32.

    On a Xeon without AMX it takes half the time of oneDNN's and FBGEMM's kernels for a decode step of sixteen rows, four fifths for a
    prefill. `weight` is without content, but has the dtype and shape of the original `[out, in]`: some models look at it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        kernels = native_kernels.load()
        assert kernels is not None
        self._kernel = kernels.linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # [out / 16, in / 2, 16, 2]: what belongs to one output lies in one lane of a register.
        by_panel = linear.weight.detach().view(self.out_features // _LANES, _LANES, self.in_features // 2, 2)
        self._packed = by_panel.permute(0, 2, 1, 3).contiguous()
        bias: torch.Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach().float()
        self.weight = torch.empty_like(linear.weight, device="meta")

    @staticmethod
    def is_available(dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16 and native_kernels.load() is not None

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        return linear.in_features % _LANES == 0 and linear.out_features % _LANES == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`, bfloat16"""
        x = _checked(x, self.in_features)
        y = x.new_empty((*x.shape[:-1], self.out_features))
        bias = None if self._bias is None else self._bias.data_ptr()
        rows, threads = x.numel() // self.in_features, torch.get_num_threads()
        if self._kernel(x.data_ptr(), self._packed.data_ptr(), bias, y.data_ptr(), rows, self.in_features, self.out_features, threads) != 0:
            raise MemoryError(f"no memory for {rows} rows")
        return y


class NativeRMSNorm(nn.Module):
    """Zhang and Sennrich 2019, in one pass. `weight` `[width]` is the original's."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        kernels = native_kernels.load()
        assert kernels is not None
        self._kernel = kernels.rms_norm
        self.weight = weight
        self.epsilon = epsilon

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        return weight.dtype == torch.bfloat16 and weight.shape[0] % _LANES == 0 and native_kernels.load() is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., width]`, bfloat16"""
        width = self.weight.shape[0]
        x = _checked(x, width)
        y = torch.empty_like(x)
        self._kernel(x.data_ptr(), self.weight.data_ptr(), y.data_ptr(), x.numel() // width, width, self.epsilon)
        return y


_HEAD_WIDTHS = (32, 64, 96, 128)
_OUTSIDE = -2


def can_attend(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `attend` takes such a layer of the cache, each `[rows, kv_heads, max_length, width]`."""
    return (
        keys.dtype == torch.bfloat16
        and keys.device.type == "cpu"
        and keys.shape[3] in _HEAD_WIDTHS
        and keys.stride() == values.stride()
        and keys.shape == values.shape
        and keys.stride()[2:] == (keys.shape[3], 1)
        and native_kernels.load() is not None
    )


def attend(
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
    """Writes each token's key and value to its row and position of the cache; it attends to everything in its row up to there.

    query `[tokens, heads, width]`, key and value `[tokens, kv_heads, width]`, rows and positions `[tokens]`, int64 -> like query. Half the
    time of torch's kernel over a batch of decodes or a short prefill: no mask is needed, and no padding to the longest. Raises ValueError
    for what lies outside of the cache.
    """
    kernels = native_kernels.load()
    assert kernels is not None
    (tokens, heads, width), (max_rows, kv_heads, max_length, _) = query.shape, keys.shape
    query, key, value = (_checked(x, width) for x in (query, key, value))
    out = torch.empty_like(query)
    scale = width**-0.5 if scaling is None else scaling
    pointers = [tensor.data_ptr() for tensor in (query, key, value, keys, values, out, rows, positions)]
    sizes = (tokens, heads, kv_heads, width, keys.stride(0), keys.stride(1), max_rows, max_length, window)
    status = kernels.attention(*pointers, *sizes, scale, torch.get_num_threads())
    if status == _OUTSIDE:
        raise ValueError(f"rows {rows.tolist()} at {positions.tolist()} lie outside of a cache of {max_rows} rows of {max_length} slots")
    if status != 0:
        raise MemoryError(f"no memory for the scores of {tokens} tokens")
    return out


def _checked(x: torch.Tensor, width: int) -> torch.Tensor:
    """x in one piece: the kernels read memory, and don't ask. Raises ValueError for what they would misread."""
    if x.dtype != torch.bfloat16 or x.shape[-1] != width or x.device.type != "cpu":
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)} on {x.device}, where bfloat16 [..., {width}] on the CPU is wanted")
    return x.contiguous()
