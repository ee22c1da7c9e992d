"""Attention of a packed sequence (`packing.Layout`): every row to the shared positions of its segment and causally to itself.

The rows of one segment meet their shared keys in one dense matrix product, unpadded and without copies of the keys for each row,
and the two parts are merged by their log-sum-exp, the decomposition of Hydragen (Juravsky et al. 2024, arXiv:2402.05099); here with
its gradient. The backward pass takes small probabilities from the forward pass and recomputes large ones from the merged log-sum-exp,
as FlashAttention does, so nothing large of size `queries * keys` is kept. On a CPU the arithmetic is float32: for these small inner
dimensions it is the faster one, and exact. Covers grouped-query attention, sliding windows, logit soft-capping and attention sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from trainer_service.training.packing import Bucket, Layout, Span

NAME = "softprompt_prefix"
MAX_KEPT = 1 << 20  # probabilities of one part: 4 MiB
_MASKED = -1e30  # finite: a row that may see nothing of one part then gets weight 0 from the merge, not NaN

_layout: ContextVar[Layout] = ContextVar("softprompt_packed_layout")


@contextmanager
def packed_attention(model: Any, layout: Layout) -> Iterator[None]:
    """Within, `model` reads its one batch row as the packed sequence that `layout` describes."""
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
class Kept:
    """Of one part of a forward pass: `weights = exp(score - highest)` [..., queries, keys] and `highest` [..., queries, 1], float32."""

    weights: torch.Tensor
    highest: torch.Tensor


@dataclass(frozen=True)
class Rule:
    """How one layer scores: `score = cap(query . key * scale)`, keys `window` or more positions back are not seen."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim]."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rule = Rule(scale, sliding_window, softcap, s_aux)
    out: torch.Tensor = PrefixAttention.apply(query[0], key[0], value[0], _layout.get(), rule)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None], None  # [1, tokens, heads, head_dim]


class PrefixAttention(torch.autograd.Function):
    """query [heads, tokens, head_dim], key and value [kv_heads, tokens, head_dim] -> [heads, tokens, value_dim]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, rule: Rule) -> torch.Tensor:
        heads, tokens, _ = query.shape
        given = query, key, value
        query, key, value = _working(query) * rule.scale, _working(key), _working(value)
        q = _grouped(query, key.shape[0])  # [kv_heads, groups, tokens, head_dim]
        out = value.new_empty(*q.shape[:3], value.shape[-1])
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        kept = list[Kept | None]()
        for bucket in layout.buckets:
            index = bucket.index
            kb, vb = key[:, index], value[:, index]  # [kv_heads, rows, longest, head_dim]
            mask = _causal(index.shape[1], rule, q.device)
            part, part_lse, weights = _attend(q[:, :, index].permute(0, 2, 1, 3, 4), kb, vb, rule, mask)
            kept.append(weights)
            _scatter(out, part.permute(0, 2, 1, 3, 4), bucket, 2)
            _scatter(lse, part_lse.permute(0, 2, 1, 3), bucket, 2)
        for span in layout.spans:
            if not span.shared_length:
                continue
            shared, own = slice(span.shared_start, span.shared_end), slice(span.own_start, span.own_end)
            mask = _causal(span.shared_length, rule, q.device)
            out[:, :, shared], lse[:, :, shared], weights = _attend(q[:, :, shared], key[:, shared], value[:, shared], rule, mask)
            kept.append(weights)
            if span.own_end > span.own_start:
                part, part_lse, weights = _attend(q[:, :, own], key[:, shared], value[:, shared], rule, _far(span, layout, rule))
                kept.append(weights)
                merged = torch.logaddexp(lse[:, :, own], part_lse)
                out[:, :, own] *= (lse[:, :, own] - merged).exp()[..., None].to(out.dtype)
                out[:, :, own] += part * (part_lse - merged).exp()[..., None].to(out.dtype)
                lse[:, :, own] = merged
        if rule.sinks is not None:
            merged = torch.logaddexp(lse, rule.sinks.float().view(*q.shape[:2], 1))
            out *= (lse - merged).exp()[..., None].to(out.dtype)
            lse = merged
        result = out.view(heads, tokens, -1).to(given[0].dtype)
        ctx.save_for_backward(*given, result, lse)
        ctx.layout, ctx.rule, ctx.kept = layout, rule, kept
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtype, (query, key, value, out) = ctx.saved_tensors[0].dtype, map(_working, ctx.saved_tensors[:4])
        lse, layout, rule, kept = ctx.saved_tensors[4], ctx.layout, ctx.rule, iter(ctx.kept)
        q, grad = _grouped(query * rule.scale, key.shape[0]), _grouped(_working(grads[0]), key.shape[0])
        delta = (grad * _grouped(out, key.shape[0])).sum(-1, dtype=torch.float32)  # [kv_heads, groups, tokens]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(key), torch.empty_like(value)
        for bucket in layout.buckets:
            index = bucket.index
            row_lse = lse[:, :, index]
            if not bucket.full:  # a padding slot then has probability 0 everywhere
                row_lse = row_lse.masked_fill(bucket.padding, torch.inf)
            parts = _attend_backward(
                q[:, :, index].permute(0, 2, 1, 3, 4),
                key[:, index],
                value[:, index],
                grad[:, :, index].permute(0, 2, 1, 3, 4),
                row_lse.permute(0, 2, 1, 3),
                delta[:, :, index].permute(0, 2, 1, 3),
                rule,
                _causal(index.shape[1], rule, q.device),
                next(kept),
            )
            _scatter(dq, parts[0].permute(0, 2, 1, 3, 4), bucket, 2)
            _scatter(dk, parts[1], bucket, 1)
            _scatter(dv, parts[2], bucket, 1)
        for span in layout.spans:
            if not span.shared_length:
                continue
            shared, own = slice(span.shared_start, span.shared_end), slice(span.own_start, span.own_end)
            k, v = key[:, shared], value[:, shared]
            mask = _causal(span.shared_length, rule, q.device)
            dq[:, :, shared], dk[:, shared], dv[:, shared] = _attend_backward(
                q[:, :, shared], k, v, grad[:, :, shared], lse[:, :, shared], delta[:, :, shared], rule, mask, next(kept)
            )
            if span.own_end > span.own_start:
                far = _far(span, layout, rule)
                parts = _attend_backward(q[:, :, own], k, v, grad[:, :, own], lse[:, :, own], delta[:, :, own], rule, far, next(kept))
                dq[:, :, own] += parts[0]
                dk[:, shared] += parts[1]
                dv[:, shared] += parts[2]
        return dq.mul_(rule.scale).view_as(query).to(dtype), dk.to(dtype), dv.to(dtype), None, None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, Kept | None]:
    """q [..., groups, queries, d], k and v [..., keys, d] -> (out like q, log-sum-exp [..., queries] float32, kept)."""
    scores = _scores(q, k, rule, mask)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights.to(v.dtype).flatten(-3, -2) @ v).view(*q.shape[:-1], v.shape[-1])
    kept = Kept(weights, highest) if weights.numel() <= MAX_KEPT and rule.softcap is None else None
    return out.div_(total), (highest + total.log()).squeeze(-1), kept


def _attend_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    rule: Rule,
    mask: torch.Tensor | None,
    kept: Kept | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv) of one part, given the log-sum-exp and `delta = sum(grad * out)` of all parts together; q is scaled already."""
    if kept is not None:
        slope, weights = None, kept.weights * (kept.highest - lse[..., None]).exp_()
    else:
        scores = _scores(q, k, rule, mask)  # [..., groups, queries, keys]
        slope = None if rule.softcap is None else 1 - (scores / rule.softcap).clamp(-1, 1).square()
        weights = scores.sub_(lse[..., None]).exp_()
    flat_grad = grad.flatten(-3, -2)  # [..., groups * queries, d]
    dv = weights.to(v.dtype).flatten(-3, -2).transpose(-1, -2) @ flat_grad
    dscores = (flat_grad @ v.transpose(-1, -2)).view_as(weights).float()
    dscores = dscores.sub_(delta[..., None]).mul_(weights)
    if slope is not None:
        dscores.mul_(slope)
    flat = dscores.to(q.dtype).flatten(-3, -2)
    dq = (flat @ k).view(q.shape)
    dk = flat.transpose(-1, -2) @ q.flatten(-3, -2)
    return dq, dk, dv


def _scores(q: torch.Tensor, k: torch.Tensor, rule: Rule, mask: torch.Tensor | None) -> torch.Tensor:
    """[..., groups, queries, keys], float32."""
    products = q.flatten(-3, -2) @ k.transpose(-1, -2)
    scores = products.view(*q.shape[:-1], k.shape[-2]).float()
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    return scores if mask is None else scores.masked_fill_(mask, _MASKED)


def _causal(length: int, rule: Rule, device: torch.device) -> torch.Tensor:
    """[length, length], True where a key is not seen: later positions, and those out of the window."""
    steps = torch.arange(length, device=device)
    back = steps[:, None] - steps[None]
    return (back < 0) if rule.window is None else (back < 0) | (back >= rule.window)


def _far(span: Span, layout: Layout, rule: Rule) -> torch.Tensor | None:
    """[own tokens, shared positions], True where a shared position is out of a row token's window; None if none is."""
    if rule.window is None or span.shared_length + span.longest_own <= rule.window:
        return None
    keys = layout.positions[span.shared_start : span.shared_end]
    queries = layout.positions[span.own_start : span.own_end]
    return queries[:, None] - keys[None] >= rule.window


def _working(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.device.type == "cpu" else tensor


def _grouped(heads_first: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """[heads, tokens, d] -> [kv_heads, groups, tokens, d]"""
    return heads_first.reshape(num_kv_heads, -1, *heads_first.shape[1:])


def _scatter(target: torch.Tensor, padded: torch.Tensor, bucket: Bucket, axis: int) -> None:
    """Write a bucket's slots that are not padding: `axis` of target is tokens, `axis, axis + 1` of padded are rows, slots."""
    tokens = bucket.index.flatten()[bucket.valid]
    target.index_copy_(axis, tokens, padded.flatten(axis, axis + 1).index_select(axis, bucket.valid))
