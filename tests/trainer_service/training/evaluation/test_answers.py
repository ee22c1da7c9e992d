"""Held-out answers for reports: which are generated, what they cost at most, and that they never fail a job."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from shared.prompt.prefix import PrefixInput
from shared.text.template import InputEncoder
from shared.values.report import HeldOutAnswers
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import TEMPLATE, generation
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.evaluation import answers as module
from trainer_service.training.evaluation.answers import Way, confusion, held_out_answers
from trainer_service.training.results import Results
from trainer_service.training.spec import Example
from trainer_service.training.work import CallWork

BASE = build()
ENCODER = InputEncoder(BASE.tokenizer, TEMPLATE)


@pytest.fixture(autouse=True)
def texts(no_texts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `no_texts`, so that answers are generated as in a trainer."""
    monkeypatch.undo()


def way(examples: tuple[Example, ...], prefix: PrefixInput | None = None) -> Way:
    rows = tuple(
        EncodedExample(example, tuple(ENCODER.encode_input(example.input)), tuple(ENCODER.encode_target("no")))
        for example in examples
    )
    count = len(rows)
    results = Results(
        log_probabilities=tuple(-float(index + 1) for index in range(count)), num_targets=(2,) * count, num_correct=()
    )
    return Way(EncodedDataset(rows), results, prefix, ENCODER.end_token_id)


def computed(work: Generator[Any, Any, HeldOutAnswers]) -> tuple[HeldOutAnswers, int]:
    """The answers, and the number of batches that were generated."""
    result, calls = None, 0
    while True:
        try:
            item = work.send(result)
        except StopIteration as stop:
            return stop.value, calls
        assert isinstance(item, CallWork)
        result, calls = item.call(), calls + 1


def test_texts_of_all_models_are_for_the_same_examples_and_cost_little() -> None:
    examples, prompt = generation(40), PrefixInput(torch.zeros(3, 64))
    ways = {"tuned": way(examples, prompt), "bare": way(examples), "few_shot": way(examples)}
    found, calls = computed(held_out_answers(BASE, ways, (), train_seconds=0.0))
    assert calls == 2, "one batch with the few-shot model's, one with all others'"
    written = {
        name: {answer.line for answer in found.answers if getattr(answer, name).text is not None} for name in ways
    }
    assert 0 < len(written["tuned"]) < 40
    assert len(written["tuned"] - written["few_shot"]) == 0
    assert abs(len(written["tuned"]) - len(written["bare"])) <= 1
    assert [answer.line for answer in found.answers] == list(range(1, 41))
    assert found.answers[0].tuned is not None
    assert found.answers[0].tuned.loss == 0.5
    some = {name: way(examples[:20]) for name in ways}
    everything, calls = computed(held_out_answers(BASE, some, (), train_seconds=1e9))
    assert calls > 2
    assert all(answer.bare is not None and answer.bare.text is not None for answer in everything.answers)


def test_a_batch_of_several_models_gives_each_models_own_answers() -> None:
    examples = generation(4)
    torch.manual_seed(1)
    prompt = PrefixInput(torch.randn(3, 64))
    together, _ = computed(held_out_answers(BASE, {"tuned": way(examples, prompt), "bare": way(examples)}, (), 1e9))
    for name, one in {"tuned": way(examples, prompt), "bare": way(examples)}.items():
        alone, _ = computed(held_out_answers(BASE, {"tuned": one}, (), 1e9))
        texts = [answer.tuned.text for answer in alone.answers if answer.tuned is not None]
        assert [getattr(answer, name).text for answer in together.answers] == texts


@pytest.mark.parametrize(("answer", "correct"), [("no", True), ("NO", True), ("not", False)])
def test_an_answer_is_right_if_it_is_all_that_the_tokenizer_can_write(
    answer: str, correct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer may know small letters only. The metric `exact_match` compares in the same way."""
    monkeypatch.setattr(module, "greedy_answers", lambda base, prefixes, *others: [answer] * len(prefixes))
    examples = tuple(replace(example, output="NO") for example in generation(2))
    found, _ = computed(held_out_answers(BASE, {"tuned": way(examples)}, (), 1e9))
    assert [one.tuned.correct for one in found.answers if one.tuned is not None] == [correct] * 2


def test_what_is_too_large_together_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    long = tuple(Example(line=line, input="x" * 100 + "ß" * 5000, output="y") for line in range(1, 5))
    one = way(generation(4))
    rows = tuple(
        EncodedExample(example, row.input_ids, row.target_ids)
        for example, row in zip(long, one.data.examples, strict=True)
    )
    monkeypatch.setattr(module, "MAX_BYTES", 9000)
    found, _ = computed(held_out_answers(BASE, {"tuned": Way(EncodedDataset(rows), one.results)}, (), 0))
    assert (len(found.answers), found.num_left_out) == (2, 2)
    assert len(found.answers[0].input) == module.MAX_TEXT_CHARS


def test_a_model_that_can_not_generate_costs_the_texts_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**arguments: Any) -> None:
        raise ValueError("`inputs_embeds` is not supported")

    monkeypatch.setattr(BASE.model, "generate", broken)
    found, calls = computed(held_out_answers(BASE, {"tuned": way(generation(3))}, (), 1e9))
    assert calls == 1
    assert [answer.tuned and answer.tuned.text for answer in found.answers] == [None] * 3


def test_a_confusion_matrix_has_the_cells_that_occur() -> None:
    results = Results(
        log_probabilities=(0.0,) * 4,
        num_targets=(1,) * 4,
        num_correct=(1,) * 4,
        wanted=(0, 0, 1, 1),
        chosen=(0, 1, 1, 1),
    )
    cells = [(cell.expected, cell.chosen, cell.count) for cell in confusion(("good", "bad"), results)]
    assert cells == [("good", "good", 1), ("good", "bad", 1), ("bad", "bad", 2)]
