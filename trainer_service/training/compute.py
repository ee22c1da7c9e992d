"""The passes of a cohort: forward and backward for the training work of a step, forward for its scoring work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from shared.base_model import BaseModel
from trainer_service.training.forward import Forward
from trainer_service.training.packing import Row, Segment
from trainer_service.training.work import RowScore, ScoreWork, TrainPart


def backward(base_model: BaseModel, forward: Forward, parts: Sequence[TrainPart], token_budget: int) -> torch.Tensor:
    """Add each part's gradient to its trainee's parameters; returns the losses `[parts]`, float32, on the device.

    A part's loss is the weighted mean of the cross-entropy over its target tokens. Parts share no parameter, so the gradient of the
    sum of losses is each part's own. What exceeds the budget is computed in several passes whose gradients add up to the same.
    """
    totals = [sum(row.weight * len(row.target_ids) for row in part.rows) for part in parts]
    losses = torch.zeros(len(parts), device=base_model.device)
    for chunk in _passes(forward, parts, token_budget):
        segments = [Segment(parts[index].trainee.matrix().to(base_model.dtype), rows) for index, rows in chunk]
        logits = forward(segments)  # [targets, vocab]
        owners, ids, weights, smoothing = list[int](), list[int](), list[float](), list[float]()
        for index, rows in chunk:
            for row in rows:
                owners += [index] * len(row.target_ids)
                ids += row.target_ids
                weights += [row.weight / totals[index]] * len(row.target_ids)
                smoothing += [parts[index].label_smoothing] * len(row.target_ids)
        device = base_model.device
        token_losses = _cross_entropy(logits, torch.tensor(ids, device=device), smoothing) * torch.tensor(weights, device=device)
        token_losses.sum().backward()  # type: ignore[no-untyped-call]
        losses.index_add_(0, torch.tensor(owners, device=device), token_losses.detach())
    return losses


@torch.no_grad()
def score(base_model: BaseModel, forward: Forward, works: Sequence[ScoreWork]) -> list[list[RowScore]]:
    """One pass over the rows of all works."""
    logits = forward([Segment(work.prompt, work.rows) for work in works])
    log_probabilities = logits.float().log_softmax(-1)  # [targets, vocab]
    ids = torch.tensor([token for work in works for row in work.rows for token in row.target_ids], device=base_model.device)
    picked = log_probabilities.gather(1, ids[:, None]).squeeze(1).tolist()
    correct = (log_probabilities.argmax(-1) == ids).tolist()
    results, first = list[list[RowScore]](), 0
    for work in works:
        results.append([])
        for row in work.rows:
            last = first + len(row.target_ids)
            at_first = log_probabilities[first]
            candidates = tuple(at_first[list(work.candidates)].tolist()) if work.candidates else ()
            values, tokens = at_first.topk(work.top_k)
            top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
            results[-1].append(RowScore(sum(picked[first:last]), len(row.target_ids), sum(correct[first:last]), candidates, top))
            first = last
    return results


def _cross_entropy(logits: torch.Tensor, ids: torch.Tensor, smoothing: Sequence[float]) -> torch.Tensor:
    """[targets]; smoothing mixes the uniform distribution into the target's."""
    values = logits.float()
    lse = values.logsumexp(-1)
    losses = lse - values.gather(1, ids[:, None]).squeeze(1)
    if any(smoothing):
        share = torch.tensor(smoothing, device=logits.device)
        losses = (1 - share) * losses + share * (lse - values.mean(-1))
    return losses


def _passes(forward: Forward, parts: Sequence[TrainPart], token_budget: int) -> Iterator[list[tuple[int, Sequence[Row]]]]:
    """Split the parts' rows so that no pass takes more than the budget, unless a single row does."""
    chunk, used = list[tuple[int, Sequence[Row]]](), 0
    for index, part in enumerate(parts):
        num_virtual = part.trainee.num_virtual_tokens
        for rows in _fitting(forward, num_virtual, part.rows, token_budget):
            cost = forward.num_tokens(num_virtual, rows)
            if chunk and used + cost > token_budget:
                yield chunk
                chunk, used = [], 0
            chunk.append((index, rows))
            used += cost
    if chunk:
        yield chunk


def _fitting(forward: Forward, num_virtual: int, rows: Sequence[Row], token_budget: int) -> Iterable[Sequence[Row]]:
    if len(rows) == 1 or forward.num_tokens(num_virtual, rows) <= token_budget:
        return [rows]
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    return [fitting for half in halves for fitting in _fitting(forward, num_virtual, half, token_budget)]
