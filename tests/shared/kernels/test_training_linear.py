"""Products of bfloat16 operands in float32: more accurate than bfloat16's, and used only where they are faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.kernels import training_linear
from shared.kernels.replace_modules import replace
from shared.kernels.training_linear import FrozenLinear, backward_product, faster_linear, forward_product
from tests.trainer_service.training.models import build


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_linear, "_pays", lambda dtype, device: dtype == torch.bfloat16)


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("rows", [training_linear.MIN_ROWS - 1, training_linear.MIN_ROWS])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradient(rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, rows, 48).bfloat16().requires_grad_(True), torch.randn(80, 48).bfloat16()
    bias, upstream = torch.randn(80).bfloat16() if with_bias else None, torch.randn(1, rows, 80).bfloat16()
    found = FrozenLinear.apply(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    gradient = torch.autograd.grad(found, x, upstream)[0]
    assert found.dtype == gradient.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=0.05)
    torch.testing.assert_close(gradient.double(), upstream.double() @ weight.double(), rtol=2**-7, atol=0.05)


@pytest.mark.usefixtures("pays")
def test_sums_of_products_are_rounded_once() -> None:
    torch.manual_seed(0)
    pairs = [(torch.randn(2, 100, width).bfloat16(), torch.randn(width, 32).bfloat16()) for width in (64, 16)]
    exact = sum(dy.double() @ weight.double() for dy, weight in pairs)
    assert isinstance(exact, torch.Tensor)
    torch.testing.assert_close(backward_product(*pairs).double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.usefixtures("pays")
def test_large_heads_are_not_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    widened = list[torch.dtype]()

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        widened.append(x.dtype)
        return x @ weight.T

    monkeypatch.setattr(F, "linear", linear)
    x, weight = torch.randn(training_linear.MIN_ROWS, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    forward_product(x, weight)
    monkeypatch.setattr(training_linear, "MAX_WIDENED", 255)
    forward_product(x, weight)
    assert widened == [torch.float32, torch.bfloat16]


@pytest.mark.usefixtures("pays")
def test_only_frozen_layers_in_bfloat16_are_replaced() -> None:
    assert not replace(build().model, [faster_linear]), "float32"
    model = build().model.bfloat16()
    count = sum(type(module) is nn.Linear for module in model.modules())
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert len(replace(model, [faster_linear])) == count
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-2, atol=1e-2)
    assert not replace(build().model.bfloat16().requires_grad_(True), [faster_linear])


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 2.0), True), ((2.0, 1.0), False)])
def test_whether_it_pays_is_measured(
    seconds: tuple[float, float], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_linear, "best_seconds", lambda *works: list(seconds))
    training_linear._pays.cache_clear()
    try:
        assert training_linear._pays(torch.bfloat16, torch.device("cpu")) is expected
        assert not training_linear._pays(torch.float32, torch.device("cpu"))
    finally:
        training_linear._pays.cache_clear()
