"""Scores a prompt on a test set, with one outcome per row, so that intervals can be computed from the result file.

Classification: whether the most probable label is correct. Generation: whether greedy decoding produces exactly the
expected answer. An answer is exact if each of its tokens, including the end, is the most probable one after the
preceding tokens; one pass shows this. chrF compares answers that are actually generated with all references.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from shared.model.base_model import BaseModel
from trainer_service.training.attention.forward import Forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.compute import score_within
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation.evaluate import score_rows
from trainer_service.training.evaluation.generate import MAX_NEW_TOKENS
from trainer_service.training.recipe.init import embed
from trainer_service.training.work import RowScore

TOKENS_AT_ONCE = 2048
BATCH = 8
RESAMPLES, INTERVAL = 2000, 0.95


@dataclass(frozen=True)
class Scores:
    """`loss` is the mean over target tokens; `right` has one entry per test row."""

    loss: float
    right: tuple[bool, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "value": statistics.mean(self.right),
            "loss": self.loss,
            "right": "".join("01"[each] for each in self.right),
        }


def score_test(base: BaseModel, forward: Forward, prompt: torch.Tensor | None, data: EncodedDataset) -> Scores:
    targets = _scored(base, forward, prompt, [Row(example.input_ids, example.target_ids) for example in data.examples])
    num_targets = sum(score.num_targets for score in targets)
    loss = -sum(score.log_probability for score in targets) / num_targets
    if not data.label_ids:
        return Scores(loss, tuple(score.num_correct == score.num_targets for score in targets))
    rows = [Row(example.input_ids, ids) for example in data.examples for ids in data.label_ids]
    values = [score.log_probability for score in _scored(base, forward, prompt, rows)]
    width = len(data.label_ids)
    answers = [
        max(range(width), key=values[first : first + width].__getitem__) for first in range(0, len(values), width)
    ]
    return Scores(
        loss, tuple(answer == example.label_index for answer, example in zip(answers, data.examples, strict=True))
    )


@torch.no_grad()
def chrf(
    base: BaseModel,
    prompt: torch.Tensor | None,
    examples: Sequence[EncodedExample],
    references: Sequence[Sequence[str]],
    stops: Sequence[int],
) -> float:
    """chrF (sacrebleu, 0 to 100) of greedy answers."""
    import sacrebleu

    longest = max(len(example.target_ids) for example in examples)
    answers: list[str] = []
    for first in range(0, len(examples), BATCH):
        rows = [
            base.model.get_input_embeddings()(torch.tensor(example.input_ids))
            for example in examples[first : first + BATCH]
        ]
        if prompt is not None:
            rows = [torch.cat([prompt, row]) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        mask = torch.tensor(
            [[index >= padded.shape[1] - len(row) for index in range(padded.shape[1])] for row in rows]
        ).long()
        ids = base.model.generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=min(MAX_NEW_TOKENS, longest + longest // 2 + 8),
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=min(stops),
        )
        answers += [text.strip() for text in base.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    width = max(map(len, references))
    streams = [[some[index % len(some)] for some in references] for index in range(width)]
    return float(sacrebleu.corpus_chrf(answers, streams).score)


def interval(seeds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The middle 95 % of a bootstrap over seeds and test rows. `seeds[i][j]`: seed i, test row j."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([list(seed) for seed in seeds], dtype=torch.float32)  # [seeds, rows]
    drawn_seeds, drawn_rows = (_drawn(count, generator) for count in rows.shape)
    means = ((drawn_seeds @ rows) * drawn_rows).sum(1).sort().values.tolist()
    outside = int((1 - INTERVAL) / 2 * RESAMPLES)
    return means[outside], means[-1 - outside]


def _drawn(count: int, generator: torch.Generator) -> torch.Tensor:
    """`[resamples, count]`: the share of `count` draws that select each of `count` items."""
    picks = torch.randint(0, count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count).scatter_add_(1, picks, torch.full((RESAMPLES, count), 1 / count))


def _common_beginning(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, last = min(sequences), max(sequences)  # in lexicographic order, all others lie between these two
    length = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(last)),
    )
    return first[:length]


def _scored(base: BaseModel, forward: Forward, prompt: torch.Tensor | None, rows: Sequence[Row]) -> list[RowScore]:
    """Moves the common beginning of all inputs to the prompt, so that long few-shot examples are computed once per
    pass.
    """
    shared = _common_beginning([row.input_ids[:-1] for row in rows])
    if shared:
        beginning = embed(base, shared).to(base.dtype)
        prompt = beginning if prompt is None else torch.cat([prompt, beginning])
        rows = [replace(row, input_ids=row.input_ids[len(shared) :]) for row in rows]
    work = score_rows(prompt, rows)
    try:
        request: Any = next(work)
        while True:
            request = work.send(score_within(base, forward, [request], TOKENS_AT_ONCE)[0])
    except StopIteration as done:
        return list(done.value)
