"""The few-shot baseline computes its examples once, and its answers stay the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.model.base_model import BaseModel
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import PrefixInput
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import generation, of, run, task
from trainer_service.training.cohort import Cohort
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation import answers, shared_beginning
from trainer_service.training.evaluation.generate import generated_texts
from trainer_service.training.events import Finished, TrainingResult
from trainer_service.training.spec import Example


def dataset(num_shared: int, num_examples: int = 5) -> EncodedDataset:
    rows = [
        EncodedExample(
            Example(line=number, input="x", output="y"),
            (*(30 + place % 90 for place in range(num_shared)), *range(40 + number, 46 + 2 * number)),
            (50,) * 3,
        )
        for number in range(1, num_examples + 1)
    ]
    return EncodedDataset(tuple(rows))


def written(base: BaseModel, prefix: PrefixInput | None, data: EncodedDataset) -> dict[int, tuple[str, str]]:
    running = generated_texts(base, prefix, data, None)
    work = next(running)
    while True:
        try:
            work = running.send(work.call())
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
def test_answers_after_a_shared_beginning_are_those_to_whole_inputs(model_type: str) -> None:
    base, data = build(model_type, sliding_window=None), dataset(100)
    prefix, rest = shared_beginning.shared_beginning(base, data)
    assert prefix is not None
    assert prefix.num_virtual_tokens == 100
    assert [len(row.input_ids) for row in rest.examples] == [len(row.input_ids) - 100 for row in data.examples]
    expected = written(base, None, data)
    assert len({answer for answer, _ in expected.values()}) > 2
    assert written(base, prefix, rest) == expected


def test_what_can_not_be_shared_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataset(shared_beginning.MIN_TOKENS - 1)
    assert shared_beginning.shared_beginning(build(), short) == (None, short)
    data = dataset(100)
    assert shared_beginning.shared_beginning(build("mistral"), data) == (None, data)
    assert shared_beginning.shared_beginning(build(), replace(data, examples=data.examples[:1]))[0] is None

    def refuses(*arguments: Any) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    monkeypatch.setattr(shared_beginning, "check_key_values", refuses)
    assert shared_beginning.shared_beginning(build(), data) == (None, data)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return Cohort(build())


@pytest.mark.parametrize("metric", ["CHRF", "TOKEN_ACCURACY"])
def test_a_job_ends_as_without_sharing(cohort: Cohort, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    monkeypatch.setattr(answers, "MIN_BATCHES", 99)
    ended, lengths = list[TrainingResult](), list[int]()

    def counted(base: BaseModel, embedded: Any) -> Any:
        lengths.append(len(embedded))
        return key_values_of(base, embedded)

    monkeypatch.setattr(shared_beginning, "key_values_of", counted)
    for least in (shared_beginning.MIN_TOKENS, 10_000):
        monkeypatch.setattr(shared_beginning, "MIN_TOKENS", least)
        one = task(validation=generation(3, 50), num_steps=2, metric=metric, evaluation_interval_steps=2)
        ended += [event.result for event in of(run(cohort, one), Finished)]
    assert lengths
    assert min(lengths) >= 64
    first, second = ended
    assert first.few_shot_metrics == pytest.approx(second.few_shot_metrics)
    assert first.answers == second.answers
    assert first.answers.answers[0].few_shot is not None
    assert first.answers.answers[0].few_shot.text is not None
