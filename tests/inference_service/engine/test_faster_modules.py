"""Swapped modules compute what the originals did, and what doesn't fit is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from inference_service.engine import half_linear, linear_choice
from inference_service.engine.faster_modules import JoinedPart, TorchRMSNorm, speed_up
from inference_service.engine.half_linear import HalfLinear
from inference_service.engine.linear_choice import choose_linear
from inference_service.engine.packed_linear import PackedLinear
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


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_half_precision_weights_give_better_numbers_than_bfloat16_arithmetic(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(1, 7, 64, dtype=torch.bfloat16)
    exact = nn.functional.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    half = HalfLinear(linear)
    found = half(x)
    assert (found.dtype, found.shape, half.weight.dtype, half.weight.shape) == (torch.bfloat16, (1, 7, 48), torch.bfloat16, (48, 64))
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)  # the result's own rounding


@pytest.mark.parametrize(("value", "kept"), [(1.0, True), (1e-9, True), (1e5, False)])
def test_weights_beyond_float16_are_noticed(value: float, kept: bool) -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[3, 3] = value
    assert half_linear.keeps(weight) is kept


@pytest.mark.parametrize("half_is_faster", [True, False])
def test_the_faster_kernel_is_taken(monkeypatch: pytest.MonkeyPatch, half_is_faster: bool) -> None:
    monkeypatch.setattr(linear_choice, "_seconds", lambda linears, rows: float(isinstance(linears[0], HalfLinear) != half_is_faster) + 1)
    fine, huge = nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8, dtype=torch.bfloat16)
    nn.init.constant_(huge.weight, 1e30)
    swap = choose_linear(torch.bfloat16)
    assert swap is not None
    assert isinstance(swap(fine), HalfLinear if half_is_faster else PackedLinear)
    assert isinstance(swap(huge), PackedLinear)


def test_float32_stays_exact() -> None:
    assert choose_linear(torch.float32) is PackedLinear


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


def test_a_tied_head_leaves_the_embeddings_alone() -> None:
    base = tiny_base(tie_word_embeddings=True)
    before = base.embedding_table.clone()
    speed_up(base.model, CPU, torch.float32)
    assert isinstance(base.model.lm_head, PackedLinear)
    assert base.embedding_table.equal(before)
