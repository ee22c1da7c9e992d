"""Chooses one token for each row of logits by temperature, top_k, top_p and min_p, in this order.

Tokens are ordered by falling logit, then by rising id. A token's weight is a power of two of its distance from the
highest logit, rounded to a multiple of 2^-34. Sums of such weights are exact in float64 for up to 2^19 tokens, so the
chosen token is a function of its row and its number alone: not of the batch, of the threads, of the processor, or of
the order of a sum. `shared/kernels/csrc/sampling.c` computes the same bits in one pass per row; torch computes them
here where that kernel is not available, on a GPU for example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import torch

from inference_service.engine.kv.upload import upload
from shared.kernels import sampling
from shared.kernels.sampling import Change
from shared.values.sampling import SamplingParams

NOT_FINITE, NOTHING_LEFT = sampling.NOT_FINITE, sampling.NOTHING_LEFT
SORTED_HEAD = 1024
"""Truncated sampling in torch sorts this number of the most likely tokens, and all only if they are not enough."""
_SERIES = (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)
"""2^x around 0, highest power first."""
_TO_WHOLE, _TO_QUANTUM = 1.5 * 2.0**23, 1.5 * 2.0**-11
"""Adding and subtracting these rounds to a whole number, and a weight to a multiple of 2^-34."""
_LOWEST_POWER = -64.0
_AS_IN_C = attrgetter(*sampling.DRAW)
_MAX_SCALE = 1e30
"""With a lower temperature than this allows, only the highest logit has a weight."""


@dataclass(frozen=True)
class Draw:
    """How one row is sampled. `number` is uniform in [0, 1); a temperature of 0 takes the highest logit."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    number: float = 0.0

    @classmethod
    def of(cls, params: SamplingParams, number: float) -> Draw:
        """The draw for these parameters. `number` is uniform in [0, 1)."""
        return cls(params.temperature, params.top_k, params.top_p, params.min_p, number)

    @property
    def scale(self) -> float:
        """The factor that turns a difference of logits into a power of two; 0 takes the highest logit."""
        return 0.0 if self.temperature == 0 else min(math.log2(math.e) / self.temperature, _MAX_SCALE)

    @property
    def truncated(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def choose(
    rows: Sequence[torch.Tensor], draws: Sequence[Draw], changes: Mapping[int, Change] | None = None
) -> list[int]:
    """A token for each row of logits `[vocab]`, all of one vocabulary, bfloat16, float16 or float32.

    `changes` are those of some rows, by their index. NOT_FINITE for a row with NaN or positive infinity, also if it is
    changed; NOTHING_LEFT if all logits are negative infinity.
    """
    if not rows:
        return []
    if sampling.takes(rows):
        return sampling.choose_tokens(rows, [_AS_IN_C(draw) for draw in draws], changes)
    rows = [_changed(row, changes[i]) if changes and i in changes else row for i, row in enumerate(rows)]
    same = all(row.dtype == rows[0].dtype for row in rows)
    return choose_in_torch(torch.stack([row if same else row.float() for row in rows]), draws)


def _changed(row: torch.Tensor, change: Change) -> torch.Tensor:
    """A changed copy of a row in float32; what is not finite stays."""
    found, wrong = row.to(torch.float32, copy=True), ~(row < math.inf)
    if change.token_ids is not None and change.logits is not None:
        found[change.token_ids.to(row.device)] = change.logits.to(row.device)
    if change.allowed is not None:
        found.masked_fill_(~change.allowed.to(row.device), -math.inf)
    return torch.where(wrong, row.float(), found)


def choose_in_torch(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """The same for logits `[rows, vocab]`, in plain operations. One copy brings the tokens back from the device."""
    device = logits.device
    highest, chosen = logits.max(dim=-1)  # the first index of equal ones
    unsorted = torch.zeros_like(chosen)
    sampled = [row for row, draw in enumerate(draws) if draw.scale > 0]
    if whole := [row for row in sampled if not draws[row].truncated]:
        some, rows = [draws[row] for row in whole], upload(whole, torch.long, device)
        weights = _weights(logits[rows].float(), some)
        chosen[rows] = _pick(weights, _column(some, "number", device)[:, 0])
    if cut := [row for row in sampled if draws[row].truncated]:
        some, rows = [draws[row] for row in cut], upload(cut, torch.long, device)
        some_logits = logits[rows].float()
        chosen[rows], beyond = _Truncation.of(some, device).pick(some_logits, _weights(some_logits, some))
        unsorted[rows] = beyond.long()
    state = torch.full_like(chosen, NOT_FINITE).masked_fill_(highest == -math.inf, NOTHING_LEFT)
    chosen = torch.where(highest.isfinite(), chosen, state)
    found, again = torch.stack([chosen, unsorted]).tolist()
    for row, is_unsorted in enumerate(again):
        if is_unsorted and found[row] >= 0:
            found[row] = _in_whole_order(logits[row : row + 1].float(), draws[row])
    return list(found)


def _in_whole_order(logits: torch.Tensor, draw: Draw) -> int:
    """The token of one row `[1, vocab]` whose truncation keeps more tokens than `SORTED_HEAD`, or may."""
    truncation, weights = _Truncation.of([draw], logits.device), _weights(logits, [draw])
    every = logits[0].sort(descending=True, stable=True).indices
    ordered = weights[:, every]
    kept = truncation.kept(ordered, weights.double().sum(dim=-1, keepdim=True))
    return int(every[_pick(ordered * kept, truncation.number[:, 0])[0]])


def _weights(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Weights `[rows, vocab]` of float32 logits. The operations and their order are those of sampling.c."""
    if logits.is_cpu and len(logits) > 1:  # one row stays in the cache
        return torch.cat([_weights(row[None], [draw]) for row, draw in zip(logits, draws, strict=True)])
    scales = upload([draw.scale for draw in draws], torch.float32, logits.device)
    power = (logits - logits.max(dim=-1, keepdim=True).values).mul_(scales[:, None])
    power = torch.where(power >= _LOWEST_POWER, power, _LOWEST_POWER)
    whole = (power + _TO_WHOLE).sub_(_TO_WHOLE)
    power.sub_(whole)
    weights = torch.full_like(power, _SERIES[0])
    for term in _SERIES[1:]:
        weights.mul_(power).add_(term)
    exponents = whole.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32)
    return weights.mul_(exponents).add_(_TO_QUANTUM).sub_(_TO_QUANTUM)


def _column(draws: Sequence[Draw], name: str, device: torch.device) -> torch.Tensor:
    return upload([[getattr(draw, name)] for draw in draws], torch.float64, device)


@dataclass(frozen=True)
class _Truncation:
    """Parameters of some rows, each `[rows, 1]` in float64; top_k 0 is the whole vocabulary."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, draws: Sequence[Draw], device: torch.device) -> _Truncation:
        return cls(*(_column(draws, field.name, device) for field in fields(cls)))

    def pick(self, logits: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A token for each row of logits and weights `[rows, vocab]`, and which rows need `_in_whole_order` instead."""
        vocabulary, totals = logits.shape[1], weights.double().sum(dim=-1, keepdim=True)
        # Equal logits are in the order of their ids, as in a stable sort of the whole vocabulary.
        ids = logits.topk(min(SORTED_HEAD, vocabulary), dim=-1).indices.sort(dim=-1).values
        head = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, head.indices)
        ordered = weights.gather(1, ids)
        kept = self.kept(ordered, totals)
        chosen = ids.gather(1, _pick(ordered * kept, self.number[:, 0])[:, None])[:, 0]
        # Of the tokens that tie with the last one of the head, `topk` may have taken any.
        beyond = (kept & (head.values == head.values[:, -1:])).any(dim=-1) | (self.top_k[:, 0] > ids.shape[1])
        return chosen, beyond if ids.shape[1] < vocabulary else torch.zeros_like(beyond)

    def kept(self, ordered: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """Which of the weights in order `[rows, n]` remain; the first one always does.

        top_p is a share of the weight that top_k leaves, as in transformers and vLLM.
        """
        rank = torch.arange(ordered.shape[1], device=ordered.device)
        within_k = (rank < self.top_k) | (self.top_k == 0)
        exact = ordered.double()
        left = torch.where(self.top_k == 0, totals, (exact * within_k).sum(dim=-1, keepdim=True))
        before = exact.cumsum(dim=-1) - exact
        kept = within_k & ((before < self.top_p * left) | (self.top_p >= 1)) & (exact >= self.min_p)
        kept[:, 0] = True
        return kept


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Indices `[rows]`: the first one through which the weights exceed the row's number times their total.

    An index of weight 0 is never selected.
    """
    cumulative = weights.double().cumsum(dim=-1)
    targets = numbers[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    last = (weights > 0).long().mul(torch.arange(weights.shape[1], device=weights.device)).max(dim=-1).values
    return torch.minimum(index, last)
