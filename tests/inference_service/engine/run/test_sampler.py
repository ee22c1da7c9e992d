"""The sampler on made-up logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.run.sampler import philox, sample, uniform
from shared.values.sampling import SamplingParams

VOCAB = 50


def row(
    seed: int = 0, tokens: tuple[int, ...] = (1, 2), num_input: int | None = None, **sampling: Any
) -> RunningRequest:
    return RunningRequest(
        "s", list(tokens), len(tokens) if num_input is None else num_input, SamplingParams(**sampling), seed
    )


def one(logits: torch.Tensor, sequence: RunningRequest, ends: frozenset[int] = frozenset()) -> int:
    return sample(logits[None], [sequence], [ends])[0].token_id


def draws(logits: torch.Tensor, count: int = 400, **sampling: Any) -> list[int]:
    rows = [row(seed=i, **sampling) for i in range(count)]
    return [s.token_id for s in sample(logits.expand(count, -1), rows, [frozenset()] * count)]


def test_philox_is_the_published_generator() -> None:
    """Known answers of Random123's test vectors, first two words."""
    assert philox(0, 0) == (0x6627E8D5, 0xE169C58D)


def test_uniform_numbers_are_uniform_and_repeatable() -> None:
    numbers = [uniform(5, i) for i in range(2000)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03
    assert numbers[:3] == [uniform(5, i) for i in range(3)]
    assert uniform(6, 0) != uniform(5, 0)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.full((VOCAB,), -50.0)
    logits[3], logits[7] = math.log(0.75), math.log(0.25)
    found = draws(logits, 2000)
    assert set(found) == {3, 7}
    assert abs(found.count(3) / 2000 - 0.75) < 0.04


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.55}, {0, 1}),
        ({"top_k": 3, "min_p": 0.55}, {0, 1}),
        ({"top_k": 2, "top_p": 0.55}, {0}),  # of the two that top_k keeps, the first has a probability of 0.57
        ({"temperature": 1e-6}, {0}),
        ({"temperature": 0.0, "top_k": 5}, {0}),
    ],
)
def test_truncation_keeps_what_it_says(sampling: dict[str, Any], allowed: set[int]) -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(draws(logits, **sampling)) == allowed


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 0.6), (5, 0.3), (7, 0.9), (20, 0.5)])
def test_top_k_and_top_p_together_are_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(top_k))
    warpers = LogitsProcessorList([TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)])
    kept = torch.isfinite(warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]))[0]
    assert set(draws(logits, 600, top_k=top_k, top_p=top_p)) == set(kept.nonzero().flatten().tolist())


def test_top_p_wider_than_the_sorted_head_sorts_everything() -> None:
    logits = torch.zeros(3000)
    found = draws(logits, 300, top_p=0.9)
    assert max(found) > 1024
    assert max(found) < 2702


def test_equal_probabilities_stand_in_the_order_of_ids() -> None:
    assert set(draws(torch.zeros(VOCAB), 600, top_k=5)) == {0, 1, 2, 3, 4}


def test_neighbours_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 2000, generator=generator)
    kinds: list[dict[str, Any]] = [
        {},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 0.3},
        {"top_k": 900},
        {"temperature": 0.0},
        {"top_p": 0.999},
    ]
    rows = [row(seed=i, **kind) for i, kind in enumerate(kinds)]
    together = [s.token_id for s in sample(logits, rows, [frozenset()] * 8)]
    assert together == [one(logits[i], rows[i]) for i in range(8)]


def test_penalties_count_real_tokens_only() -> None:
    logits = torch.zeros(VOCAB)
    logits[4], logits[5], logits[6] = 2.0, 1.9, 1.5
    assert one(logits, row(tokens=(4,), temperature=0.0)) == 4
    assert one(logits, row(tokens=(4,), temperature=0.0, repetition_penalty=1.2)) == 5
    assert one(logits, row(tokens=(4,), temperature=0.0, presence_penalty=1.0)) == 4, (
        "presence looks at generated tokens only"
    )
    assert one(logits, row(tokens=(1, 4, 5), num_input=1, temperature=0.0, presence_penalty=1.0)) == 6
    assert one(logits, row(tokens=(1, 4, 4, 5), num_input=1, temperature=0.0, frequency_penalty=0.3)) == 5
    assert one(-logits - 1, row(tokens=tuple(range(4)), temperature=0.0, repetition_penalty=5.0)) > 3


def test_penalties_follow_a_growing_sequence() -> None:
    """Each step counts only new tokens, and finds what a new sequence with all of them finds."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 0.5
    penalties: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "temperature": 0.0,
    }
    growing = row(tokens=(7, 7, 3), **penalties)
    for _ in range(30):
        token = one(logits, growing)
        assert token == one(logits, row(tokens=tuple(growing.tokens), num_input=3, **penalties))
        growing.tokens.append(token)
    assert len(set(growing.generated)) > 5


def test_penalties_of_a_sequence_without_tokens() -> None:
    logits = torch.zeros(VOCAB)
    logits[4] = 1.0
    assert one(logits, row(tokens=(), temperature=0.0, repetition_penalty=2.0, frequency_penalty=1.0)) == 4


def test_no_end_before_the_minimum() -> None:
    logits = torch.zeros(VOCAB)
    logits[9] = 5.0
    assert one(logits, row(temperature=0.0), frozenset({9})) == 9
    assert one(logits, row(temperature=0.0, min_new_tokens=1), frozenset({9})) == 0
    assert one(logits, row(tokens=(1, 2, 3), num_input=2, temperature=0.0, min_new_tokens=1), frozenset({9})) == 9


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    expected = torch.log_softmax(logits, -1)
    found = sample(
        logits[None], [row(temperature=0.7, top_k=3, repetition_penalty=2.0, num_logprobs=4)], [frozenset()]
    )[0]
    assert found.logprob is not None
    assert found.logprob.logprob == pytest.approx(float(expected[found.token_id]), abs=1e-5)
    assert [token for token, _ in found.logprob.top] == expected.topk(4).indices.tolist()


def test_logits_that_are_not_finite_are_distinguished() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, 3] = math.nan
    found = sample(logits, [row(), row(), row(temperature=0.0)], [frozenset()] * 3)
    assert [bool(s.error) for s in found] == [False, True, False]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_biases_are_added_to_penalised_logits(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for logits in torch.randn(50, VOCAB, generator=generator):
        listed, tokens = (torch.randperm(VOCAB, generator=generator)[:8].tolist() for _ in range(2))
        biases = dict(zip(listed, (4 * torch.randn(8, generator=generator)).tolist(), strict=True))
        expected = logits.clone()
        expected[tokens] = torch.where(logits > 0, logits / penalty, logits * penalty)[tokens]
        for token, bias in biases.items():
            expected[token] += bias
        sequence = row(tokens=tuple(tokens), temperature=0.0, repetition_penalty=penalty, logit_bias=biases)
        assert one(logits, sequence) == int(expected.argmax())
