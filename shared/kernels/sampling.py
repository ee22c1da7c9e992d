"""The kernel that chooses tokens from logits, as a function of tensors, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shared.kernels import library
from shared.kernels.ops import DTYPES

NOT_FINITE, NOTHING_LEFT = -1, -2
_DRAW = library.STRUCTURES["Draw"]
DRAW = tuple(name for name, *_ in _DRAW._fields_[6:])
"""How one row is sampled: the fields of `Draw` in kernels.h, after those of its logits."""
_UNCHANGED = (None, None, None, 0)


@dataclass(frozen=True)
class Change:
    """What is changed in a row of logits before a token is chosen, on the CPU."""

    allowed: torch.Tensor | None = None
    """The possible tokens, `[vocab]` bool; None: all."""
    token_ids: torch.Tensor | None = None
    """Tokens with other logits, `[n]` int64."""
    logits: torch.Tensor | None = None
    """These logits, `[n]` float32, finite."""


def takes(rows: Sequence[torch.Tensor]) -> bool:
    """Whether the kernel is available for such rows."""
    return all(row.is_cpu and row.dtype in DTYPES for row in rows) and library.load() is not None


def choose_tokens(
    rows: Sequence[torch.Tensor], draws: Sequence[tuple[float, ...]], changes: Mapping[int, Change] | None = None
) -> list[int]:
    """A token for each row of logits `[vocab]`, NOT_FINITE or NOTHING_LEFT.

    A draw has the numbers of `DRAW`, in this order. `changes` are those of some rows, by their index. Raises
    ValueError, MemoryError.
    """
    found = library.load()
    assert found is not None, "ask `takes` first"
    vocab = rows[0].shape[0]
    rows = [row.contiguous() for row in rows]
    if any(row.shape != (vocab,) or row.dtype not in DTYPES or not row.is_cpu for row in rows) or not vocab:
        raise ValueError(f"expected rows of {vocab} logits in float32 or bfloat16 on the CPU")
    if len(draws) != len(rows):
        raise ValueError(f"expected {len(rows)} draws, got {len(draws)}")
    pointers = {index: _pointers(change, vocab) for index, change in (changes or {}).items()}
    calls = (_DRAW * len(rows))(
        *(
            _DRAW(row.data_ptr(), *pointers.get(index, _UNCHANGED), row.dtype == torch.bfloat16, *draw)
            for index, (row, draw) in enumerate(zip(rows, draws, strict=True))
        )
    )
    chosen = (ctypes.c_int64 * len(rows))()
    if found.choose_tokens(calls, chosen, len(rows), vocab, torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory to choose among {vocab} tokens")
    return list(chosen)


def _pointers(change: Change, vocab: int) -> tuple[int | None, int | None, int | None, int]:
    allowed, ids, logits = change.allowed, change.token_ids, change.logits
    if allowed is not None and (allowed.shape != (vocab,) or allowed.dtype != torch.bool or not _is_plain(allowed)):
        raise ValueError(f"expected a mask of {vocab} tokens")
    if ids is None or logits is None or not len(ids):
        return (None if allowed is None else allowed.data_ptr(), None, None, 0)
    dtypes = (ids.dtype, logits.dtype) == (torch.int64, torch.float32)
    if not dtypes or ids.shape != logits.shape or not (_is_plain(ids) and _is_plain(logits)):
        raise ValueError("expected as many logits in float32 as token ids")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ValueError(f"expected token ids below {vocab}")
    return (None if allowed is None else allowed.data_ptr(), ids.data_ptr(), logits.data_ptr(), len(ids))


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous()
