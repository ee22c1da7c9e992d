"""Linear layers for serving compute the same as the originals; the fastest kernel is chosen, or the named one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from shared.errors import PreconditionFailed
from shared.kernels import serving_linear
from shared.kernels.formats import LinearKernel
from shared.kernels.joined_projections import JoinedPart
from shared.kernels.replace_modules import speed_up_serving
from shared.kernels.serving_linear import KINDS, FBGEMMLinear, NativeLinear, OneDNNLinear, choose_linear
from tests.inference_service.engine.builders import tiny_base

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(32, 48, bias=bias),
            nn.Linear(32, 16, bias=bias),
            nn.Linear(32, 24, bias=bias),
        )

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
    speed_up_serving(module, CPU, dtype)
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
    speed_up_serving(module, CPU, torch.float32)
    assert isinstance(module.gate_proj, JoinedPart)
    assert isinstance(module.up_proj, JoinedPart)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [FBGEMMLinear, NativeLinear])
@pytest.mark.parametrize("rows", [*range(1, 18), 40])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_arithmetic_in_float32_gives_better_numbers_than_in_bfloat16(
    kind: type[nn.Module], rows: int, bias: bool
) -> None:
    if not kind.is_available(torch.bfloat16):  # type: ignore[attr-defined]
        pytest.skip("not on this machine")
    torch.manual_seed(0)
    linear = nn.Linear(64, 80 if bias else 64, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
    exact = nn.functional.linear(
        x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double()
    )
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
    assert FBGEMMLinear.fits(linear) is fits


@pytest.mark.parametrize("fastest", KINDS.values(), ids=KINDS.keys())
def test_the_fastest_kernel_is_taken(monkeypatch: pytest.MonkeyPatch, fastest: type[nn.Module]) -> None:
    if not fastest.is_available(torch.bfloat16):  # type: ignore[attr-defined]
        pytest.skip("not on this machine")
    monkeypatch.setattr(serving_linear, "_costs", lambda kinds, *_: [float(kind is not fastest) for kind in kinds])
    fine, odd = nn.Linear(16, 16, dtype=torch.bfloat16), nn.Linear(16, 17, dtype=torch.bfloat16)
    nn.init.constant_(odd.weight, 1e30)
    swap = choose_linear(torch.bfloat16)
    assert swap is not None
    assert isinstance(swap(fine), fastest)
    assert isinstance(swap(odd), OneDNNLinear)


def test_float32_stays_exact() -> None:
    swap = choose_linear(torch.float32)
    assert swap is not None
    assert isinstance(swap(nn.Linear(16, 16)), OneDNNLinear)


def test_a_tied_head_leaves_the_embeddings_alone() -> None:
    base = tiny_base(tie_word_embeddings=True)
    before = base.embedding_table.clone()
    speed_up_serving(base.model, CPU, torch.float32)
    assert isinstance(base.model.lm_head, OneDNNLinear)
    assert base.embedding_table.equal(before)


@pytest.mark.parametrize("kernel", KINDS)
def test_a_named_kernel_is_taken_without_a_stopwatch(kernel: LinearKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> list[float]:
        raise AssertionError("measured")

    monkeypatch.setattr(serving_linear, "_costs", never)
    kind = KINDS[kernel]
    if kind.is_available(torch.bfloat16):
        swap = choose_linear(torch.bfloat16, kernel)
        assert swap is not None
        assert type(swap(torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False))) is kind
    with pytest.raises(
        PreconditionFailed, match=f"linear_kernel: {kernel} is not available on this machine in float64"
    ):
        choose_linear(torch.float64, kernel)
    assert choose_linear(torch.bfloat16, "torch") is None
