"""Attention over a packed sequence (`packing.Layout`): each row attends to its segment's shared positions and itself.

The rows of a segment are multiplied with their shared keys in one dense matrix product, without a copy of the keys for
each row (the idea of Hydragen, Juravsky et al. 2024, arXiv:2402.05099; here with its gradient); one softmax covers both
parts. Small matrices of probabilities are kept for the backward pass and large ones are recomputed, as in
FlashAttention, so nothing large of size `queries * keys` is kept. On a CPU the arithmetic is float32, which is exact
and, for these small inner dimensions, faster. Supports grouped-query attention, sliding windows, logit soft-capping and
attention sinks; the compiled kernels, if available, support the first two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from shared.kernels import ops
from trainer_service.training.attention.packing import Layout, Tile

NAME = "softprompt_prefix"
MAX_KEPT = 1 << 20  # probabilities of one tile: 4 MiB

_layout: ContextVar[Layout] = ContextVar("softprompt_packed_layout")


@contextmanager
def packed_attention(model: Any, layout: Layout) -> Iterator[None]:
    """Within the block, `model` treats its single batch row as the packed sequence described by `layout`."""
    AttentionInterface.register(NAME, _attention)
    configured = model.config._attn_implementation
    token = _layout.set(layout)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = configured
        _layout.reset(token)


@dataclass(frozen=True)
class AttentionRule:
    """A layer's attention parameters: `score = cap(query . key * scale)`; only the last `window` keys are visible."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Implements transformers' attention interface.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim] -> [1, tokens, heads, value_dim]
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rule = AttentionRule(scale, sliding_window, softcap, s_aux)
    kind = NativePrefixAttention if NativePrefixAttention.fits(query, value, rule) else PrefixAttention
    layout = _layout.get()
    read = _with_given(layout, getattr(module, "layer_idx", -1), query.squeeze(0), key.squeeze(0), value.squeeze(0))
    out: torch.Tensor = kind.apply(*read, layout, rule)  # type: ignore[no-untyped-call]
    return layout.drop(out)[None], None  # [1, tokens, heads, value_dim]


def _with_given(
    layout: Layout, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's packed positions `[heads, positions, width]`; given ones have queries of 0, whose outputs are
    dropped.
    """
    if not layout.given:
        return query, key, value
    if layer < 0:
        raise RuntimeError("this model's attention does not know its layer, so it can't be given keys and values")
    nothing = [query.new_zeros(given.length, query.shape[0], query.shape[2]) for given in layout.given]
    return (
        layout.insert(query, nothing),
        layout.insert(key, [given.keys[layer].to(key.device) for given in layout.given]),
        layout.insert(value, [given.values[layer].to(value.device) for given in layout.given]),
    )


class NativePrefixAttention(torch.autograd.Function):
    """PrefixAttention by the compiled kernels, in two fifths of its time; it keeps no probabilities."""

    @staticmethod
    def fits(query: torch.Tensor, value: torch.Tensor, rule: AttentionRule) -> bool:
        """Whether the compiled kernels are available for these tensors and this layer."""
        same = query.shape[-1] == value.shape[-1] and query.dtype == value.dtype
        return same and rule.softcap is None and rule.sinks is None and ops.takes(query, query.shape[-1])

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, rule: AttentionRule
    ) -> torch.Tensor:
        out, log_sums = ops.packed_attention(query, key, value, layout.spans, rule.scale, rule.window)
        ctx.save_for_backward(query, key, value, log_sums)
        ctx.layout, ctx.rule = layout, rule
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, log_sums = ctx.saved_tensors
        rule = ctx.rule
        found = ops.packed_attention_backward(
            grads[0], query, key, value, log_sums, ctx.layout.spans, rule.scale, rule.window
        )
        return *found, None, None


class PrefixAttention(torch.autograd.Function):
    """query [heads, tokens, head_dim], key and value [kv_heads, tokens, head_dim] -> [tokens, heads, value_dim]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, rule: AttentionRule
    ) -> torch.Tensor:
        groups = query.shape[0] // key.shape[0]
        padded = _padded(query, groups, rule.scale), _padded(key), _padded(value)
        out = padded[2].new_empty(*padded[0].shape[:2], groups * value.shape[-1])
        kept = list[tuple[Block, torch.Tensor] | None]()
        for tile in layout.tiles_on(query.device):
            block = Block(tile, groups, *padded)
            weights = block.scores(rule).softmax(-1)
            out.index_copy_(1, tile.index.flatten(), block.mix(weights))
            kept.append((block, weights) if weights.numel() <= MAX_KEPT and rule.softcap is None else None)
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.rule, ctx.kept = layout, rule, kept
        return _unpadded(out, groups).to(query.dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (query, key, value), layout, rule = ctx.saved_tensors, ctx.layout, ctx.rule
        groups = query.shape[0] // key.shape[0]
        grad = _padded(grads[0].transpose(0, 1), groups)
        again = (_padded(query, groups, rule.scale), _padded(key), _padded(value)) if None in ctx.kept else None
        dq = grad.new_empty(*grad.shape[:2], groups * query.shape[-1])
        dk, dv = grad.new_zeros(*grad.shape[:2], key.shape[-1]), grad.new_zeros(*grad.shape[:2], value.shape[-1])
        for tile, kept in zip(layout.tiles_on(query.device), ctx.kept, strict=True):
            slope = None
            if kept is not None:
                block, weights = kept
            else:
                assert again is not None
                block = Block(tile, groups, *again)
                scores = block.scores(rule)
                weights = scores.softmax(-1)
                slope = None if rule.softcap is None else 1 - scores.div_(rule.softcap).clamp_(-1, 1).square_()
            block.backward(weights, _take(grad, tile.index), slope, dq, dk, dv)
        dq = (_unpadded(dq, groups) * rule.scale).to(query.dtype).transpose(0, 1)
        return dq, dk[:, :-1].to(key.dtype), dv[:, :-1].to(value.dtype), None, None


class Block:
    """One tile's operands. All query heads of a key head are rows of the same matrices.

    For n segments of r rows of L slots after S shared positions, with h key heads of g query heads each, scores and
    weights are `[h * n * r, L * g, S + L]`, by row. Their first S columns, viewed by segment as `[h * n, r * L * g,
    S]`, come from one product for all rows. Padding slots hold zeros. Attention sinks add one more column, which has no
    value.
    """

    def __init__(self, tile: Tile, groups: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """query [h, tokens + 1, g * d], scaled; key and value [h, tokens + 1, d]. The last token is zeros."""
        num_segments, num_rows, self._length = tile.index.shape
        heads, self._groups, self._shared = key.shape[0], groups, tile.shared_length
        self._tile = tile
        self._by_row = heads * num_segments * num_rows, self._length * groups
        self._by_segment = heads * num_segments, num_rows * self._length * groups
        self._query = _take(query, tile.index)  # [h, n * r * L, g * d]
        self._key = _take(key, tile.index).view(self._by_row[0], self._length, -1)
        self._value = _take(value, tile.index).view(self._by_row[0], self._length, -1)
        if self._shared:
            self._shared_key = _take(key, tile.shared).view(self._by_segment[0], self._shared, -1)
            self._shared_value = _take(value, tile.shared).view(self._by_segment[0], self._shared, -1)

    def scores(self, rule: AttentionRule) -> torch.Tensor:
        """Scores before the softmax; masked ones are minus infinity."""
        query = self._query.view(*self._by_row, -1)
        scores = query.new_empty(*self._by_row, self._shared + self._length + (rule.sinks is not None))
        own = query @ self._key.transpose(1, 2)
        mask = self._mask(rule, query)
        torch.add(_capped(own, rule), mask[:, self._shared :], out=self._own(scores))
        if self._shared:
            shared = self._behind(scores)
            torch.bmm(query.view(*self._by_segment, -1), self._shared_key.transpose(1, 2), out=shared)
            _capped(shared, rule)
            if rule.window is not None and self._shared + self._length > rule.window:
                scores[..., : self._shared] += mask[:, : self._shared]
        if rule.sinks is not None:
            sinks = rule.sinks.to(scores.dtype).view(self._key_heads, 1, self._groups)
            scores.view(self._key_heads, -1, self._groups, scores.shape[-1])[..., -1] = sinks
        return scores

    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        """The weighted sums of the values, [h, n * r * L, g * d]."""
        if not self._shared:
            return (self._own(weights) @ self._value).view(*self._query.shape[:2], -1)
        mixed = self._behind(weights) @ self._shared_value
        mixed.view(*self._by_row, -1).baddbmm_(self._own(weights), self._value)
        return mixed.view(*self._query.shape[:2], -1)

    def backward(
        self,
        weights: torch.Tensor,
        grad: torch.Tensor,
        slope: torch.Tensor | None,
        dq: torch.Tensor,
        dk: torch.Tensor,
        dv: torch.Tensor,
    ) -> None:
        """Write this tile's part of dq (with respect to the scaled query) and add its parts of dk and dv.

        dq, dk and dv have the shapes of `query`, `key` and `value`; grad [h, n * r * L, g * d]; `slope` is the
        derivative of the cap at each score.
        """
        grad, query = grad.view(*self._by_row, -1), self._query.view(*self._by_row, -1)
        dweights = torch.empty_like(weights)
        if dweights.shape[-1] > self._shared + self._length:
            dweights[..., -1] = 0
        self._own(dweights).copy_(grad @ self._value.transpose(1, 2))
        if self._shared:
            torch.bmm(grad.view(*self._by_segment, -1), self._shared_value.transpose(1, 2), out=self._behind(dweights))
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        if slope is not None:
            dscores.mul_(slope)
        index = self._tile.index.flatten()
        own = self._own(dscores)
        dk.index_copy_(1, index, (own.transpose(1, 2) @ query).view(dk.shape[0], -1, dk.shape[2]))
        dv.index_copy_(1, index, (self._own(weights).transpose(1, 2) @ grad).view(dv.shape[0], -1, dv.shape[2]))
        if not self._shared:
            dq.index_copy_(1, index, (own @ self._key).view(*self._query.shape))
            return
        shared = self._behind(dscores)
        part = shared @ self._shared_key
        part.view(*self._by_row, -1).baddbmm_(own, self._key)
        dq.index_copy_(1, index, part.view(self._query.shape))
        seen = self._tile.shared.flatten()
        dk.index_add_(
            1, seen, (shared.transpose(1, 2) @ query.view(*self._by_segment, -1)).view(dk.shape[0], -1, dk.shape[2])
        )
        values = self._behind(weights).transpose(1, 2) @ grad.view(*self._by_segment, -1)
        dv.index_add_(1, seen, values.view(dv.shape[0], -1, dv.shape[2]))

    @property
    def _key_heads(self) -> int:
        return self._query.shape[0]

    def _own(self, scores: torch.Tensor) -> torch.Tensor:
        return scores[..., self._shared : self._shared + self._length]

    def _behind(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.view(*self._by_segment, -1)[..., : self._shared]

    def _mask(self, rule: AttentionRule, like: torch.Tensor) -> torch.Tensor:
        """The additive mask, [L * g, S + L], shared by all layers with the same window."""
        found = self._tile.masks.get((rule.window, self._groups))
        if found is not None:
            return found
        slots = torch.arange(self._length, device=like.device) + self._shared
        back = slots[:, None] - torch.arange(self._shared + self._length, device=like.device)
        hidden = (back < 0) if rule.window is None else (back < 0) | (back >= rule.window)
        mask = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        self._tile.masks[rule.window, self._groups] = mask.repeat_interleave(self._groups, 0)
        return self._tile.masks[rule.window, self._groups]


def _capped(scores: torch.Tensor, rule: AttentionRule) -> torch.Tensor:
    """Apply the soft cap in place."""
    return scores if rule.softcap is None else scores.div_(rule.softcap).tanh_().mul_(rule.softcap)


def _padded(heads_first: torch.Tensor, groups: int = 1, scale: float = 1.0) -> torch.Tensor:
    """[kv_heads * groups, tokens, d] -> [kv_heads, tokens + 1, groups * d], last token zeros, float32 on a CPU."""
    heads, tokens, width = heads_first.shape
    working = heads_first.float() if heads_first.device.type == "cpu" else heads_first
    out = working.new_empty(heads // groups, tokens + 1, groups, width)
    torch.mul(working.view(-1, groups, tokens, width).transpose(1, 2), scale, out=out[:, :tokens])
    out[:, tokens] = 0
    return out.view(heads // groups, tokens + 1, -1)


def _unpadded(padded: torch.Tensor, groups: int) -> torch.Tensor:
    """[kv_heads, tokens + 1, groups * d] -> [tokens, kv_heads * groups, d]"""
    heads, tokens, width = padded.shape
    return padded[:, :-1].transpose(0, 1).reshape(tokens - 1, heads * groups, width // groups)


def _take(padded: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return padded.index_select(1, index.flatten())
