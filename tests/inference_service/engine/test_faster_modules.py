"""Swapped modules compute what the originals did, and what doesn't fit is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from inference_service.engine.faster_modules import JoinedPart, TorchRMSNorm, speed_up
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
