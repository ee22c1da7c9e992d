"""The kernel that chooses tokens from logits, as a function of tensors, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from shared.kernels import library

NOT_FINITE, NOTHING_LEFT = -1, -2
DRAW = tuple(name for name, *_ in library.Draw._fields_[3:])
"""How one row is sampled: the fields of `Draw` in sampling.c, after those of its logits."""
_DTYPES = (torch.float32, torch.bfloat16)


def takes(rows: Sequence[torch.Tensor]) -> bool:
    """Whether the kernel is available for such rows."""
    return all(row.is_cpu and row.dtype in _DTYPES for row in rows) and library.load() is not None


def choose_tokens(
    rows: Sequence[torch.Tensor],
    draws: Sequence[tuple[float, ...]],
    allowed: Sequence[torch.Tensor | None] | None = None,
) -> list[int]:
    """A token for each row of logits `[vocab]`, NOT_FINITE or NOTHING_LEFT.

    A draw has the numbers of `DRAW`, in this order. A row's `allowed` are its possible tokens, `[vocab]` bool, None if
    all are. Raises ValueError, MemoryError.
    """
    found = library.load()
    assert found is not None, "ask `takes` first"
    vocab = rows[0].shape[0]
    rows = [row.contiguous() for row in rows]
    if any(row.shape != (vocab,) or row.dtype not in _DTYPES or not row.is_cpu for row in rows) or not vocab:
        raise ValueError(f"expected rows of {vocab} logits in float32 or bfloat16 on the CPU")
    masks = [None if mask is None else mask.contiguous() for mask in allowed or [None] * len(rows)]
    if len(draws) != len(rows) or len(masks) != len(rows):
        raise ValueError(f"expected {len(rows)} draws and masks, got {len(draws)} and {len(masks)}")
    if any(mask is not None and (mask.shape != (vocab,) or mask.dtype != torch.bool) for mask in masks):
        raise ValueError(f"expected masks of {vocab} tokens")
    calls = (library.Draw * len(rows))(
        *(
            library.Draw(row.data_ptr(), None if mask is None else mask.data_ptr(), row.dtype == torch.bfloat16, *draw)
            for row, mask, draw in zip(rows, masks, draws, strict=True)
        )
    )
    chosen = (ctypes.c_int64 * len(rows))()
    if found.choose_tokens(calls, chosen, len(rows), vocab, torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory to choose among {vocab} tokens")
    return list(chosen)
