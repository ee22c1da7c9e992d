"""Log-probabilities of candidate continuations and of input tokens.

The candidates are branches of one tree over the input's keys and values. The attention mask separates them, so that the
input is computed once and never copied. A candidate longer than a step is computed in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_service.engine.core.plan import Chunk
from inference_service.engine.core.request import CandidateScore, ScoreResult, Timing, TokenLogprob
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.run.sampler import token_logprobs

_ROWS_AT_ONCE = 32


def split(chunks: Sequence[Chunk], logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Split logits `[n, vocab]` into rows to sample from, and the rows of each score or scored input by request id."""
    if not any(chunk.branches or chunk.num_input_logits for chunk in chunks):
        return logits, {}
    picked: list[int] = []
    scored: dict[str, torch.Tensor] = {}
    begin = 0
    for chunk in chunks:
        if chunk.num_input_logits:
            scored[chunk.sequence.request_id] = logits[begin : begin + chunk.num_input_logits]
            begin += chunk.num_input_logits
        if chunk.samples:
            picked.append(begin)
            begin += 1
        elif chunk.branches:
            scored[chunk.sequence.request_id] = logits[begin : begin + chunk.num_logits]
            begin += chunk.num_logits
    return logits[picked], scored


def input_logprobs(chunk: Chunk, logits: torch.Tensor) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the next input tokens, whose logits `[num_input_logits, vocab]` the chunk computed."""
    sequence, num_top = chunk.sequence, chunk.sequence.sampling.num_input_logprobs or 0
    first = sequence.num_input_scored + 1
    tokens = sequence.tokens[first : first + chunk.num_input_logits]
    found: list[TokenLogprob] = []
    for begin in range(0, len(tokens), _ROWS_AT_ONCE):  # without a float32 copy of all rows at once
        part = tokens[begin : begin + _ROWS_AT_ONCE]
        found += token_logprobs(logits[begin : begin + len(part)].float(), part, [num_top] * len(part))
    return tuple(found)


class Tally:
    """Collects the scores of one request; its candidates arrive in order and possibly in parts."""

    def __init__(self, sequence: RunningRequest) -> None:
        self._sequence = sequence
        self._found: list[tuple[float, ...]] = []
        self._partial: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether all candidates are scored."""
        return len(self._found) == len(self._sequence.candidates)

    def add(self, branches: Sequence[tuple[int, ...]], logits: torch.Tensor) -> bool:
        """Add the logits of one chunk's branches. False if they are not finite.

        Row 0 of `logits` predicts the first token of every branch; the rows of each branch follow.
        """
        rows, tokens, begin = list[int](), list[int](), 1
        for branch in branches:
            rows += [0, *range(begin, begin + len(branch) - 1)]
            tokens += branch
            begin += len(branch) - 1
        # In float32, but without a float32 copy of all rows at once.
        norms = torch.cat([torch.logsumexp(part.float(), dim=-1) for part in torch.split(logits, _ROWS_AT_ONCE)])
        values = logits[rows, tokens].float() - norms[rows]
        if bool(torch.isnan(values).any()):
            return False
        found = iter(values.tolist())
        for branch in branches:
            self._partial += [next(found) for _ in branch]
            if len(self._partial) == len(self._sequence.candidates[len(self._found)]):
                self._found.append(tuple(self._partial))
                self._partial = []
        return True

    def result(self, timing: Timing) -> ScoreResult:
        """The result of a complete score, with probabilities normalised over the candidates."""
        totals = torch.tensor([sum(found) for found in self._found], dtype=torch.float64)
        probabilities = torch.softmax(totals, dim=0).tolist()
        scores = tuple(
            CandidateScore(found, sum(found), p) for found, p in zip(self._found, probabilities, strict=True)
        )
        return ScoreResult(scores, self._sequence.usage, timing)
