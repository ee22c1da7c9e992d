"""Scores a contestant on a test set, with one outcome per row, so that intervals can be computed from the result file.

Classification: whether the most probable label is correct. Generation: whether greedy decoding produces exactly the
expected answer. An answer is exact if each of its tokens, including the end, is the most probable one after the
preceding tokens; one pass shows this. chrF compares answers that are actually generated with all references.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from safetensors.torch import save

from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix, PrefixInput
from trainer_service.training.attention.forward import Forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.compute import score_within
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation.evaluate import score_rows
from trainer_service.training.evaluation.generate import MAX_NEW_TOKENS, greedy_answers
from trainer_service.training.recipe.init import embed
from trainer_service.training.work import RowScore

TOKENS_AT_ONCE = 2048
BATCH = 8


class Tuned(Protocol):
    """A model as one contestant changed it."""

    num_parameters: int
    num_bytes: int
    """Size of the file with the trained parameters."""

    def score_rows(self, rows: Sequence[Row]) -> list[RowScore]: ...

    def answers(
        self, inputs: Sequence[Sequence[int]], max_new_tokens: int, end_token_ids: Collection[int]
    ) -> list[str]: ...


class Prefixed:
    """The base model after a prefix; None: without one. Computed by the trainer's forward pass."""

    def __init__(self, base: BaseModel, forward: Forward, prefix: Prefix | None) -> None:
        tensors = {} if prefix is None else prefix.tensors()
        self._base, self._forward = base, forward
        self._input = None if prefix is None else prefix.input(base.dtype, base.device)
        self.num_parameters = sum(tensor.numel() for tensor in tensors.values())
        self.num_bytes = len(save(tensors)) if tensors else 0

    def score_rows(self, rows: Sequence[Row]) -> list[RowScore]:
        """Computes the common beginning of all inputs once per pass, so that long few-shot examples are cheap."""
        prefix = self._input
        shared = _common_beginning([row.input_ids[:-1] for row in rows])
        if shared and (prefix is None or not prefix.keys):
            before = [] if prefix is None or prefix.embeddings is None else [prefix.embeddings]
            prefix = PrefixInput(torch.cat([*before, embed(self._base, shared).to(self._base.dtype)]))
            rows = [replace(row, input_ids=row.input_ids[len(shared) :]) for row in rows]
        work = score_rows(prefix, rows)
        try:
            request: Any = next(work)
            while True:
                request = work.send(score_within(self._base, self._forward, [request], TOKENS_AT_ONCE)[0])
        except StopIteration as done:
            return list(done.value)

    def answers(
        self, inputs: Sequence[Sequence[int]], max_new_tokens: int, end_token_ids: Collection[int]
    ) -> list[str]:
        """The stripped greedy answers to some inputs in one batch."""
        return greedy_answers(self._base, [self._input] * len(inputs), inputs, max_new_tokens, end_token_ids)


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


def score_test(tuned: Tuned, data: EncodedDataset) -> Scores:
    targets = tuned.score_rows([Row(example.input_ids, example.target_ids) for example in data.examples])
    num_targets = sum(score.num_targets for score in targets)
    loss = -sum(score.log_probability for score in targets) / num_targets
    if not data.label_ids:
        return Scores(loss, tuple(score.num_correct == score.num_targets for score in targets))
    rows = [Row(example.input_ids, ids) for example in data.examples for ids in data.label_ids]
    values = [score.log_probability for score in tuned.score_rows(rows)]
    width = len(data.label_ids)
    answers = [
        max(range(width), key=values[first : first + width].__getitem__) for first in range(0, len(values), width)
    ]
    return Scores(
        loss, tuple(answer == example.label_index for answer, example in zip(answers, data.examples, strict=True))
    )


def chrf(
    tuned: Tuned, examples: Sequence[EncodedExample], references: Sequence[Sequence[str]], stops: Collection[int]
) -> float:
    """chrF (sacrebleu, 0 to 100) of greedy answers."""
    import sacrebleu

    longest = max(len(example.target_ids) for example in examples)
    new_tokens = min(MAX_NEW_TOKENS, longest + longest // 2 + 8)
    answers: list[str] = []
    for first in range(0, len(examples), BATCH):
        batch = [example.input_ids for example in examples[first : first + BATCH]]
        answers += tuned.answers(batch, new_tokens, stops)
    width = max(map(len, references))
    streams = [[some[index % len(some)] for some in references] for index in range(width)]
    return float(sacrebleu.corpus_chrf(answers, streams).score)


def _common_beginning(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, last = min(sequences), max(sequences)  # in lexicographic order, all others lie between these two
    length = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(last)),
    )
    return first[:length]
