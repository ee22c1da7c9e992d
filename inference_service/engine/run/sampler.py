"""Samples the next token of each sequence from its logits. Knows no models, rows or text.

In this order: penalties, biases, forbidden tokens and ends, the guide's mask; then temperature, top_k, top_p and min_p,
in `token_choice`.

The random numbers of a sequence come from a counter: number n of seed s is Philox4x32-10 (Salmon et al. 2011) of (s,
n). Neighbours in the batch, preemption and chunking therefore change nothing. One uniform number per token selects from
the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference_service.engine.core.guide import TokenMask
from inference_service.engine.core.request import TokenLogprob
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.run.token_choice import NOT_FINITE as NOT_FINITE_CHOICE
from inference_service.engine.run.token_choice import Draw, choose
from shared.values.sampling import SamplingParams

NOT_FINITE = "the model's output is not finite for this input and soft prompt"
NOTHING_LEFT = "no token is left: sampling's guide, allowed_token_ids and forbidden_token_ids exclude all of them"


@dataclass(frozen=True)
class Sampled:
    """A sampled token. If `error` is set, there is none, and the sequence can't continue."""

    token_id: int
    logprob: TokenLogprob | None
    error: str = ""


def sample(
    logits: torch.Tensor,
    sequences: Sequence[RunningRequest],
    end_ids: Sequence[frozenset[int]],
    masks: Sequence[TokenMask | None] | None = None,
) -> list[Sampled]:
    """Sample a token for each sequence from its logits `[batch, vocab]`.

    `end_ids` are the tokens that may end each sequence; they are impossible before its `min_new_tokens`. `masks` are
    those of guided sequences, None for the others.
    """
    masks = masks or [None] * len(sequences)
    errors = [""] * len(sequences)
    adjusted: dict[int, torch.Tensor] = {}
    allowed: list[torch.Tensor | None] = [None] * len(sequences)
    for i, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        if mask is not None and mask.error:
            errors[i] = f"the answer can't go on under sampling.guide: {mask.error}"
        elif mask is not None and _is_only_guided(sequence.sampling):
            allowed[i] = _allowed(sequence, end_ids[i], mask)
        elif _is_adjusted(sequence):
            adjusted[i] = _adjust(logits[i].to(torch.float32, copy=True), sequence, end_ids[i], mask)
    rows = logits.unbind(0)
    draws = [_draw(sequence) for sequence in sequences]
    chosen = choose([adjusted.get(i, row) for i, row in enumerate(rows)], draws, allowed)
    as_given = dict(zip(adjusted, choose([rows[i] for i in adjusted], [Draw(0.0)] * len(adjusted)), strict=True))
    for i, token in enumerate(chosen):
        if as_given.get(i, token) < 0 or token == NOT_FINITE_CHOICE:
            errors[i] = NOT_FINITE
        elif token < 0:
            errors[i] = errors[i] or NOTHING_LEFT
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    asked = [
        (i, count)
        for i, sequence in enumerate(sequences)
        if (count := sequence.sampling.num_logprobs) is not None and not errors[i]
    ]
    if asked:
        reported, counts = zip(*asked, strict=True)
        found = token_logprobs(logits[list(reported)].float(), [chosen[i] for i in reported], counts)
        for i, logprob in zip(reported, found, strict=True):
            logprobs[i] = logprob
    return [Sampled(max(chosen[i], 0), logprobs[i], errors[i]) for i in range(len(sequences))]


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprob]:
    """Natural log-probabilities of one token per row under float32 logits `[batch, vocab]`.

    Row i also gets its `num_top[i]` most likely tokens.
    """
    everything = torch.log_softmax(logits, dim=-1)
    own = everything.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    top = everything.topk(min(max(num_top), logits.shape[1]), dim=-1)
    values, ids = top.values.tolist(), top.indices.tolist()
    return [
        TokenLogprob(token, own[i], tuple(zip(ids[i][:count], values[i][:count], strict=True)))
        for i, (token, count) in enumerate(zip(token_ids, num_top, strict=True))
    ]


def uniform(seed: int, number: int) -> float:
    """Random number at index `number` of the sequence of `seed`, in [0, 1), with 53 bits."""
    low, high = philox(seed, number)
    return ((high << 32 | low) >> 11) * 2.0**-53


def philox(seed: int, number: int) -> tuple[int, int]:
    """The first two words of Philox4x32-10 with key `seed` (64 bits) and counter `number`."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = number & mask, number >> 32 & mask, 0, 0
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1


def _draw(sequence: RunningRequest) -> Draw:
    params = sequence.sampling
    number = 0.0 if params.greedy else uniform(sequence.seed, sequence.num_generated)
    return Draw.of(params, number)


def _is_adjusted(sequence: RunningRequest) -> bool:
    params = sequence.sampling
    return params.penalised or params.restricted or sequence.num_generated < params.min_new_tokens


def _is_only_guided(params: SamplingParams) -> bool:
    """Whether the guide's mask is all that changes the logits."""
    return not (params.penalised or params.logit_bias or params.allowed_token_ids or params.forbidden_token_ids)


def _allowed(sequence: RunningRequest, end_ids: frozenset[int], mask: TokenMask) -> torch.Tensor:
    """The possible tokens under a guide, `[vocab]` bool, on the CPU.

    Ends are possible only where the answer is complete; if only the end is left, `min_new_tokens` doesn't matter.
    """
    params = sequence.sampling
    allowed: torch.Tensor = mask.allowed
    if not mask.complete:
        return allowed
    too_early = sequence.num_generated < params.min_new_tokens or params.ignore_eos
    allowed = allowed.clone()
    allowed[[i for i in end_ids if i < allowed.shape[0]]] = mask.only_end or not too_early
    return allowed


def _adjust(
    logits: torch.Tensor, sequence: RunningRequest, end_ids: frozenset[int], mask: TokenMask | None
) -> torch.Tensor:
    """Penalties, biases and impossible tokens, in place on logits `[vocab]`.

    Only real tokens are counted: a virtual position has none.
    """
    params = sequence.sampling
    if params.penalised:
        _penalise(logits, sequence)
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[biased] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    _exclude(logits, sequence, end_ids, mask)
    return logits


def _penalise(logits: torch.Tensor, sequence: RunningRequest) -> None:
    params, counts = sequence.sampling, sequence.counts
    counts.update(sequence.tokens, sequence.num_input)
    if not counts.ids:
        return
    seen = torch.frombuffer(counts.ids, dtype=torch.int64).to(logits.device)
    values = logits[seen]
    if params.repetition_penalty != 1.0:
        penalty = params.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
        times = torch.frombuffer(counts.generated, dtype=torch.float32).to(logits.device)
        values -= params.presence_penalty * (times > 0) + params.frequency_penalty * times
    logits[seen] = values


def _exclude(logits: torch.Tensor, sequence: RunningRequest, end_ids: frozenset[int], mask: TokenMask | None) -> None:
    """Set the logits `[vocab]` of impossible tokens to -inf, in place.

    If a guide leaves only the end, the lists of tokens don't matter: the answer ends.
    """
    params = sequence.sampling
    if mask is not None:
        logits.masked_fill_(~_allowed(sequence, end_ids, mask).to(logits.device), -torch.inf)
        if mask.only_end:
            return
    elif sequence.num_generated < params.min_new_tokens:
        ends = torch.tensor(sorted(i for i in end_ids if i < logits.shape[0]), dtype=torch.long, device=logits.device)
        logits[ends] = -torch.inf
    if params.allowed_token_ids:
        listed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[listed]
        logits.fill_(-torch.inf)
        logits[listed] = kept
    if params.forbidden_token_ids:
        logits[torch.tensor(params.forbidden_token_ids, device=logits.device)] = -torch.inf
