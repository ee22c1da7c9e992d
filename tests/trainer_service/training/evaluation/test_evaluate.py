"""Scoring held-out examples: what rows share is computed once, and no result depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.trainer_service.training.models import build
from trainer_service.training.attention.forward import choose_forward
from trainer_service.training.attention.packing import num_packed_tokens
from trainer_service.training.compute import score
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation.evaluate import SLICE_TOKENS, evaluate_examples
from trainer_service.training.results import Results
from trainer_service.training.spec import Example, Metric
from trainer_service.training.work import RowScore, ScoreWork

BASE = build(max_position_embeddings=2048)


def dataset(num_examples: int, num_labels: int, beginning: int = 0) -> EncodedDataset:
    """Inputs of 40 tokens behind `beginning` that they share; labels of three tokens each."""
    rows = tuple(
        EncodedExample(
            Example(line=index + 1, label="x"),
            (
                *(7 + step % 50 for step in range(beginning)),
                *(10 + (index * 31 + step * 7) % 200 for step in range(40)),
            ),
            (20, 21, 22),
            0,
        )
        for index in range(num_examples)
    )
    return EncodedDataset(rows, tuple((20 + label % 50, 80 + label // 50, 22) for label in range(num_labels)))


def scored(
    data: EncodedDataset, scores_of: Callable[[ScoreWork], list[RowScore]] | None = None
) -> tuple[Results, list[ScoreWork]]:
    """`scores_of` takes the place of the model."""
    forward, works = choose_forward(BASE), list[ScoreWork]()
    running: Generator[Any, Any, Results] = evaluate_examples(None, data)
    work = next(running)
    while True:
        works.append(work)
        try:
            work = running.send(scores_of(work) if scores_of else score(BASE, forward, [work])[0])
        except StopIteration as done:
            return done.value, works


def positions(works: list[ScoreWork]) -> int:
    return sum(num_packed_tokens(0, work.rows) for work in works)


def test_many_labels_of_an_example_share_its_input() -> None:
    data = dataset(3, 100)
    together, works = scored(data)
    alone = [scored(EncodedDataset((example,), data.label_ids))[0] for example in data.examples]
    assert positions(works) < 3 * (40 + 100 * 3 + 40) + 200, "and not 3 * 100 * 42"
    assert together.chosen == tuple(one.chosen[0] for one in alone)
    assert together.log_probabilities == pytest.approx([one.log_probabilities[0] for one in alone], abs=1e-4)


def test_a_long_beginning_that_all_examples_share_is_computed_once_a_slice() -> None:
    data = dataset(60, 0, beginning=900)
    results, works = scored(data)
    alone, _ = scored(EncodedDataset(data.examples[:1]))
    assert results.log_probabilities[0] == pytest.approx(alone.log_probabilities[0], abs=1e-4)
    assert positions(works) <= 60 * 42 + 4 * 900, "and not 60 * 942"
    assert max(num_packed_tokens(0, work.rows) for work in works) <= 2 * SLICE_TOKENS


def test_few_labels_are_scored_in_full_passes() -> None:
    _, works = scored(dataset(20, 2))
    assert len(works) <= 3


@pytest.mark.parametrize("num_label_tokens", [1, 3])
def test_a_model_that_gives_no_numbers_is_right_on_no_example(num_label_tokens: int) -> None:
    """As float16 does where activations overflow. The labels of the examples are all the first one."""
    data = dataset(4, 2)
    data = EncodedDataset(data.examples, tuple(ids[:num_label_tokens] for ids in data.label_ids))

    def scores_of(work: ScoreWork) -> list[RowScore]:
        return [RowScore(math.nan, 3, 0, (math.nan,) * len(work.candidates)) for _ in work.rows]

    results, _ = scored(data, scores_of)
    assert results.metrics(Metric.ACCURACY)["accuracy"] == 0.0
