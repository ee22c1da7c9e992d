"""Weights of 4 and 8 bits: found again in a dequantised matrix, multiplied exactly, and only where they are wanted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from inference_service.engine.core.config import EngineConfig
from inference_service.engine.engine import Engine
from shared.errors import PreconditionFailed
from shared.kernels import library, ops, serving_linear
from shared.kernels.quantised_weight import QuantisedFormat, fits, quantise, restore
from shared.kernels.replace_modules import speed_up_serving
from shared.kernels.serving_linear import NativeLinear
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
    return NativeLinear(linear, quantise(linear.weight, kind))(x)


@needs_kernels
@pytest.mark.parametrize("kind", FORMATS)
def test_a_dequantised_matrix_is_found_bit_by_bit(kind: QuantisedFormat) -> None:
    torch.manual_seed(1)
    large = torch.randn(512, 512) * torch.logspace(-4, 3, 512)[:, None]  # also with subnormal numbers of float16
    for weight in (random_linear().weight, large):
        stored = dequantised(weight, kind).bfloat16()
        found = restore(stored)
        assert found is not None
        linear = nn.Linear(stored.shape[1], len(stored), bias=False, dtype=torch.bfloat16)
        blocks = NativeLinear(linear, found)
        single = torch.eye(stored.shape[1], dtype=torch.bfloat16)
        differences = (blocks(single).T.float() - stored.float()).abs()  # without tiles, sums are rounded elsewhere
        rounding = stored.float().abs() / 64 + stored.float().abs().amax(1, keepdim=True) / 2**16
        assert (differences <= (0 if ops.expands_blocks(stored.shape[1]) else rounding)).all()
        assert restore(weight.bfloat16()) is None, "never quantised"
        assert restore(stored * 2.0**40) is None, "beyond float16"
        stored[40, stored[40, :32].abs().argmin()] = stored[40, :32].abs().max() * 10.5 / 127
        assert restore(stored) is None, "one weight differs"


@needs_kernels
@pytest.mark.parametrize("kind", FORMATS)
def test_in_tiles_blocks_give_the_bits_of_the_stored_weights(kind: QuantisedFormat) -> None:
    linear = random_linear(96, 144, bias=True)
    if not ops.expands_blocks(96):
        pytest.skip("this processor has no AMX tiles")
    linear.weight.copy_(dequantised(linear.weight, kind))
    blocks = NativeLinear(linear)
    assert blocks.packed.bits == (8 if kind == "q8_0" else 4)
    stored = ops.pack_weights(linear.weight, blocks.packed.bias)
    for rows in (1, 2, 16, 17, 33, 70):
        x = torch.randn(rows, 96).bfloat16()
        assert blocks(x).equal(ops.linear(x, stored))


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
    assert [layer.packed.bits for layer in module] == [16, 16, 4]


@needs_kernels
@pytest.mark.parametrize("are_fastest", [True, False])
def test_stored_weights_are_kept_in_their_blocks_if_these_are_fastest(
    monkeypatch: pytest.MonkeyPatch, are_fastest: bool
) -> None:
    def costs(kinds: Sequence[Any], *_: Any) -> list[float]:
        return [2.0 if isinstance(kind, type) else 4.0 - 3 * are_fastest for kind in kinds]

    monkeypatch.setattr(serving_linear, "_costs", costs)
    from_a_file = random_linear()
    from_a_file.weight.copy_(dequantised(from_a_file.weight, "q4_1"))
    module = nn.Sequential(random_linear(), from_a_file)
    kept = copy.deepcopy(module)
    speed_up_serving(module, CPU, torch.bfloat16)
    in_blocks = are_fastest or ops.expands_blocks(from_a_file.in_features)
    assert [layer.packed.bits for layer in module] == [16, 4 if in_blocks else 16]
    speed_up_serving(kept, CPU, torch.bfloat16, "native")
    same_bits = ops.expands_blocks(from_a_file.in_features)
    assert [layer.packed.bits for layer in kept] == [16, 4 if same_bits else 16], "a named kernel has the same bits"


@needs_kernels
def test_an_engine_serves_a_quantised_model() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    Engine.from_base_model(base, EngineConfig(max_running=2, max_length=64, weights="q8_0")).close()  # it checks itself
    assert any(isinstance(module, NativeLinear) and module.packed.bits == 8 for module in base.model.modules())


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
