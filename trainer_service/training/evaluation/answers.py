"""Answers of the tuned prompt and its rivals to held-out examples, for people to read beside the metrics.

Scores and labels come from the evaluation, at no cost. Texts are generated for as many examples as fit into
`TEXT_SHARE` of the training's time, and at least `MIN_BATCHES` of the few-shot model and of all others. The same
examples come first for all models.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch

from shared.model.base_model import BaseModel
from shared.prompt.prefix import PrefixInput
from shared.values.example import target_of
from shared.values.report import ConfusionCell, HeldOutAnswer, HeldOutAnswers, ModelAnswer
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation.baselines import input_text
from trainer_service.training.evaluation.generate import MAX_BATCH_TOKENS, MAX_NEW_TOKENS, greedy_answers
from trainer_service.training.faults import is_machine_fault
from trainer_service.training.results import Results
from trainer_service.training.work import CallWork, Work

log = logging.getLogger(__name__)

MAX_TEXT_CHARS = 2000
"""Longer texts are cut."""
MAX_BYTES = 2 << 20
"""The most bytes of all texts. Examples beyond it are left out."""
TEXT_SHARE = 0.1
"""Time for generating texts relative to that of the training steps."""
MIN_BATCHES = 1
"""Batches that are generated after every training, however short it was."""
_MAX_ROWS = 16
TUNED, FEW_SHOT = "tuned", "few_shot"
"""Fields of HeldOutAnswer."""


@dataclass(frozen=True)
class Way:
    """One way to answer: a model's inputs for the examples, and its results on them."""

    data: EncodedDataset
    results: Results
    prefix: PrefixInput | None = None
    """None: the base model without a prefix."""
    end_token_id: int | None = None


@dataclass(frozen=True)
class _Text:
    """A row to generate: the answer of `way` to the example `index`."""

    way: str
    index: int
    row: EncodedExample
    num_virtual_tokens: int

    @property
    def num_input_tokens(self) -> int:
        return self.num_virtual_tokens + len(self.row.input_ids)

    @property
    def max_new_tokens(self) -> int:
        return min(MAX_NEW_TOKENS, len(self.row.target_ids) + 8)


@dataclass
class _Batch:
    """Rows that are generated together, padded to the longest."""

    rows: list[_Text] = field(default_factory=list)
    num_input_tokens: int = 0
    max_new_tokens: int = 0

    def grown(self, row: _Text) -> _Batch:
        return _Batch(
            [*self.rows, row],
            max(self.num_input_tokens, row.num_input_tokens),
            max(self.max_new_tokens, row.max_new_tokens),
        )

    @property
    def is_too_large(self) -> bool:
        return len(self.rows) > _MAX_ROWS or self.num_tokens > MAX_BATCH_TOKENS

    @property
    def num_tokens(self) -> int:
        return len(self.rows) * (self.num_input_tokens + self.max_new_tokens)


def held_out_answers(
    base_model: BaseModel, ways: Mapping[str, Way], labels: Sequence[str], train_seconds: float
) -> Generator[Work, Any, HeldOutAnswers]:
    """The answers of each of the `ways`, by field of HeldOutAnswer, to the same examples.

    `train_seconds`: time of the training steps, which bounds that of generating texts.
    """
    tuned = ways[TUNED]
    order = random.Random(len(tuned.data)).sample(range(len(tuned.data)), len(tuned.data))
    texts: dict[tuple[str, int], str] = {}
    if not any(way.results.chosen or way.results.texts for way in ways.values()):
        few_shot = {FEW_SHOT: ways[FEW_SHOT]} if FEW_SHOT in ways else {}  # its inputs are much longer than the others
        for group in ({name: way for name, way in ways.items() if name not in few_shot}, few_shot):
            texts |= yield from _texts(base_model, group, order, TEXT_SHARE * train_seconds / 2)
    decode = partial(base_model.tokenizer.decode, skip_special_tokens=True)
    found = [_answer(ways, labels, texts, index, decode) for index in order]
    found.sort(key=lambda answer: answer.tuned is None or answer.tuned.text is None)  # stable: keeps the random order
    kept = list(_within(found, MAX_BYTES))
    return HeldOutAnswers(
        tuple(sorted(kept, key=lambda answer: answer.line)), len(found) - len(kept), confusion(labels, tuned.results)
    )


def confusion(labels: Sequence[str], results: Results) -> tuple[ConfusionCell, ...]:
    """The confusion matrix without cells that are 0; empty for results without labels."""
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(results.wanted, results.chosen, strict=False):
        counts[pair] = counts.get(pair, 0) + 1
    return tuple(
        ConfusionCell(labels[wanted], labels[chosen], count) for (wanted, chosen), count in sorted(counts.items())
    )


def _texts(
    base_model: BaseModel, ways: Mapping[str, Way], order: Iterable[int], seconds: float
) -> Generator[Work, Any, dict[tuple[str, int], str]]:
    """Generated texts by way and example: `MIN_BATCHES`, and more while the next batch probably ends in `seconds`."""
    rows = (
        _Text(name, index, way.data.examples[index], 0 if way.prefix is None else way.prefix.num_virtual_tokens)
        for index in order
        for name, way in ways.items()
    )
    texts: dict[tuple[str, int], str] = {}
    took = 0.0
    for number, batch in enumerate(_batches(rows)):
        if number >= MIN_BATCHES and took >= seconds:
            break
        answers, took = yield CallWork(partial(_timed, partial(_generated, base_model, ways, batch)), batch.num_tokens)
        seconds -= took
        if not answers:
            break
        texts |= {(row.way, row.index): answer for row, answer in zip(batch.rows, answers, strict=True)}
    return texts


def _timed(generate: Callable[[], list[str]]) -> tuple[list[str], float]:
    started = time.perf_counter()
    return generate(), time.perf_counter() - started


def _batches(rows: Iterable[_Text]) -> Iterator[_Batch]:
    batch = _Batch()
    for row in rows:
        grown = batch.grown(row)
        if batch.rows and grown.is_too_large:
            yield batch
            grown = _Batch().grown(row)
        batch = grown
    if batch.rows:
        yield batch


def _generated(base_model: BaseModel, ways: Mapping[str, Way], batch: _Batch) -> list[str]:
    """The answers of a batch; empty if the model can't write them. That must not fail a job that is trained."""
    prefixes = [ways[row.way].prefix for row in batch.rows]
    ends = {end for row in batch.rows if (end := ways[row.way].end_token_id) is not None}
    try:
        return greedy_answers(
            base_model, prefixes, [row.row.input_ids for row in batch.rows], batch.max_new_tokens, ends
        )
    except Exception as error:
        if is_machine_fault(error):
            raise
        log.info("held-out answers are not generated: %s", str(error)[:200])
    if base_model.device.type == "cuda":
        torch.cuda.empty_cache()
    return []


def _answer(
    ways: Mapping[str, Way],
    labels: Sequence[str],
    texts: Mapping[tuple[str, int], str],
    index: int,
    decode: Callable[[Sequence[int]], str],
) -> HeldOutAnswer:
    row = ways[TUNED].data.examples[index]
    example, reference = row.example, target_of(row.example)
    answers = dict[str, ModelAnswer]()
    for name, way in ways.items():
        results = way.results
        loss = -results.log_probabilities[index] / results.num_targets[index]
        text, correct = texts.get((name, index)), None
        if results.chosen:
            text, correct = labels[results.chosen[index]], results.chosen[index] == results.wanted[index]
        elif index in results.texts:
            text, wanted = results.texts[index]
            correct = text == wanted
        elif text is not None:
            # a tokenizer may change texts, for example their case
            correct = text == reference.strip() or text == decode(row.target_ids).strip()
        answers[name] = ModelAnswer(None if text is None else _cut(text), loss, correct, results.num_targets[index])
    return HeldOutAnswer(example.line, _cut(input_text(example)), _cut(reference), **answers)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _within(answers: Iterable[HeldOutAnswer], max_bytes: int) -> Iterator[HeldOutAnswer]:
    for answer in answers:
        max_bytes -= _num_bytes(answer)
        if max_bytes < 0:
            return
        yield answer


def _num_bytes(answer: HeldOutAnswer) -> int:
    """Size of the texts and, roughly, of the numbers."""
    parts = [getattr(answer, item.name) for item in fields(answer)]
    texts = [part.text if isinstance(part, ModelAnswer) else part for part in parts]
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str)) + 24 * len(parts)
