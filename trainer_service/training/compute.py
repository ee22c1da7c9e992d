"""The passes of a cohort: forward and backward for the training work of a step, forward for its scoring work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from shared.model.base_model import BaseModel
from trainer_service.training.attention.forward import Forward
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.teacher_targets import TeacherBatch, TeacherTargets, joined, teacher_batch, top_targets
from trainer_service.training.work import RowScore, ScoreWork, TrainPart

LOGITS_AT_ONCE = 1 << 26
"""256 MiB of float32."""
_WITHOUT_BACKWARD = 3


def backward(base_model: BaseModel, forward: Forward, parts: Sequence[TrainPart], token_budget: int) -> torch.Tensor:
    """Add each part's gradient to its trainee's parameters; returns the losses `[parts]`, float32, on the device.

    A part's loss is the weighted sum of the cross-entropy over its target tokens, or of the divergence from the
    teacher's distributions where a row has them, divided by the part's total. Parts share no parameters, so the summed
    loss gives each part the gradient of its own loss. Work above the budget is split into several passes; their
    gradients add up to the same.
    """
    totals = [part.total or sum(row.weight * len(row.target_ids) for row in part.rows) for part in parts]
    losses = torch.zeros(len(parts), device=base_model.device)
    for chunk in _passes(forward, parts, token_budget):
        owned = [(index, segment) for index, rows in chunk for segment in _segments(parts[index], base_model, rows)]
        states = forward.states([segment for _, segment in owned])  # [targets, width]
        owners, ids, weights, smoothing = list[int](), list[int](), list[float](), list[float]()
        teachers = list[tuple[int, TeacherTargets]]()
        for index, segment in owned:
            for row in segment.rows:
                if row.teacher is not None:
                    teachers.append((len(ids), row.teacher))
                owners += [index] * len(row.target_ids)
                ids += row.target_ids
                weights += [row.weight / totals[index]] * len(row.target_ids)
                smoothing += [parts[index].label_smoothing] * len(row.target_ids)
        device = base_model.device
        token_losses = _cross_entropy(
            base_model,
            forward,
            states,
            torch.tensor(ids, device=device),
            torch.tensor(smoothing, device=device) if any(smoothing) else None,
            teacher_batch(teachers, device),
        ) * torch.tensor(weights, device=device)
        token_losses.sum().backward()  # type: ignore[no-untyped-call]
        losses.index_add_(0, torch.tensor(owners, device=device), token_losses.detach())
    return losses


def _segments(part: TrainPart, base_model: BaseModel, rows: Sequence[Row]) -> list[Segment]:
    return part.trainee.segments(part.trainee.input(base_model.dtype), rows)


@torch.no_grad()
def score(base_model: BaseModel, forward: Forward, works: Sequence[ScoreWork]) -> list[list[RowScore]]:
    """Score the rows of all works in one pass."""
    states = forward.states([Segment(work.prefix, work.rows) for work in works])  # [targets, width]
    targets = [
        _Target(token, work.candidates if index == 0 else (), row.teacher, index, work.keep_top)
        for work in works
        for row in work.rows
        for index, token in enumerate(row.target_ids)
    ]
    scores = [
        score
        for first, part in _parts(base_model, states)
        for score in _score_targets(forward.logits(part), targets[first:])
    ]
    results, first = list[list[RowScore]](), 0
    for work in works:
        results.append([])
        for row in work.rows:
            some = scores[first : first + len(row.target_ids)]
            log_probability, num_correct = sum(one.log_probability for one in some), sum(one.correct for one in some)
            top = joined([score.top for score in some if score.top is not None])
            results[-1].append(RowScore(log_probability, len(some), num_correct, some[0].candidates, top))
            first += len(some)
    return results


@dataclass(frozen=True)
class _Target:
    token: int
    candidates: tuple[int, ...]
    teacher: TeacherTargets | None
    """Distributions of its row."""
    index: int
    """Its index in its row."""
    keep_top: bool


@dataclass(frozen=True)
class _TargetScore:
    log_probability: float
    correct: bool
    candidates: tuple[float, ...]
    top: TeacherTargets | None


def _score_targets(logits: torch.Tensor, targets: Sequence[_Target]) -> list[_TargetScore]:
    """Scores of the first `len(logits)` targets. logits: [part, vocab]."""
    log_probabilities = logits.float().log_softmax(-1)  # [part, vocab]
    some = targets[: logits.shape[0]]
    ids = torch.tensor([target.token for target in some], device=logits.device)
    losses = -log_probabilities.gather(1, ids[:, None]).squeeze(1)
    rows = [(place, target.teacher.at(target.index)) for place, target in enumerate(some) if target.teacher is not None]
    if (teacher := teacher_batch(rows, logits.device)) is not None:
        losses = teacher.replaced(losses, log_probabilities, 0)
    picked = (-losses).tolist()
    top = top_targets(log_probabilities) if any(target.keep_top for target in some) else None
    correct = (log_probabilities.argmax(-1) == ids).tolist()
    found = []
    for index, target in enumerate(some):
        candidates = tuple(log_probabilities[index, list(target.candidates)].tolist()) if target.candidates else ()
        kept = top.at(index) if top is not None and target.keep_top else None
        found.append(_TargetScore(picked[index], correct[index], candidates, kept))
    return found


def _parts(base_model: BaseModel, states: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (first target, part of the states), so that at most LOGITS_AT_ONCE logits exist at a time."""
    size = max(1, LOGITS_AT_ONCE // base_model.embedding_table.shape[0])
    for first in range(0, states.shape[0], size):
        yield first, states[first : first + size]


def _cross_entropy(
    base_model: BaseModel,
    forward: Forward,
    states: torch.Tensor,
    ids: torch.Tensor,
    smoothing: torch.Tensor | None,
    teacher: TeacherBatch | None,
) -> torch.Tensor:
    """Losses, [targets]. `smoothing`, [targets], mixes the uniform distribution into each target. `teacher`: the
    distributions of targets whose loss is the divergence from them.

    With several parts, the backward pass recomputes the logits.
    """

    def of(part: torch.Tensor, first: int) -> torch.Tensor:
        values, some = forward.logits(part).float(), slice(first, first + part.shape[0])
        losses = F.cross_entropy(values, ids[some], reduction="none")
        if smoothing is not None:
            losses = torch.lerp(losses, values.logsumexp(-1) - values.mean(-1), smoothing[some])
        return losses if teacher is None else teacher.replaced(losses, values, first)

    parts = list(_parts(base_model, states))
    if len(parts) == 1:
        return of(states, 0)
    return torch.cat([checkpoint(of, part, first, use_reentrant=False) for first, part in parts])


def memory_cost(forward: Forward, num_virtual: int, rows: Sequence[Row]) -> int:
    """A segment's share of a budget: its positions, or more if attention's scores of long rows dominate memory."""
    longest = num_virtual + max((len(row.tokens) for row in rows), default=0)
    return forward.row_memory.cost(forward.num_tokens(num_virtual, rows), longest)


def score_within(
    base_model: BaseModel, forward: Forward, works: Sequence[ScoreWork], token_budget: int
) -> list[list[RowScore]]:
    """`score`, in passes within the budget. Without a backward pass a position takes about a third of the memory."""
    lengths = [work.num_virtual_tokens for work in works]
    budget = _WITHOUT_BACKWARD * token_budget
    if sum(memory_cost(forward, length, work.rows) for length, work in zip(lengths, works, strict=True)) <= budget:
        return score(base_model, forward, works)
    return [
        [
            found
            for rows in _fitting(forward, length, work.rows, budget)
            for found in score(base_model, forward, [replace(work, rows=rows)])[0]
        ]
        for length, work in zip(lengths, works, strict=True)
    ]


def _passes(
    forward: Forward, parts: Sequence[TrainPart], token_budget: int
) -> Iterator[list[tuple[int, Sequence[Row]]]]:
    """Split the parts' rows into passes within the budget; a single row may exceed it."""
    chunk, used = list[tuple[int, Sequence[Row]]](), 0
    for index, part in enumerate(parts):
        num_virtual = part.trainee.num_virtual_tokens
        for rows in _fitting(forward, num_virtual, part.rows, token_budget):
            cost = memory_cost(forward, num_virtual, rows)
            if chunk and used + cost > token_budget:
                yield chunk
                chunk, used = [], 0
            chunk.append((index, rows))
            used += cost
    if chunk:
        yield chunk


def _fitting(forward: Forward, num_virtual: int, rows: Sequence[Row], token_budget: int) -> Iterable[Sequence[Row]]:
    if len(rows) == 1 or memory_cost(forward, num_virtual, rows) <= token_budget:
        return [rows]
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    return [fitting for half in halves for fitting in _fitting(forward, num_virtual, half, token_budget)]
