"""Scores a prompt on held-out examples, as generators that yield work, so that a cohort can compute it between steps.

In classification, the answer is the label whose tokens are the most probable continuation.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.values.results import NearestToken
from trainer_service.training.attention.packing import Row, common_length, num_packed_tokens
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.recipe.init import embed
from trainer_service.training.results import Results
from trainer_service.training.work import RowScore, ScoreWork, Work

SLICE_TOKENS = 1024
MIN_PASS_TOKENS = 128
"""Smaller passes cost as much as one of this size, because every pass reads all weights."""
MAX_SHARED_TOKENS = 16 * SLICE_TOKENS
"""The most shared tokens of a slice, counted once per row, because `PlainForward` computes them for each row."""
_TABLE_CHUNK = 16384

Evaluation = Generator[Work, Any, dict[str, float]]


def evaluate_examples(prefix: PrefixInput | None, data: EncodedDataset) -> Generator[Work, Any, Results]:
    """The results of each example with `prefix` (None: the bare model), without generated texts."""
    single = len(data.label_ids) > 0 and all(len(ids) == 1 for ids in data.label_ids)
    candidates = tuple(ids[0] for ids in data.label_ids) if single else ()
    rows = [Row(example.input_ids, example.target_ids, teacher=example.teacher) for example in data.examples]
    scores = yield from score_rows(prefix, rows, candidates)
    answers: list[int] = []
    if data.label_ids:
        if single:
            answers = [_answer(score.candidates, row) for score, row in zip(scores, data.examples, strict=True)]
        else:
            answers = yield from _choose_labels(prefix, data)
    return Results(
        log_probabilities=tuple(score.log_probability for score in scores),
        num_targets=tuple(score.num_targets for score in scores),
        num_correct=tuple(score.num_correct for score in scores),
        wanted=tuple(example.label_index for example in data.examples) if data.label_ids else (),
        chosen=tuple(answers),
    )


def score_rows(
    prefix: PrefixInput | None, rows: Sequence[Row], candidates: tuple[int, ...] = ()
) -> Generator[Work, Any, list[RowScore]]:
    """Scores in the order of `rows`, computed in slices to keep the cohort's steps short."""
    common, scores = common_length(rows), list[RowScore]()
    for part in row_slices(rows, max(SLICE_TOKENS, 2 * common), common):
        scores += yield ScoreWork(prefix, part, candidates)
    return scores


@torch.no_grad()
def nearest_tokens(base_model: BaseModel, prefix: PrefixInput) -> tuple[NearestToken, ...]:
    """The vocabulary token with the highest cosine similarity to each virtual token; none for keys and values."""
    if prefix.embeddings is None:
        return ()
    unit = torch.nn.functional.normalize(prefix.embeddings.detach().float().to(base_model.device), dim=-1)
    vocab = base_model.embedding_table.shape[0]
    best = torch.full((unit.shape[0],), -2.0, device=unit.device)
    ids = torch.zeros(unit.shape[0], dtype=torch.long, device=unit.device)
    for first in range(0, vocab, _TABLE_CHUNK):
        table = embed(base_model, range(first, min(vocab, first + _TABLE_CHUNK)))
        cosine, index = (unit @ torch.nn.functional.normalize(table, dim=-1).T).max(-1)
        ids = torch.where(cosine > best, index + first, ids)
        best = torch.maximum(best, cosine)
    texts = [base_model.tokenizer.decode([token]) for token in ids.tolist()]
    return tuple(NearestToken(text, cosine) for text, cosine in zip(texts, best.tolist(), strict=True))


def _choose_labels(prefix: PrefixInput | None, data: EncodedDataset) -> Generator[Work, Any, list[int]]:
    """The most probable label of every example, from exact scores. Each label is a row.

    Examples are scored separately if sharing the input among the labels is cheaper.
    """
    by_example = [[Row(example.input_ids, ids) for ids in data.label_ids] for example in data.examples]
    together = [row for rows in by_example for row in rows]
    apart = [num_packed_tokens(0, rows) for rows in by_example]
    common = common_length(together)
    is_cheaper = 2 * sum(apart) < sum(len(row.tokens) - common for row in together)
    scores: list[RowScore] = []
    for rows in by_example if is_cheaper and min(apart) >= MIN_PASS_TOKENS else [together]:
        scores += yield from score_rows(prefix, rows)
    values, width = [score.log_probability for score in scores], len(data.label_ids)
    starts = range(0, len(values), width)
    return [_answer(values[first : first + width], row) for first, row in zip(starts, data.examples, strict=True)]


def row_slices(rows: Sequence[Row], max_tokens: int, common: int = 0) -> Iterator[Sequence[Row]]:
    """Slices of consecutive rows with at most `max_tokens` tokens in total; a longer row is a separate slice.

    The `common` first tokens of all rows are computed once per slice and count once, but at most MAX_SHARED_TOKENS of
    them are in one slice, counted once per row.
    """
    part, used = list[Row](), common
    for row in rows:
        own = len(row.tokens) - common
        if part and (used + own > max_tokens or len(part) * common > MAX_SHARED_TOKENS):
            yield part
            part, used = [], common
        part.append(row)
        used += own
    if part:
        yield part


def _answer(values: Sequence[float], example: EncodedExample) -> int:
    """The label with the highest score, the first of equals. Scores that are all NaN count as a wrong answer."""
    known = [-math.inf if math.isnan(value) else value for value in values]
    best = max(known)
    return known.index(best) if best > -math.inf else (example.label_index + 1) % len(known)
