"""The written gradient of RMSNorm against autograd's, and which norms are replaced; with and without compiled kernels."""

from __future__ import annotations

import pytest
import torch

from tests.trainer_service.training.models import build
from trainer_service.training import frozen_norm, native_kernels
from trainer_service.training.frozen_modules import replace
from trainer_service.training.frozen_norm import faster_norm


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native_kernels, "load", lambda: None)
    elif native_kernels.load() is None:
        pytest.skip("no compiled kernels on this machine")


def test_value_and_gradient_equal_autograd() -> None:
    hidden = torch.randn(3, 5, 64, dtype=torch.float32, requires_grad=True)
    weight, upstream = torch.randn(64), torch.randn(3, 5, 64)
    reference = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    found = frozen_norm._forward(weight, 1e-5, hidden)
    torch.testing.assert_close(found, reference)
    torch.testing.assert_close(
        torch.autograd.grad(found, hidden, upstream)[0], torch.autograd.grad(reference, hidden, upstream)[0], rtol=1e-4, atol=1e-5
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


@pytest.mark.parametrize(("architecture", "expected"), [("llama", 5), ("gemma3_text", 6 * 6 + 1), ("qwen3", 9), ("gpt2", 0)])
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
