"""Which modules get a faster forward pass; each is checked first and can be restored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shared.kernels import library
from shared.kernels.formats import LinearKernel
from shared.kernels.gated_mlp import faster_mlp
from shared.kernels.norm import faster_norm
from shared.kernels.prove import Replacement
from shared.kernels.replace_modules import replace, restore, speed_up_serving, speed_up_training
from tests.trainer_service.training.models import build


@pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")
@pytest.mark.parametrize(
    ("architecture", "expected"), [("llama", 2), ("qwen3", 2), ("gemma2", 0), ("gpt2", 0), ("phi3", 0)]
)
def test_gated_mlps_of_silu_are_replaced(architecture: str, expected: int) -> None:
    """Gemma's gates are GELU."""
    model = build(architecture).model
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert len(replace(model, [faster_mlp])) == expected
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")
@pytest.mark.parametrize("linear_kernel", ["torch", "onednn"])
@pytest.mark.parametrize(("architecture", "expected"), [("llama", 2), ("gemma2", 0)])
def test_serving_replaces_gates_and_rotations(architecture: str, expected: int, linear_kernel: LinearKernel) -> None:
    model = build(architecture).model
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        speed_up_serving(model, torch.device("cpu"), torch.float32, linear_kernel)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
    replaced = [type(module).__name__ for module in model.modules() if "forward" in vars(module)]
    assert len([name for name in replaced if name.endswith("MLP")]) == expected
    assert any(name.endswith("Attention") for name in replaced)


def test_without_kernels_no_mlp_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    assert not replace(build().model, [faster_mlp])


def test_weights_that_learn_keep_their_module() -> None:
    model = build().model.requires_grad_(True)
    assert not replace(model, [faster_mlp, faster_norm])


def test_what_was_replaced_can_be_restored() -> None:
    model = build().model
    replaced = replace(model, [faster_norm, faster_mlp])
    assert replaced
    assert all("forward" in vars(module) for module in replaced)
    restore(replaced)
    assert not any("forward" in vars(module) for module in model.modules())


def test_of_several_functions_the_nearest_is_taken() -> None:
    linear = nn.Linear(8, 8).requires_grad_(False)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, linear.weight, linear.bias)

    functions = [lambda x: x, lambda x: exact(x) * (1 + 5e-6), exact]
    assert replace(linear, [lambda module: Replacement(functions, 8, torch.float32)]) == [linear]
    assert linear.forward is exact
    assert not replace(nn.Linear(8, 8).requires_grad_(False), [lambda module: Replacement(functions, 8, torch.float32)])


class _Odd(nn.Linear):
    def __init__(self, then: Callable[[torch.Tensor], object]) -> None:
        super().__init__(8, 8, bias=False)
        self._then = then

    def forward(self, x: torch.Tensor) -> object:  # type: ignore[override]
        return self._then(super().forward(x))


def _raise(x: torch.Tensor) -> object:
    raise ValueError("two dimensions, please")


@pytest.mark.parametrize(
    ("then", "replaced"),
    [
        (lambda x: x, 1),
        (lambda x: (x, x), 0),
        (lambda x: x.clamp(-1000, 1000), 0),
        (lambda x: x.double(), 0),
        (lambda x: x[0], 0),
        (_raise, 0),
    ],
    ids=["the same", "a tuple", "clamped", "another dtype", "another shape", "an error"],
)
def test_what_does_more_keeps_its_own(then: Callable[[torch.Tensor], object], replaced: int) -> None:
    odd = _Odd(then).requires_grad_(False)
    replacement = Replacement([lambda x: nn.functional.linear(x, odd.weight)], 8, torch.float32)
    assert len(replace(odd, [lambda module: replacement])) == replaced


def test_other_devices_are_left_alone() -> None:
    model = build().model
    before = [type(module) for module in model.modules()]
    speed_up_serving(model, torch.device("cuda"), torch.float32)
    assert not speed_up_training(model, torch.device("cuda"))
    assert [type(module) for module in model.modules()] == before
    assert not any("forward" in vars(module) for module in model.modules())
