"""Float32 greedy output equals transformers' `generate` with the soft prompt put before the input as embeddings, token for token."""

from __future__ import annotations

import random

import pytest

from inference_service.engine.engine import Engine
from inference_service.engine.request import GenerationRequest
from tests.inference_service.engine.builders import ARCHITECTURES, drain, greedy, reference, small_config, soft_prompt, tiny_base


def random_input(rng: random.Random, low: int = 1, high: int = 30) -> tuple[int, ...]:
    return tuple(rng.randrange(5, 261) for _ in range(rng.randint(low, high)))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_equals_generate_alone_and_together(kind: str) -> None:
    base = tiny_base(kind)
    rng = random.Random(kind)
    prompts = {"a": soft_prompt(base, 7, seed=1), "b": soft_prompt(base, 12, seed=2), None: None}
    cases = [(f"r{i}", random_input(rng), ["a", "b", None][i % 3]) for i in range(6)]
    expected = {name: reference(base, prompts[prefix], ids, 16) for name, ids, prefix in cases}
    assert len(set(expected.values())) > 3

    engine = Engine.from_base_model(base, small_config(max_tokens_per_step=23))
    for name in ("a", "b"):
        prompt = prompts[name]
        assert prompt is not None
        engine.load_prefix(name, prompt)
    alone = {}
    for name, ids, prefix in cases[:3]:
        engine.submit(GenerationRequest(name, ids, greedy(), prefix))
        alone[name] = drain(engine)[name].token_ids
    assert alone == {name: expected[name] for name in alone}

    for name, ids, prefix in cases:
        engine.submit(GenerationRequest(name, ids, greedy(), prefix))
    together = {name: delta.token_ids for name, delta in drain(engine).items()}
    assert together == expected
