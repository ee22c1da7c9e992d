"""Swapped modules compute what the originals did, and what doesn't fit is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from inference_service.engine import linear_choice, native_kernels
from inference_service.engine.faster_modules import JoinedPart, TorchRMSNorm, speed_up
from inference_service.engine.half_linear import HalfLinear
from inference_service.engine.linear_choice import KINDS, LinearKernel, choose_linear
from inference_service.engine.native_modules import NativeRMSNorm, WideningLinear
from inference_service.engine.packed_linear import PackedLinear
from shared.errors import PreconditionFailed
from tests.inference_service.engine.builders import tiny_base

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(32, 48, bias=bias), nn.Linear(32, 16, bias=bias), nn.Linear(32, 24, bias=bias)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_proj(x), self.k_proj(other), self.v_proj(other)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_joined_projections_give_each_its_own(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Attention(bias=bias).to(dtype)
    x, other = torch.randn(1, 5, 32).to(dtype), torch.randn(1, 5, 32).to(dtype)
    expected = [module(x, x), module(x, other), module(other, other)]
    speed_up(module, CPU, dtype)
    assert isinstance(module.k_proj, JoinedPart)
    for wanted, found in zip(expected, [module(x, x), module(x, other), module(other, other)], strict=True):
        for one, two in zip(wanted, found, strict=True):
            torch.testing.assert_close(
                one, two, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2 if dtype == torch.bfloat16 else 1e-5
            )


@torch.no_grad()
def test_gate_and_up_become_one_product() -> None:
    torch.manual_seed(0)
    module = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48))
    x = torch.randn(1, 5, 32)
    expected = module(x)
    speed_up(module, CPU, torch.float32)
    assert isinstance(module.gate_proj, JoinedPart)
    assert isinstance(module.up_proj, JoinedPart)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [HalfLinear, WideningLinear])
@pytest.mark.parametrize("rows", [*range(1, 18), 40])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_arithmetic_in_float32_gives_better_numbers_than_in_bfloat16(kind: type[nn.Module], rows: int, bias: bool) -> None:
    if not kind.is_available(torch.bfloat16):
        pytest.skip("not on this machine")
    torch.manual_seed(0)
    linear = nn.Linear(64, 80 if bias else 64, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
    exact = nn.functional.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    made = kind(linear)
    found = made(x)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    assert (made.weight.dtype, made.weight.shape) == (torch.bfloat16, linear.weight.shape)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)  # the result's own rounding


@pytest.mark.parametrize(("value", "fits"), [(1.0, True), (1e-9, True), (1e5, False)])
def test_weights_beyond_float16_are_noticed(value: float, fits: bool) -> None:
    linear = nn.Linear(8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[3, 3] = value
    assert HalfLinear.fits(linear) is fits


@pytest.mark.parametrize("fastest", KINDS)
def test_the_fastest_kernel_is_taken(monkeypatch: pytest.MonkeyPatch, fastest: type[nn.Module]) -> None:
    if not fastest.is_available(torch.bfloat16):
        pytest.skip("not on this machine")
    monkeypatch.setattr(linear_choice, "_cost", lambda kind, dtype: KINDS.index(kind) + 1 if kind is not fastest else 0)
    fine, odd = nn.Linear(16, 16, dtype=torch.bfloat16), nn.Linear(16, 17, dtype=torch.bfloat16)
    nn.init.constant_(odd.weight, 1e30)
    swap = choose_linear(torch.bfloat16)
    assert swap is not None
    assert isinstance(swap(fine), fastest)
    assert isinstance(swap(odd), PackedLinear)


def test_float32_stays_exact() -> None:
    swap = choose_linear(torch.float32)
    assert swap is not None
    assert isinstance(swap(nn.Linear(16, 16)), PackedLinear)


@torch.no_grad()
def test_only_plain_rms_norms_are_swapped() -> None:
    module = nn.ModuleDict({"llama": LlamaRMSNorm(64), "gemma": Gemma2RMSNorm(64)})
    nn.init.normal_(module["llama"].weight)
    nn.init.normal_(module["gemma"].weight)
    x = torch.randn(2, 3, 64)
    expected = {name: norm(x) for name, norm in module.items()}
    speed_up(module, CPU, torch.float32)
    assert isinstance(module["llama"], TorchRMSNorm)
    assert isinstance(module["gemma"], Gemma2RMSNorm)
    for name, norm in module.items():
        torch.testing.assert_close(norm(x), expected[name])


@pytest.mark.skipif(native_kernels.load() is None, reason="no compiled kernels on this machine")
@torch.no_grad()
def test_rms_norm_in_one_pass() -> None:
    norm = LlamaRMSNorm(48).bfloat16()
    nn.init.normal_(norm.weight)
    module = nn.ModuleDict({"norm": norm})
    x = torch.randn(2, 3, 48).bfloat16() * 5
    x[0, 1] = 0
    speed_up(module, CPU, torch.bfloat16)
    assert isinstance(module["norm"], NativeRMSNorm)
    exact = nn.functional.rms_norm(x.double(), (48,), norm.weight.double(), norm.variance_epsilon)
    torch.testing.assert_close(module["norm"](x).double(), exact, rtol=2**-8, atol=1e-30)
    torch.testing.assert_close(module["norm"](x.transpose(0, 1)).double(), exact.transpose(0, 1), rtol=2**-8, atol=1e-30)


def test_a_tied_head_leaves_the_embeddings_alone() -> None:
    base = tiny_base(tie_word_embeddings=True)
    before = base.embedding_table.clone()
    speed_up(base.model, CPU, torch.float32)
    assert isinstance(base.model.lm_head, PackedLinear)
    assert base.embedding_table.equal(before)


@pytest.mark.parametrize("kernel", ["onednn", "fbgemm", "native"])
def test_a_named_kernel_is_taken_without_a_stopwatch(kernel: LinearKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(linear_choice, "_cost", never)
    for kind, name in zip(KINDS, ("onednn", "fbgemm", "native"), strict=True):
        if name == kernel and kind.is_available(torch.bfloat16):
            swap = choose_linear(torch.bfloat16, kernel)
            assert swap is not None
            assert type(swap(torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False))) is kind
    with pytest.raises(PreconditionFailed, match=f"linear_kernel: {kernel} is not available on this machine in float64"):
        choose_linear(torch.float64, kernel)
    assert choose_linear(torch.bfloat16, "torch") is None
