"""A kernel for attention over blocks is used only if it gives the right numbers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen

from inference_service.engine.run import varlen_kernel
from inference_service.engine.run.varlen_kernel import (
    BLOCK_SIZES,
    VarlenKernel,
    decode_error_of,
    error_of,
    find_kernel,
    variants,
)

BLOCK = 8


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """What torch.nn.attention.varlen.varlen_attn says of itself, written out, with its own checks."""
    assert query.is_contiguous()
    assert key.shape[1] == BLOCK
    assert cu_seq_q.dtype == seqused_k.dtype == block_table.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[2])
    counts = cu_seq_q.diff().tolist()
    assert max(counts) <= max_q
    assert int(seqused_k.max()) <= max_k
    if cu_seq_k is not None:
        assert cu_seq_k.diff().tolist() == seqused_k.tolist()
    outs = []
    for q, table, used in zip(torch.split(query, counts), block_table, seqused_k.tolist(), strict=True):
        k, v = (pool[table.long()].flatten(0, 1)[:used].transpose(0, 1) for pool in (key, value))
        groups = q.shape[1] // key.shape[2]
        slots = torch.arange(used)
        own = slots[used - q.shape[0] :, None]
        seen = (slots <= own + window_size[1]) & ((slots >= own - window_size[0]) if window_size[0] >= 0 else True)
        scores = (q.transpose(0, 1) @ k.repeat_interleave(groups, 0).transpose(1, 2) * scale).masked_fill(
            ~seen, float("-inf")
        )
        outs.append((scores.softmax(-1) @ v.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(outs)


KERNEL = VarlenKernel(varlen_attn, BLOCK, with_offsets=False)


def test_the_kernel_is_checked_before_it_is_used() -> None:
    exact = error_of(KERNEL, 4, 2, 16, torch.float32, torch.device("cpu"))
    assert exact < 1e-5
    assert (
        error_of(VarlenKernel(varlen_attn, BLOCK, with_offsets=True), 4, 2, 16, torch.float32, torch.device("cpu"))
        < 1e-5
    )

    def no_window(*arguments: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
        return varlen_attn(*arguments, window_size=(-1, 0), **options)

    assert (
        error_of(VarlenKernel(no_window, BLOCK, with_offsets=False), 4, 2, 16, torch.float32, torch.device("cpu")) > 0.1
    )


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_the_kernel_is_checked_at_full_length_in_every_row(batch: int) -> None:
    """A kernel that writes only the first sequence's rows of a batch is refused."""

    def first_row_only(*arguments: Any, **options: Any) -> torch.Tensor:
        out = varlen_attn(*arguments, **options)
        out[1:] = float("nan")
        return out

    shape = 4, 2, 16, torch.float32, torch.device("cpu")
    assert decode_error_of(KERNEL, *shape, 20 * BLOCK + 3, batch) < 1e-5
    wrong = decode_error_of(VarlenKernel(first_row_only, BLOCK, with_offsets=False), *shape, 20 * BLOCK, batch)
    assert wrong < 1e-5 if batch == 1 else wrong == float("inf")


def find_for_a_gpu(max_length: int) -> VarlenKernel | None:
    return find_kernel(32, 8, 128, torch.bfloat16, torch.device("cuda"), max_length, [1])


@pytest.mark.parametrize(("max_length", "checked"), [(8192, 8192), (1 << 20, 1 << 14)])
def test_the_check_at_full_length_takes_little_memory(
    max_length: int, checked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = list[int]()

    def check(*arguments: Any) -> float:
        lengths.append(arguments[-2])
        return 0.0

    monkeypatch.setattr(varlen_kernel, "error_of", lambda *_: 0.0)
    monkeypatch.setattr(varlen_kernel, "decode_error_of", check)
    assert find_for_a_gpu(max_length) is not None
    assert lengths == [checked]


@pytest.mark.parametrize("check", ["error_of", "decode_error_of"])
def test_a_kernel_is_not_refused_for_lack_of_memory(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(varlen_kernel, "error_of", lambda *_: 0.0)
    monkeypatch.setattr(varlen_kernel, check, fail)
    with pytest.raises(torch.OutOfMemoryError):
        find_for_a_gpu(512)


def test_keys_are_never_divided_among_thread_blocks() -> None:
    calls = list[dict[str, Any]]()

    def release(*arguments: Any, block_table: Any, num_splits: int | None = None, **options: Any) -> None:
        calls.append({"num_splits": num_splits})

    def older(*arguments: Any, block_table: Any, **options: Any) -> None:
        calls.append({})

    def without_tables(*arguments: Any, seqused_k: Any) -> None:
        raise AssertionError("must not be called")

    sizes = [(kernel.block_tokens, kernel.with_offsets) for kernel in variants(release)]
    assert sizes == [(size, with_offsets) for size in BLOCK_SIZES for with_offsets in (False, True)]
    assert list(variants(without_tables)) == []
    for kernel in (*variants(release), *variants(older)):
        kernel.attend(block_table=None)
    assert calls == [{"num_splits": 1}] * len(sizes) + [{}] * len(sizes)
    installed = inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters
    assert {"block_table", "seqused_k", "num_splits"} <= installed.keys()
