"""The kernels of serving: rows are independent, NaN stays in its row, wrong input is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from shared.kernels import library
from shared.kernels.ops import cached_attention, can_attend, rms_norm, takes
from shared.kernels.serving_linear import NativeLinear

needs_kernels = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")


@needs_kernels
@torch.no_grad()
def test_a_row_gets_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    linear = NativeLinear(nn.Linear(96, 128, dtype=torch.bfloat16))
    x = torch.randn(37, 96).bfloat16()
    together = linear(x)
    for begin, end in ((0, 1), (3, 7), (0, 16), (20, 37)):
        assert linear(x[begin:end]).equal(together[begin:end])


@needs_kernels
@torch.no_grad()
def test_large_enough_for_all_threads_and_every_cache() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(1536, 576, bias=False, dtype=torch.bfloat16)
    x = torch.randn(400, 1536).bfloat16()
    exact = x.double() @ linear.weight.double().T
    torch.testing.assert_close(NativeLinear(linear)(x).double(), exact, rtol=2**-7, atol=1e-4)


@needs_kernels
@torch.no_grad()
def test_what_is_no_number_stays_in_its_row() -> None:
    x = torch.ones(6, 32).bfloat16()
    x[1, 5], x[2, 5], x[3] = float("nan"), float("inf"), 3e38
    found = NativeLinear(nn.Linear(32, 16, bias=False, dtype=torch.bfloat16))(x)
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()
    assert found[[0, 4, 5]].isfinite().all()
    norm = rms_norm(x, torch.ones(32), 1e-5)
    assert norm[1].isnan().all()
    torch.testing.assert_close(norm[[0, 4]].float(), torch.ones(2, 32))


@needs_kernels
@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 31).bfloat16(), torch.ones(3, 32), torch.ones(3, 64).bfloat16()],
    ids=["short", "float32", "long"],
)
def test_memory_is_not_misread(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected torch.bfloat16 \[..., 32\] on the CPU, got "):
        NativeLinear(nn.Linear(32, 16, dtype=torch.bfloat16))(x)


@needs_kernels
def test_no_rows_at_all() -> None:
    assert NativeLinear(nn.Linear(32, 16, dtype=torch.bfloat16))(torch.ones(0, 32).bfloat16()).shape == (0, 16)


WEIGHT_ERROR = 4e-3 if library.instruction_set() == "avx512_amx" else 1e-5
"""Of runs that are computed together: AMX tiles multiply values by weights in bfloat16, like SDPA."""


def _cache(num_rows: int, kv_heads: int, length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (num_rows, kv_heads, length, width)
    return torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()


@needs_kernels
@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 3), (9, 3), (4, 1), (5, 1), (14, 2)])
@pytest.mark.parametrize("window", [0, 5])
def test_attention(width: int, heads: int, kv_heads: int, window: int) -> None:
    torch.manual_seed(0)
    keys, values = _cache(9, kv_heads, 40, width)
    rows, positions = torch.tensor([5, 0, 8, 3]), torch.tensor([0, 17, 39, 15])
    for row, position in zip(rows, positions, strict=True):  # what was there before of others must not be seen
        keys[row, :, position:] = values[row, :, position:] = float("nan")
    before = keys.clone(), values.clone()
    query = torch.randn(heads, 4, width).bfloat16().transpose(0, 1)
    key, value = (torch.randn(4, kv_heads, width).bfloat16() for _ in range(2))
    assert can_attend(keys, values)
    found = cached_attention(query, key, value, keys, values, rows, positions, window, None)
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        begin = max(0, position - window + 1) if window else 0
        assert keys[row, :, position].equal(key[index])
        assert values[row, :, position].equal(value[index])
        my_keys, my_values = (
            tensor[row, :, begin : position + 1].double().repeat_interleave(heads // kv_heads, dim=0)
            for tensor in (keys, values)
        )
        exact = sdpa(query[index][:, None].double(), my_keys, my_values)[:, 0]
        torch.testing.assert_close(found[index].double(), exact, rtol=2**-8, atol=1e-5)
        my_query, my_key, my_value = (tensor[index : index + 1] for tensor in (query, key, value))
        my_row, my_position = rows[index : index + 1], positions[index : index + 1]
        alone = cached_attention(my_query, my_key, my_value, keys, values, my_row, my_position, window, None)
        assert alone.equal(found[index : index + 1])
    for tensor, old in zip((keys, values), before, strict=True):
        old[rows, :, positions] = tensor[rows, :, positions]
        torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


@needs_kernels
def test_decode_attention_over_many_slots_and_with_any_scale() -> None:
    torch.manual_seed(0)
    keys, values = _cache(2, 2, 3000, 64)
    query, key, value = (
        torch.randn(2, 4, 64).bfloat16() * 30,
        torch.randn(2, 2, 64).bfloat16(),
        torch.randn(2, 2, 64).bfloat16(),
    )
    found = cached_attention(query, key, value, keys, values, torch.tensor([1, 0]), torch.tensor([2999, 2047]), 0, 0.5)
    for index, (row, end) in enumerate(((1, 3000), (0, 2048))):
        my_keys, my_values = (tensor[row, :, :end].double().repeat_interleave(2, dim=0) for tensor in (keys, values))
        exact = sdpa(query[index][:, None].double(), my_keys, my_values, scale=0.5)[:, 0]
        torch.testing.assert_close(found[index].double(), exact, rtol=2**-7, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("window", [0, 7])
def test_tokens_of_one_call_see_those_before_them(window: int) -> None:
    """A prefill of 20 tokens after 5, a decode, and a prefill from nothing."""
    torch.manual_seed(0)
    keys, values = _cache(4, 2, 30, 32)
    rows = torch.tensor([2] * 20 + [1] + [0] * 3)
    positions = torch.tensor([*range(5, 25), 11, *range(3)])
    query, key, value = (
        torch.randn(24, 6, 32).bfloat16(),
        torch.randn(24, 2, 32).bfloat16(),
        torch.randn(24, 2, 32).bfloat16(),
    )
    found = cached_attention(query, key, value, keys, values, rows, positions, window, None)
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        begin = max(0, position - window + 1) if window else 0
        my_keys, my_values = (
            tensor[row, :, begin : position + 1].double().repeat_interleave(3, dim=0) for tensor in (keys, values)
        )
        exact = sdpa(query[index][:, None].double(), my_keys, my_values)[:, 0]
        torch.testing.assert_close(found[index].double(), exact, rtol=2**-8, atol=WEIGHT_ERROR)


@needs_kernels
@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (14, 2), (50, 1)])
@pytest.mark.parametrize("window", [0, 5, 150])
def test_a_long_prefill(width: int, heads: int, kv_heads: int, window: int) -> None:
    """Tokens that are computed together, in tiles, see what each would see alone; a decode is in the same call."""
    torch.manual_seed(0)
    keys, values = _cache(2, kv_heads, 420, width)
    values[1, :, 390:] = keys[1, :, 390:] = float("nan")  # what is behind them must not be read
    rows, positions = torch.tensor([0] + [1] * 90), torch.tensor([17, *range(300, 390)])
    query, key, value = (torch.randn(91, count, width).bfloat16() for count in (heads, kv_heads, kv_heads))
    found = cached_attention(query, key, value, keys, values, rows, positions, window, None)
    slots = torch.arange(390)
    seen = slots <= positions[1:, None]
    if window:
        seen &= slots > positions[1:, None] - window
    my_keys, my_values = (
        tensor[1, :, :390].double().repeat_interleave(heads // kv_heads, dim=0) for tensor in (keys, values)
    )
    exact = sdpa(query[1:].transpose(0, 1).double(), my_keys, my_values, attn_mask=seen).transpose(0, 1)
    torch.testing.assert_close(found[1:].double(), exact, rtol=2**-8, atol=WEIGHT_ERROR)
    for begin, end in ((1, 51), (51, 91)):  # in two steps
        part = slice(begin, end)
        again = cached_attention(
            query[part], key[part], value[part], keys, values, rows[part], positions[part], window, None
        )
        assert again.equal(found[part])


@needs_kernels
@pytest.mark.parametrize(("row", "position"), [(2, 0), (-1, 0), (0, 8), (0, -1)])
def test_nothing_is_written_outside_of_the_cache(row: int, position: int) -> None:
    keys, values = _cache(2, 1, 8, 32)
    before = keys.clone()
    new = torch.ones(2, 1, 32).bfloat16()
    with pytest.raises(ValueError, match="outside of a cache of 2 rows of 8 slots"):
        cached_attention(new, new, new, keys, values, torch.tensor([1, row]), torch.tensor([3, position]), 0, None)
    assert keys.equal(before)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 80), (torch.bfloat16, 16)])
def test_other_caches_are_left_to_torch(dtype: torch.dtype, width: int) -> None:
    cache = torch.zeros(1, 1, 4, width, dtype=dtype)
    assert not can_attend(cache, cache)


def test_without_kernels_nothing_is_offered_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    cache = torch.zeros(1, 1, 4, 64, dtype=torch.bfloat16)
    assert not can_attend(cache, cache)
    assert not NativeLinear.is_available(torch.bfloat16)
    assert not takes(torch.ones(32, dtype=torch.bfloat16), 32)


@needs_kernels
def test_every_token_needs_a_key_a_value_and_a_place() -> None:
    keys, values = _cache(2, 2, 8, 32)
    query, new, place = torch.ones(3, 4, 32).bfloat16(), torch.ones(3, 2, 32).bfloat16(), torch.tensor([0, 0, 1])
    wrong = [
        (query, new[:2], new, place, place),
        (query, new, new[:2], place, place),
        (query, new, new, place[:2], place),
        (query, new, new, place, place[:2]),
        (query[:, :3], new, new, place, place),
        (query[..., :16], new, new, place, place),
    ]
    for tokens, key, value, rows, positions in wrong:
        with pytest.raises(ValueError, match="expected"):
            cached_attention(tokens, key, value, keys, values, rows, positions, 0, None)
