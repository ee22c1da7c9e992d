"""Times the operations between the matrix products of a training step (8 jobs of batch 4): forward and backward, all
layers, float32.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from benchmarks.kernels.turns import HEAD_WIDTH, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, in_turn
from shared.kernels import ops
from shared.kernels.norm import CompiledRMSNorm, TorchRMSNorm
from shared.kernels.rotary import Rotate
from shared.kernels.training_linear import widened_product
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import Layout, Row, Segment, pack
from trainer_service.training.attention.prefix_attention import AttentionRule, NativePrefixAttention, PrefixAttention

JOBS, BATCH, VIRTUAL_TOKENS, LENGTHS = 8, 4, 50, (20, 46)


def measure(rounds: int) -> dict[str, Any]:
    """Compares `compiled` with `torch`: the trainer's code without the kernels, or else transformers' code."""
    layout = _layout()
    norm = LlamaRMSNorm(HIDDEN).requires_grad_(False)
    cos, sin = torch.randn(1, layout.num_tokens, HEAD_WIDTH), torch.randn(1, layout.num_tokens, HEAD_WIDTH)
    rule = AttentionRule(HEAD_WIDTH**-0.5, None, None, None)
    heads = [_numbers(layout, count, HEAD_WIDTH).transpose(0, 1) for count in (HEADS, KV_HEADS, KV_HEADS)]
    hidden, gate, up = _numbers(layout, HIDDEN), _numbers(layout, INNER), _numbers(layout, INNER)
    return {
        "tokens": layout.num_tokens,
        "attention": _beside(
            lambda *x: NativePrefixAttention.apply(*x, layout, rule),
            lambda *x: PrefixAttention.apply(*x, layout, rule),
            heads,
            rounds,
        ),
        "norm": _beside(
            lambda x: CompiledRMSNorm.apply(x, norm.weight, norm.variance_epsilon),
            lambda x: TorchRMSNorm.apply(x, norm.weight, norm.variance_epsilon),
            [hidden],
            rounds,
        ),
        "swiglu": _beside(_Swiglu.apply, lambda gate, up: F.silu(gate) * up, [gate, up], rounds),
        "rotary": _beside(
            lambda q, k: tuple(Rotate.apply(x, cos[0], sin[0]) for x in (q, k)),
            lambda q, k: apply_rotary_pos_emb(q[None], k[None], cos, sin),
            heads[:2],
            rounds,
        ),
        "bfloat16 products": _products(layout, rounds),
    }


def _products(layout: Layout, rounds: int) -> dict[str, Any]:
    """The gate products of all layers: operands widened to float32 (as `training_linear` chooses), and bfloat16
    products.
    """
    x = _numbers(layout, HIDDEN).bfloat16()
    weights = [torch.randn(INNER, HIDDEN).bfloat16() for _ in range(LAYERS)]
    contestants: dict[str, Callable[[], object]] = {
        "widened": lambda: [widened_product(x, weight) for weight in weights],
        "torch": lambda: [F.linear(x, weight) for weight in weights],
    }
    with torch.no_grad():
        return in_turn(contestants, rounds, "widened", "torch")


class _Swiglu(torch.autograd.Function):
    """The operations of `FrozenGatedMLP` between its products."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return ops.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ops.swiglu_backward(grads[0], *ctx.saved_tensors)


def _layout() -> Layout:
    rng = random.Random(0)
    lengths = [[rng.randint(*LENGTHS) for _ in range(BATCH)] for _ in range(JOBS)]
    segments = [
        Segment(
            PrefixInput(torch.zeros(VIRTUAL_TOKENS, 1)),
            [Row(tuple(range(first, first + length)), (0,)) for first, length in enumerate(some)],
        )
        for some in lengths
    ]
    return pack(segments, torch.device("cpu")).layout


def _numbers(layout: Layout, *shape: int) -> torch.Tensor:
    return torch.randn(layout.num_tokens, *shape)


def _beside(
    compiled: Callable[..., Any], torchs: Callable[..., Any], inputs: Sequence[torch.Tensor], rounds: int
) -> dict[str, Any]:
    layers = [
        [tensor.detach().clone().requires_grad_(True) for tensor in inputs] for _ in range(LAYERS)
    ]  # separate memory for each, as in a step
    contestants = {
        name: partial(_step, function, layers) for name, function in (("compiled", compiled), ("torch", torchs))
    }
    return in_turn(contestants, rounds, "compiled", "torch")


def _step(function: Callable[..., Any], layers: Sequence[Sequence[torch.Tensor]]) -> None:
    """Runs all forward passes, then all backward passes."""
    found = [function(*layer) for layer in layers]
    for layer, made in zip(layers, found, strict=True):
        outs = made if isinstance(made, tuple) else (made,)
        torch.autograd.grad(outs, layer, [out.detach() for out in outs])  # the result takes the place of the gradient
