"""RMSNorm with and without compiled kernels: its gradient compared with autograd's, and which norms are replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from shared.kernels import library
from shared.kernels.norm import faster_norm, rms_norm
from shared.kernels.replace_modules import replace, speed_up_serving
from tests.trainer_service.training.models import build


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip("no compiled kernels on this machine")


def test_value_and_gradient_equal_autograd() -> None:
    hidden = torch.randn(3, 5, 64, dtype=torch.float32, requires_grad=True)
    weight, upstream = torch.randn(64), torch.randn(3, 5, 64)
    reference = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    found = rms_norm(weight, 1e-5, hidden)
    torch.testing.assert_close(found, reference)
    torch.testing.assert_close(
        torch.autograd.grad(found, hidden, upstream)[0],
        torch.autograd.grad(reference, hidden, upstream)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_bfloat16_stays_near_the_module_it_replaces() -> None:
    model = build().model.to(torch.bfloat16)
    norm, hidden = model.model.norm, torch.randn(1, 7, 64).bfloat16().requires_grad_(True)
    before, upstream = norm(hidden), torch.randn(1, 7, 64).bfloat16()
    gradient = torch.autograd.grad(before, hidden, upstream)[0]
    assert len(replace(model, [faster_norm])) == 5
    after = norm(hidden)
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(torch.autograd.grad(after, hidden, upstream)[0], gradient, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("llama", 5), ("gemma3_text", 6 * 6 + 1), ("qwen3", 9), ("gpt2", 0)]
)
def test_modules_are_replaced_once_and_only_if_they_compute_the_same(architecture: str, expected: int) -> None:
    model = build(architecture).model
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert len(replace(model, [faster_norm])) == expected
        assert not replace(model, [faster_norm])
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


def test_a_module_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(8), requires_grad=False)
            self.eps = 1e-6

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * self.weight

    assert not replace(OddRMSNorm(), [faster_norm])


@torch.no_grad()
def test_serving_replaces_the_same_norms() -> None:
    module = nn.ModuleDict({"llama": LlamaRMSNorm(64), "gemma": Gemma2RMSNorm(64)}).requires_grad_(False)
    x = torch.randn(2, 3, 64)
    for norm in module.values():
        nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    expected = {name: norm(x) for name, norm in module.items()}
    speed_up_serving(module, torch.device("cpu"), torch.float32)
    for name, norm in module.items():
        assert "forward" in vars(norm)
        torch.testing.assert_close(norm(x), expected[name])


@torch.no_grad()
def test_bfloat16_is_rounded_once() -> None:
    norm = LlamaRMSNorm(48).bfloat16().requires_grad_(False)
    nn.init.normal_(norm.weight)
    assert replace(norm, [faster_norm]) == [norm]
    x = torch.randn(2, 3, 48).bfloat16() * 5
    x[0, 1] = 0
    exact = nn.functional.rms_norm(x.double(), (48,), norm.weight.double(), norm.variance_epsilon)
    torch.testing.assert_close(norm(x).double(), exact, rtol=2**-8, atol=1e-30)
    torch.testing.assert_close(norm(x.transpose(0, 1)).double(), exact.transpose(0, 1), rtol=2**-8, atol=1e-30)
