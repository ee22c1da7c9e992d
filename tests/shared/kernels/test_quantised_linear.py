"""Weights of 4 and 8 bits: found again in a dequantised matrix, multiplied exactly, and only where the setting says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.engine import Engine
from shared.errors import PreconditionFailed
from shared.kernels import library
from shared.kernels.quantised_linear import QuantisedLinear
from shared.kernels.quantised_weight import QuantisedFormat, fits, quantise
from shared.kernels.replace_modules import speed_up_serving
from tests.inference_service.engine.builders import tiny_base

CPU = torch.device("cpu")
FORMATS: tuple[QuantisedFormat, ...] = ("q4_1", "q4_0", "q8_0")
needs_kernels = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")


def random_linear(inputs: int = 96, outputs: int = 48, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[3:5, :40] *= 1000  # blocks of very different sizes
        linear.weight[7, 32:64] = 0
        linear.weight[8, 32:64] = 0.25
    return linear.requires_grad_(False)


def dequantised(weight: torch.Tensor, kind: QuantisedFormat) -> torch.Tensor:
    """The matrix in a GGUF file of this format, and back, in float32, by the reference implementation."""
    known = GGMLQuantizationType[kind.upper()]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), known), known).astype(np.float32))


def product(linear: nn.Linear, kind: QuantisedFormat, x: torch.Tensor) -> torch.Tensor:
    return QuantisedLinear(linear, quantise(linear.weight, kind))(x)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dequantised_matrix_is_recognised(kind: QuantisedFormat) -> None:
    weight = random_linear().weight
    stored = dequantised(weight, kind).bfloat16()
    assert quantise(stored, kind).is_same
    assert not quantise(weight, kind).is_same, "never quantised"
    assert [other for other in FORMATS[:2] if quantise(stored, other).is_same] in ([], [kind])


@needs_kernels
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_with_the_matrix_of_the_file(kind: QuantisedFormat, rows: int, bias: bool) -> None:
    linear = random_linear(bias=bias)
    exact_weight = dequantised(linear.weight, kind)
    linear.weight.copy_(exact_weight)
    x = torch.randn(1, rows, 96).bfloat16()
    exact = nn.functional.linear(x.double(), exact_weight.double(), linear.bias.double() if bias else None)
    found = product(linear, kind, x)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    # Two roundings to bfloat16, of the stored weights' scales and of the result.
    assert (found.double() - exact).norm(dim=-1).max() <= 2**-8 * exact.norm(dim=-1).max()


@needs_kernels
@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_independent(kind: QuantisedFormat) -> None:
    linear, x = random_linear(), torch.randn(21, 96).bfloat16()
    together = product(linear, kind, x)
    for begin, end in ((0, 1), (3, 7), (0, 16), (20, 21)):
        assert product(linear, kind, x[begin:end]).equal(together[begin:end])
    x[1, 5], x[2, 5], x[3], x[4] = float("nan"), float("inf"), 0, 1e-39
    found = product(linear, kind, x)
    assert not found[1:3].isfinite().any()
    assert found[3:5].abs().max() < 1e-34
    assert found[5:].equal(together[5:])


@needs_kernels
def test_memory_is_not_misread() -> None:
    linear = random_linear()
    for x in (torch.ones(3, 95).bfloat16(), torch.ones(3, 96), torch.ones(3, 128).bfloat16()):
        with pytest.raises(ValueError, match=r"expected torch.bfloat16 \[..., 96\] on the CPU, got "):
            product(linear, "q4_1", x)
    assert product(linear, "q4_1", torch.ones(0, 96).bfloat16()).shape == (0, 48)
    assert not fits(torch.ones(48, 80))
    assert not fits(torch.ones(40, 96))


@needs_kernels
def test_restored_leaves_other_matrices_as_they_are() -> None:
    from_a_file = random_linear()
    from_a_file.weight.copy_(dequantised(from_a_file.weight, "q4_1"))
    module = nn.Sequential(random_linear(), random_linear(48, 48), from_a_file)
    speed_up_serving(module, CPU, torch.bfloat16, "native", "restored")
    assert [type(layer) is QuantisedLinear for layer in module] == [False, False, True]


@needs_kernels
def test_an_engine_serves_a_quantised_model() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    Engine.from_base_model(base, EngineConfig(max_running=2, max_length=64, weights="q8_0")).close()  # it checks itself
    assert any(isinstance(module, QuantisedLinear) for module in base.model.modules())


@needs_kernels
def test_a_model_that_they_change_too_much_is_refused() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    with pytest.raises(PreconditionFailed, match=r"weights: q4_0: LlamaForCausalLM: the engine's logits differ"):
        Engine.from_base_model(base, EngineConfig(max_running=2, max_length=64, weights="q4_0"))


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_where_it_is_not_possible_the_error_says_so(device: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(PreconditionFailed, match=f"weights: q4_1 needs .* in bfloat16; here: {device}, {name}"):
        speed_up_serving(nn.Sequential(random_linear()), torch.device(device), dtype, "auto", "q4_1")
