"""Times the engine's products, attention and norms of one forward pass in bfloat16, for each available kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.kernels.turns import HEAD_WIDTH, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, in_turn
from shared.kernels import ops
from shared.kernels.norm import rms_norm
from shared.kernels.serving_linear import KINDS

SLOTS = 1024
PRODUCTS = ((HIDDEN, 960), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))
"""Shapes of the products: query, key and value; output; gate and up; down."""
ROWS = (1, 16, 32, 400)
PREFILLS = ((25, 0), (25, 100), (256, 0), (512, 500))
"""Number of new tokens and of preceding tokens."""


def products(rounds: int) -> dict[str, Any]:
    linears = [nn.Linear(*shape, bias=False, dtype=torch.bfloat16) for _ in range(LAYERS) for shape in PRODUCTS]
    linears.append(nn.Linear(HIDDEN, 49152, bias=False, dtype=torch.bfloat16))
    made = {
        name: [kind(linear) for linear in linears] for name, kind in KINDS.items() if kind.is_available(torch.bfloat16)
    }
    found = {}
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width).bfloat16() for width in (HIDDEN, INNER)}
        contestants = {name: partial(_multiply, modules, inputs) for name, modules in made.items()}
        found[f"{rows} rows"] = in_turn(contestants, rounds, "native", "onednn")
    return found


def _multiply(modules: Sequence[Any], inputs: dict[int, torch.Tensor]) -> None:
    for module in modules:
        module(inputs[module.in_features])


def attention(rounds: int) -> dict[str, Any]:
    shape = (33, KV_HEADS, SLOTS, HEAD_WIDTH)
    caches = [(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()) for _ in range(LAYERS)]
    rows, positions = torch.arange(16), torch.randint(125, 189, (16,))
    found = {"16 decodes": _attend_each(caches, rows, positions, decodes=True, rounds=rounds)}
    for count, start in PREFILLS:
        row, places = torch.zeros(count, dtype=torch.long), torch.arange(start, start + count)
        found[f"{count} tokens after {start}"] = _attend_each(caches, row, places, decodes=False, rounds=rounds)
    return found


def _attend_each(
    caches: list[Any], rows: torch.Tensor, positions: torch.Tensor, *, decodes: bool, rounds: int
) -> dict[str, Any]:
    count, end = len(rows), int(positions.max()) + 1
    query, key, value = (torch.randn(count, heads, HEAD_WIDTH).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS))
    seen = torch.arange(end) <= positions[:, None]
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -torch.inf)

    def sdpa(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        keys[rows, :, positions], values[rows, :, positions] = key, value
        if decodes:
            grouped = query.view(count, KV_HEADS, HEADS // KV_HEADS, HEAD_WIDTH)
            return F.scaled_dot_product_attention(
                grouped, keys[:count, :, :end], values[:count, :, :end], attn_mask=mask[:, None, None]
            )
        causal = end == count
        return F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[:1, :, :end],
            values[:1, :, :end],
            attn_mask=None if causal else mask,
            is_causal=causal,
            enable_gqa=True,
        )

    contestants: dict[str, Callable[[], object]] = {
        "native": lambda: [
            ops.cached_attention(query, key, value, keys, values, rows, positions, 0, None) for keys, values in caches
        ],
        "sdpa": lambda: [sdpa(*cache) for cache in caches],
    }
    return in_turn(contestants, rounds, "native", "sdpa")


def norm(rounds: int) -> dict[str, Any]:
    weight, x = torch.ones(HIDDEN).bfloat16(), torch.randn(1, 16, HIDDEN).bfloat16()
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "native": partial(rms_norm, weight.float(), 1e-5),
        "torch": lambda x: F.rms_norm(x, (HIDDEN,), weight, 1e-5),
    }
    contestants = {name: partial(_normalise, norm, x) for name, norm in functions.items()}
    return {"16 rows": in_turn(contestants, rounds, "native", "torch")}


def _normalise(norm: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    for _ in range(2 * LAYERS + 1):
        norm(x)
