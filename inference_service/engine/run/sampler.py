"""Samples the next token of each sequence from its logits. Knows no models, rows or text.

In this order: penalties, biases, forbidden tokens and ends, the guide's mask; then temperature, top_k, top_p and min_p,
in `token_choice`.

The random numbers of a sequence come from a counter: number n of seed s is Philox4x32-10 (Salmon et al. 2011) of (s,
n). Neighbours in the batch, preemption and chunking therefore change nothing. One uniform number per token selects from
the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from inference_service.engine.core.request import TokenLogprob
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.guide.matcher import Mask
from inference_service.engine.kv.upload import upload
from inference_service.engine.run.token_choice import NOT_FINITE as NOT_FINITE_CHOICE
from inference_service.engine.run.token_choice import Draw, choose
from shared.kernels.sampling import Change

NOT_FINITE = "the model's output is not finite for this input and soft prompt"
CANNOT_GO_ON = "the answer can't go on under sampling.guide"
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
    masks: Sequence[Mask | None] | None = None,
) -> list[Sampled]:
    """Sample a token for each sequence from its logits `[batch, vocab]`.

    `end_ids` are the tokens that may end each sequence; they are impossible before its `min_new_tokens`. `masks` are
    those of guided sequences, None for the others.
    """
    masks = masks or [None] * len(sequences)
    errors = ["" if mask is None or not mask.error else f"{CANNOT_GO_ON}: {mask.error}" for mask in masks]
    changes = _changes(logits, sequences, end_ids, [mask if mask and not mask.error else None for mask in masks])
    chosen = choose(logits.unbind(0), [_draw(sequence) for sequence in sequences], changes)
    for i, token in enumerate(chosen):
        if token == NOT_FINITE_CHOICE:
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


def _changes(
    logits: torch.Tensor,
    sequences: Sequence[RunningRequest],
    end_ids: Sequence[frozenset[int]],
    masks: Sequence[Mask | None],
) -> dict[int, Change]:
    """What penalties, biases, guides and lists change in the rows of logits `[batch, vocab]`, by index."""
    penalised, changes = _penalise(logits, sequences), dict[int, Change]()
    for i, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        allowed = _possible(sequence, end_ids[i], mask, logits.shape[1])
        ids, values = penalised.get(i, (None, None))
        if sequence.sampling.logit_bias:
            ids, values = _add_biases(logits[i], sequence.sampling.logit_bias, ids, values)
        if allowed is not None or ids is not None:
            changes[i] = Change(allowed, ids, values)
    return changes


def _penalise(
    logits: torch.Tensor, sequences: Sequence[RunningRequest]
) -> dict[int, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """The token ids `[n]` and penalised logits `[n]` of each penalised sequence, by index.

    Only real tokens are counted: a virtual position has none. All sequences take part in the same operations, because
    small operations cost more for starting than for computing.
    """
    some = [i for i, sequence in enumerate(sequences) if sequence.sampling.penalised]
    for i in some:
        sequences[i].counts.update(sequences[i].tokens, sequences[i].num_input)
    some = [i for i in some if sequences[i].counts.ids]
    if not some:
        return {}
    counts, params = [sequences[i].counts for i in some], [sequences[i].sampling for i in some]
    sizes = torch.tensor([len(count.ids) for count in counts])
    ids = torch.cat([torch.frombuffer(count.ids, dtype=torch.int64) for count in counts]).to(logits.device)
    times = torch.cat([torch.frombuffer(count.generated, dtype=torch.float32) for count in counts]).to(logits.device)
    numbers = torch.tensor([[p.repetition_penalty, p.presence_penalty, p.frequency_penalty] for p in params])
    repetition, presence, frequency = numbers.repeat_interleave(sizes, dim=0).to(logits.device).unbind(1)
    values = logits[torch.tensor(some).repeat_interleave(sizes).to(logits.device), ids].float()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - (presence * (times > 0) + frequency * times)
    parts = zip(ids.split(sizes.tolist()), values.split(sizes.tolist()), strict=True)  # type: ignore[no-untyped-call]
    return dict(zip(some, parts, strict=True))


def _add_biases(
    logits: torch.Tensor, biases: Mapping[int, float], ids: torch.Tensor | None, values: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Biases are added to penalised logits, if there are any, and else to the row of logits `[vocab]`."""
    listed = upload(list(biases), torch.long, logits.device)
    added = upload(list(biases.values()), torch.float32, logits.device)
    if ids is None or values is None:
        return listed, logits[listed].float() + added
    changed_ids = torch.cat([listed, ids]).unique()  # type: ignore[no-untyped-call]
    changed = logits[changed_ids].float()
    changed[torch.searchsorted(changed_ids, ids)] = values
    changed[torch.searchsorted(changed_ids, listed)] += added
    return changed_ids, changed


def _possible(sequence: RunningRequest, end_ids: frozenset[int], mask: Mask | None, vocab: int) -> torch.Tensor | None:
    """The tokens that may come next, `[vocab]` bool, on the CPU; None: all.

    Under a guide, ends are possible only where the answer is complete. If only the end is left, the lists of tokens and
    `min_new_tokens` don't matter: the answer ends.
    """
    params = sequence.sampling
    too_early = sequence.num_generated < params.min_new_tokens
    listed = bool(params.allowed_token_ids or params.forbidden_token_ids)
    if mask is None and not (too_early or listed):
        return None
    if mask is not None and not (mask.complete or listed):
        return mask.allowed
    possible = torch.ones(vocab, dtype=torch.bool) if mask is None else mask.allowed.clone()
    ends = [token for token in end_ids if token < vocab]
    if mask is None and too_early:
        possible[ends] = False
    elif mask is not None and mask.complete:
        possible[ends] = mask.only_end or not (too_early or params.ignore_eos)
        if mask.only_end:
            return possible
    if params.allowed_token_ids:
        only = torch.zeros(vocab, dtype=torch.bool)
        only[list(params.allowed_token_ids)] = True
        possible &= only
    possible[list(params.forbidden_token_ids)] = False
    return possible
