"""Telling a tie by rounding from a stream that was disturbed: by hand, and with a real engine in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from inference_service.engine.core.request import Delta, GenerationRequest
from inference_service.engine.engine import Engine
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.generation import GenerationDelta, TokenAlternative, TokenLogprob
from shared.values.sampling import SamplingParams
from softprompt.demo.swap import TIE_NATS, compare
from tests.inference_service.engine.builders import drain, greedy, run_one, small_config, soft_prompt, tiny_base

PENALTY = 0.5
NUM_TOKENS = 16
INPUTS = [tuple((seed * 31 + 7 * place) % 200 + 20 for place in range(9 + seed)) for seed in range(3)]


def expected() -> GenerationDelta:
    """Tokens 10, 11, 12; at the second place token 21 is as probable as 11 within rounding, token 31 is not."""
    alternatives = (
        TokenAlternative(11, -0.8),
        TokenAlternative(21, -0.8 - TIE_NATS / 2),
        TokenAlternative(10, -0.8 + PENALTY),
        TokenAlternative(31, -0.8 - 3 * TIE_NATS),
    )
    places = (TokenLogprob(10, -0.1, ()), TokenLogprob(11, -0.8, alternatives), TokenLogprob(12, -0.1, ()))
    return GenerationDelta("", (10, 11, 12), places)


@pytest.mark.parametrize(
    ("tokens", "undisturbed", "account"),
    [
        ([10, 11, 12], True, "the same tokens as without a swap ("),
        ([10, 21, 99], True, "up to token 1, a tie by rounding (0.0045 nats)"),
        ([10, 10, 12], True, "up to token 1, a tie by rounding (0.0000 nats)"),
        ([10, 31, 12], False, "from token 1 on (0.03 nats less likely)"),
        ([10, 77, 12], False, "from token 1 on (no likely alternative)"),
        ([10, 11], False, "(2 of 3)"),
    ],
)
def test_departures(tokens: list[int], undisturbed: bool, account: str) -> None:
    comparison = compare(expected(), tokens, PENALTY)
    assert comparison.undisturbed is undisturbed
    assert account in comparison.account


def test_a_penalty_counts() -> None:
    """Token 10 was written once: only with the penalty is it as likely as token 11."""
    assert not compare(expected(), [10, 10, 12]).undisturbed
    assert not compare(expected(), [10, 10, 12], PENALTY / 2).undisturbed


@dataclass(frozen=True)
class Place:
    """An engine with versions 1 and 2 (trained on from 1), and the answers of 1 to each input alone."""

    engine: Engine
    alone: list[Delta]

    def answers(self, version: str | None) -> list[tuple[int, ...]]:
        return [run_one(self.engine, ids, sampling(), version).token_ids for ids in INPUTS]

    def undisturbed(self, row: int, tokens: Sequence[int]) -> bool:
        places = tuple(
            TokenLogprob(one.token_id, one.logprob, tuple(TokenAlternative(*other) for other in one.top))
            for one in self.alone[row].logprobs
        )
        return compare(GenerationDelta("", self.alone[row].token_ids, places), tokens, PENALTY).undisturbed


def sampling() -> SamplingParams:
    return greedy(NUM_TOKENS, frequency_penalty=PENALTY, num_logprobs=20)


@pytest.fixture(scope="module")
def place() -> Place:
    base = tiny_base()
    base.model.get_output_embeddings().weight.mul_(5)  # answers of trained models are not nearly uniform
    first = soft_prompt(base)
    noise = torch.randn(first.embeddings.shape, generator=torch.Generator().manual_seed(3))
    second = SoftPrompt(first.embeddings + first.embeddings.std() * noise)
    engine = Engine.from_base_model(base, small_config(max_running=8))
    for name, prompt in (("1", first), ("2", second)):
        engine.load_prefix(name, prompt)
    return Place(engine, [run_one(engine, ids, sampling(), "1") for ids in INPUTS])


def test_streams_beside_those_of_another_version_are_undisturbed(place: Place) -> None:
    for name, ids in [(f"{version}{row}", ids) for version in "21" for row, ids in enumerate(INPUTS)]:
        place.engine.submit(GenerationRequest(name, ids, sampling(), name[0]))
    streams = drain(place.engine)
    for row in range(len(INPUTS)):
        assert place.undisturbed(row, streams[f"1{row}"].token_ids)


@pytest.mark.parametrize("version", ["2", None])
def test_answers_of_another_version_and_of_the_bare_model_are_found(place: Place, version: str | None) -> None:
    for row, tokens in enumerate(place.answers(version)):
        assert not place.undisturbed(row, tokens)


def test_one_token_of_another_version_is_found_wherever_it_stands(place: Place) -> None:
    """The other version's choice after the same tokens, and the second choice of the same version. Only tokens that are
    as likely as the right one within rounding go unnoticed.
    """
    unnoticed = list[bool]()
    for row, ids in enumerate(INPUTS):
        tokens = place.alone[row].token_ids
        for index, wanted in enumerate(tokens):
            likely = [token for token, _ in place.alone[row].logprobs[index].top]
            other = run_one(place.engine, ids + tokens[:index], greedy(1), "2").token_ids[0]
            for token in {other, next(one for one in likely if one != wanted)} - {wanted}:
                mixed = [*tokens[:index], token, *tokens[index + 1 :]]
                unnoticed.append(place.undisturbed(row, mixed))
    assert len(unnoticed) > len(INPUTS) * NUM_TOKENS
    assert sum(unnoticed) <= 0.03 * len(unnoticed)
