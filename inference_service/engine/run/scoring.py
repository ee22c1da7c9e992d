"""Log-probabilities of candidate continuations. The candidates are branches of one tree over the input's keys and
values (the attention mask keeps them apart), so that the input is computed once and copied never. A candidate longer
than a step comes in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_service.engine.core.plan import Chunk
from inference_service.engine.core.request import CandidateScore, ScoreResult, Timing
from inference_service.engine.core.running_request import RunningRequest

_ROWS_AT_ONCE = 32


def split(chunks: Sequence[Chunk], logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The runner's logits `[n, vocab]` apart: rows to sample from, and each score's rows by request id."""
    if not any(chunk.branches for chunk in chunks):
        return logits, {}
    picked: list[int] = []
    scored: dict[str, torch.Tensor] = {}
    begin = 0
    for chunk in chunks:
        if chunk.samples:
            picked.append(begin)
            begin += 1
        elif chunk.branches:
            scored[chunk.sequence.request_id] = logits[begin : begin + chunk.num_logits]
            begin += chunk.num_logits
    return logits[picked], scored


class Tally:
    """The scores of one request as its candidates come in, in order and possibly in parts."""

    def __init__(self, sequence: RunningRequest) -> None:
        self._sequence = sequence
        self._found: list[tuple[float, ...]] = []
        self._partial: list[float] = []

    @property
    def complete(self) -> bool:
        return len(self._found) == len(self._sequence.candidates)

    def add(self, branches: Sequence[tuple[int, ...]], logits: torch.Tensor) -> bool:
        """Row 0 of `logits` predicts every branch's first token, then come the rows of each branch. False if they are
        not finite.
        """
        rows, tokens, begin = list[int](), list[int](), 1
        for branch in branches:
            rows += [0, *range(begin, begin + len(branch) - 1)]
            tokens += branch
            begin += len(branch) - 1
        # In float32, but never a second table of all rows in it.
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
        totals = torch.tensor([sum(found) for found in self._found], dtype=torch.float64)
        probabilities = torch.softmax(totals, dim=0).tolist()
        scores = tuple(
            CandidateScore(found, sum(found), p) for found, p in zip(self._found, probabilities, strict=True)
        )
        return ScoreResult(scores, self._sequence.usage, timing)
