"""The teacher's distribution over the next token, kept as its most probable tokens, and the divergence from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

TOP = 20
"""Tokens kept for each position, as in Cartridges."""


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """The most probable next tokens at each target position of a row: `ids` and `log_probabilities`, both
    `[targets, TOP]` (fewer with a smaller vocabulary).
    """

    ids: NDArray[np.int32]
    log_probabilities: NDArray[np.float32]

    def at(self, index: int) -> TeacherTargets:
        """One position of the row."""
        some = slice(index, index + 1)
        return TeacherTargets(self.ids[some], self.log_probabilities[some])


def joined(parts: Sequence[TeacherTargets]) -> TeacherTargets | None:
    """Consecutive positions as one; None without any."""
    if not parts:
        return None
    return TeacherTargets(
        np.concatenate([part.ids for part in parts]), np.concatenate([part.log_probabilities for part in parts])
    )


@dataclass(frozen=True)
class TeacherBatch:
    """The target distributions of a pass. `positions` `[n]` have one; the other tensors are `[n, TOP]`."""

    positions: torch.Tensor
    ids: torch.Tensor
    log_probabilities: torch.Tensor

    def replaced(self, losses: torch.Tensor, logits: torch.Tensor, first: int) -> torch.Tensor:
        """`losses` `[part]` with the divergences where there is a teacher. `logits`: `[part, vocab]` float32 of the
        targets from `first` on.
        """
        inside = (self.positions >= first) & (self.positions < first + losses.shape[0])
        at = self.positions[inside] - first
        divergences = top_divergence(logits[at], self.ids[inside], self.log_probabilities[inside])
        return losses.index_copy(0, at, divergences)


def teacher_batch(rows: Sequence[tuple[int, TeacherTargets]], device: torch.device) -> TeacherBatch | None:
    """The distributions of some rows. `rows`: the position of each row's first target in the pass, and its targets."""
    if not rows:
        return None
    positions = np.concatenate([np.arange(first, first + len(targets.ids)) for first, targets in rows])
    ids = np.concatenate([targets.ids for _, targets in rows]).astype(np.int64)
    logs = np.concatenate([targets.log_probabilities for _, targets in rows])
    return TeacherBatch(*(torch.from_numpy(part).to(device) for part in (positions, ids, logs)))


def top_divergence(logits: torch.Tensor, ids: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student from the teacher, `[targets]`, in nats.

    With the teacher's kept tokens S, teacher p and student q: `sum over S of p log(p/q) + r log(r/s)`, where
    `r = 1 - sum over S of p` and `s` is the same for q: all other tokens count as one outcome. That is at most the
    divergence over the whole vocabulary, and 0 only if p and q agree on S. `logits`: `[targets, vocab]` float32 of the
    student.
    """
    total = logits.logsumexp(-1)
    student = logits.gather(1, ids) - total[:, None]  # [targets, TOP]
    kept = log_probabilities.exp()
    divergence: torch.Tensor = (kept * (log_probabilities - student)).sum(-1)
    if ids.shape[1] == logits.shape[1]:
        return divergence
    rest = (1 - kept.sum(-1)).clamp_min(0)
    others = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - total
    entropy: torch.Tensor = torch.special.xlogy(rest, rest)
    return divergence + entropy - rest * others


def top_targets(logits: torch.Tensor) -> TeacherTargets:
    """What is kept of a teacher's logits, `[targets, vocab]`."""
    found = logits.float().log_softmax(-1).topk(min(TOP, logits.shape[1]), dim=-1)
    return TeacherTargets(
        found.indices.cpu().numpy().astype(np.int32), found.values.clamp_min(-100).cpu().numpy().astype(np.float32)
    )
