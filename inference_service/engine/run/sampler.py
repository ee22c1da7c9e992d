"""Samples the next token of each sequence from its logits, vectorised over the batch. Knows no models, rows or text.

In this order: penalties, biases, forbidden tokens and ends, the guide's mask, temperature, top_k, top_p and min_p.

The random numbers of a sequence come from a counter: number n of seed s is Philox4x32-10 (Salmon et al. 2011) of (s,
n). Neighbours in the batch, preemption and chunking therefore change nothing. One uniform number per token selects from
the cumulative distribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference_service.engine.core.guide import TokenMask
from inference_service.engine.core.request import TokenLogprob
from inference_service.engine.core.running_request import RunningRequest

SORTED_HEAD = 1024
"""Truncated sampling first sorts this number of the most likely tokens.

It sorts the whole vocabulary only if they are not enough.
"""


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
    best, greedy_ids = logits.max(dim=-1)
    errors = ["" if finite else NOT_FINITE for finite in torch.isfinite(best).tolist()]
    for i, mask in enumerate(masks):
        if mask is not None and mask.error:
            errors[i] = errors[i] or f"the answer can't go on under sampling.guide: {mask.error}"
    ids: list[int] = greedy_ids.tolist()
    plain = [
        s.sampling.greedy
        and not s.sampling.penalised
        and not s.sampling.restricted
        and s.num_generated >= s.sampling.min_new_tokens
        and s.sampling.num_logprobs is None
        for s in sequences
    ]
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    involved = [i for i, is_plain in enumerate(plain) if not is_plain and not errors[i]]
    if involved:
        raw = logits[involved].float()
        rows = [sequences[i] for i in involved]
        adjusted = _adjust(raw.clone(), rows, [end_ids[i] for i in involved], [masks[i] for i in involved])
        chosen = _choose(adjusted, rows)
        for row, i in enumerate(involved):
            ids[i] = chosen[row]
            if sequences[i].sampling.restricted and adjusted[row, chosen[row]] == -torch.inf:
                errors[i] = NOTHING_LEFT
        asked = [
            (row, count) for row, i in enumerate(involved) if (count := sequences[i].sampling.num_logprobs) is not None
        ]
        if asked:
            reported, counts = zip(*asked, strict=True)
            found = token_logprobs(raw[list(reported)], [chosen[row] for row in reported], counts)
            for row, logprob in zip(reported, found, strict=True):
                logprobs[involved[row]] = logprob
    return [Sampled(ids[i], logprobs[i], errors[i]) for i in range(len(sequences))]


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


def _adjust(
    logits: torch.Tensor,
    sequences: Sequence[RunningRequest],
    end_ids: Sequence[frozenset[int]],
    masks: Sequence[TokenMask | None],
) -> torch.Tensor:
    """Penalties, biases and impossible tokens, in place. Only real tokens are counted: a virtual position has none."""
    for row, sequence in enumerate(sequences):
        params = sequence.sampling
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(sequence.tokens)), device=logits.device)
            values = logits[row, seen]
            logits[row, seen] = torch.where(
                values > 0, values / params.repetition_penalty, values * params.repetition_penalty
            )
        if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
            counts = Counter(sequence.generated)
            seen = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
            logits[row, seen] -= params.presence_penalty + params.frequency_penalty * times
        if params.logit_bias:
            biased = torch.tensor(list(params.logit_bias), device=logits.device)
            logits[row, biased] += torch.tensor(
                list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device
            )
        _exclude(logits[row], sequence, end_ids[row], masks[row])
    return logits


def _exclude(logits: torch.Tensor, sequence: RunningRequest, end_ids: frozenset[int], mask: TokenMask | None) -> None:
    """Set the logits `[vocab]` of impossible tokens to -inf, in place.

    Under a guide, ends are possible only where the answer is complete. If only the end is left, the lists of tokens and
    `min_new_tokens` don't matter: the answer ends.
    """
    params = sequence.sampling
    ends = torch.tensor(sorted(i for i in end_ids if i < logits.shape[0]), dtype=torch.long, device=logits.device)
    too_early = sequence.num_generated < params.min_new_tokens or (mask is not None and params.ignore_eos)
    if mask is not None:
        allowed = mask.allowed.to(logits.device, copy=True)
        if mask.complete:
            allowed[ends] = mask.only_end or not too_early
        logits.masked_fill_(~allowed, -torch.inf)
        if mask.only_end:
            return
    elif too_early:
        logits[ends] = -torch.inf
    if params.allowed_token_ids:
        listed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[listed]
        logits.fill_(-torch.inf)
        logits[listed] = kept
    if params.forbidden_token_ids:
        logits[torch.tensor(params.forbidden_token_ids, device=logits.device)] = -torch.inf


def _choose(logits: torch.Tensor, sequences: Sequence[RunningRequest]) -> list[int]:
    """Sample one token per row.

    A row's computation depends on that row alone, so its neighbours can't change its token.
    """
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    sampled = [i for i, s in enumerate(sequences) if not s.sampling.greedy]
    if not sampled:
        return chosen
    params = [sequences[i].sampling for i in sampled]
    device = logits.device
    temperatures = torch.tensor([p.temperature for p in params], device=device)[:, None]
    rows = logits[sampled]
    # A tiny temperature must not overflow: the best logit becomes zero before the division.
    probabilities = torch.softmax((rows - rows.max(dim=-1, keepdim=True).values) / temperatures, dim=-1)
    numbers = torch.tensor(
        [uniform(sequences[i].seed, sequences[i].num_generated) for i in sampled], dtype=torch.float64, device=device
    )
    cut = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1.0 or p.min_p > 0.0]
    whole = [row for row in range(len(params)) if row not in set(cut)]
    if whole:
        picks = _pick(probabilities[whole], numbers[whole]).tolist()
        for row, token in zip(whole, picks, strict=True):
            chosen[sampled[row]] = token
    if cut:
        limits = _Truncation.of([params[row] for row in cut], device)
        for row, token in zip(cut, limits.pick(probabilities[cut], numbers[cut]), strict=True):
            chosen[sampled[row]] = token
    return chosen


@dataclass(frozen=True)
class _Truncation:
    """top_k, top_p and min_p of some rows, each `[rows, 1]`; top_k 0 is the whole vocabulary."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    @classmethod
    def of(cls, params: Sequence[object], device: torch.device) -> _Truncation:
        def column(name: str) -> torch.Tensor:
            return torch.tensor([getattr(p, name) for p in params], device=device)[:, None]

        return cls(column("top_k"), column("top_p"), column("min_p"))

    def pick(self, probabilities: torch.Tensor, numbers: torch.Tensor) -> list[int]:
        vocabulary = probabilities.shape[1]
        head = probabilities.topk(min(SORTED_HEAD, vocabulary), dim=-1)
        # Equal probabilities are in the order of their ids, as in a stable sort of the whole vocabulary.
        ids = head.indices.sort(dim=-1).values
        ordered, order = probabilities.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
        kept = self._kept(ordered)
        chosen: list[int] = ids.gather(1, _pick(ordered * kept, numbers)[:, None])[:, 0].tolist()
        beyond = kept[:, -1] | (self.top_k[:, 0] > ids.shape[1])
        short = torch.nonzero(beyond).flatten().tolist() if ids.shape[1] < vocabulary else []
        for row in short:
            every, every_id = probabilities[row : row + 1].sort(dim=-1, descending=True, stable=True)
            one = _Truncation(self.top_k[row : row + 1], self.top_p[row : row + 1], self.min_p[row : row + 1])
            chosen[row] = int(every_id[0, int(_pick(every * one._kept(every), numbers[row : row + 1])[0])])
        return chosen

    def _kept(self, ordered: torch.Tensor) -> torch.Tensor:
        """Which of the sorted probabilities `[rows, n]` remain; the most likely one always does.

        top_p is a share of the probability that top_k leaves, as in transformers and vLLM.
        """
        rank = torch.arange(ordered.shape[1], device=ordered.device)
        within_k = (rank < self.top_k) | (self.top_k == 0)
        left = torch.where(self.top_k == 0, 1.0, (ordered.double() * within_k).sum(dim=-1, keepdim=True))
        before = ordered.double().cumsum(dim=-1) - ordered
        kept = within_k & (before < self.top_p * left) & (ordered >= self.min_p * ordered[:, :1])
        kept[:, 0] = True
        return kept


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Sampled indices `[rows]`; `numbers` are in [0, 1).

    Each is the index where the cumulative weights exceed its number times their total. An index of weight 0 is never
    selected.
    """
    cumulative = weights.double().cumsum(dim=-1)
    targets = numbers[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    last = (weights > 0).long().mul(torch.arange(weights.shape[1], device=weights.device)).max(dim=-1).values
    return torch.minimum(index, last)
