"""Which held-out examples text metrics look at."""

from __future__ import annotations

import pytest
import torch

from shared.prompt.lift import key_values_of
from shared.prompt.prefix import PrefixInput
from tests.trainer_service.training.models import build
from trainer_service.training.evaluation.generate import MAX_EXAMPLES, greedy_answers, sampled


def test_text_metrics_look_at_examples_from_all_parts_of_a_sorted_file() -> None:
    """The first 64 of 1,000 sorted examples would be of one kind only."""
    picks = sampled(1000)
    assert len(set(picks)) == MAX_EXAMPLES
    assert {pick * 8 // 1000 for pick in picks} == set(range(8))
    assert picks == sampled(1000), "the same ones each time, so that two evaluations can be compared"


def test_few_examples_are_all_looked_at() -> None:
    assert sampled(MAX_EXAMPLES) == list(range(MAX_EXAMPLES))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_keys_and_values_answer_as_the_prompt_that_they_were_computed_from(model_type: str) -> None:
    """In one batch with another prompt, with the bare model, and with inputs of other lengths."""
    base = build(model_type)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, 64, generator=generator) for length in (7, 3)]
    entering = [PrefixInput(prompt) for prompt in prompts]
    lifted = [key_values_of(base, prompt).input(base.dtype) for prompt in prompts]
    inputs = [[11, 12, 13, 14, 15], [21, 22], [31, 32, 33], [41, 42, 43, 44]]

    def answers(prefixes: list[PrefixInput | None]) -> list[str]:
        return greedy_answers(base, prefixes, inputs, 12, ())

    expected = answers([entering[0], entering[1], None, entering[1]])
    assert len(set(expected)) == 4
    assert answers([lifted[0], lifted[1], None, entering[1]]) == expected


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_an_answer_ends_with_the_models_context_and_others_are_the_same(model_type: str) -> None:
    """GPT-2 has no embedding for a position beyond it."""
    base = build(model_type)
    short, long = [11] * 20, [10] * (256 - 5)
    alone, together = (
        greedy_answers(base, [None] * len(inputs), inputs, 30, ()) for inputs in ([short], [long, short])
    )
    assert together[1:] == alone
    assert len(together[0]) <= 5
