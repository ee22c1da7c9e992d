"""Steps that one call of a kernel computes: the same numbers as the model's own modules, or not used."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from inference_service.engine import self_check
from inference_service.engine.core.request import GenerationRequest, TokenLogprob
from inference_service.engine.engine import Engine
from inference_service.engine.run import model_runner
from inference_service.engine.run.model_runner import ModelRunner
from shared.kernels import library
from shared.kernels.formats import Weights
from shared.kernels.fused_decoder import FusedDecoder
from tests.inference_service.engine.builders import greedy, small_config, soft_prompt, tiny_base

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")
LATE_SCALE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.5,
}
"""Queries are scaled from position 64 on."""
SHAPE: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 160, "vocab_size": 272}


def built(kind: str, weights: Weights = "stored", **overrides: Any) -> tuple[Engine, ModelRunner]:
    base = tiny_base(kind, dtype=torch.bfloat16, **(SHAPE | overrides))
    for name, parameter in base.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    engine = Engine.from_base_model(
        base, small_config(max_tokens_per_step=40, linear_kernel="native", weights=weights, text_reuse="off")
    )
    assert isinstance(engine.runner, ModelRunner)
    return engine, engine.runner


def answers(engine: Engine) -> dict[str, list[TokenLogprob]]:
    """Prompts, inputs in chunks beside decodes, and two requests that begin later."""
    rng = random.Random(0)
    for name, length in (("a", 7), ("b", 45)):
        engine.load_prefix(name, soft_prompt(engine.base, length, seed=length))
    found: dict[str, list[TokenLogprob]] = {}

    def submit(names: range) -> None:
        for number in names:
            ids = tuple(rng.randrange(5, 261) for _ in range(rng.randint(1, 30)))
            engine.submit(GenerationRequest(f"r{number}", ids, greedy(num_logprobs=3), [None, "a", "b"][number % 3]))

    submit(range(5))
    for _ in range(3):
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.delta.logprobs)
    submit(range(5, 7))
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.delta.logprobs)
    engine.check_integrity()
    return found


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("llama", "stored"),
        ("llama", "q4_1"),
        ("llama", "q8_0"),
        ("qwen2", "stored"),  # biases
        ("qwen3", "q4_0"),  # norms of queries and keys
        ("mistral", "stored"),  # a window
    ],
)
def test_a_fused_step_computes_the_same_bits(kind: str, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_check.TOLERANCE, torch.bfloat16, 0.5)  # four bits change a random model by a quarter
    fused, runner = built(kind, weights)
    assert runner.fused is not None
    steps, run = [0], runner.fused.__call__

    def counted(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps[0] += 1
        return run(*args)

    monkeypatch.setattr(runner, "fused", counted)
    found = answers(fused)
    assert steps[0] > 16
    separate, runner = built(kind, weights)
    runner.fused = None
    assert found == answers(separate)
    assert [len(tokens) for tokens in found.values()] == [16] * 7


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("granite", {"residual_multiplier": 0.5}),  # looks like Llama
        ("ministral3", {"rope_parameters": LATE_SCALE}),  # differs from Llama at later positions only
        ("gemma2", {}),
        ("gpt2", {"n_embd": 64}),
        ("llama", {"vocab_size": 261}),  # sizes that the kernel doesn't take
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48}),
    ],
)
def test_another_structure_is_not_fused(kind: str, overrides: dict[str, Any]) -> None:
    _, runner = built(kind, **overrides)
    assert runner.fused is None


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FusedDecoder):
        def __call__(self, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, hidden = super().__call__(*args)
            return logits * 1.1, hidden

    monkeypatch.setattr(model_runner, "FusedDecoder", Wrong)
    assert built("llama")[1].fused is None


@pytest.mark.parametrize(("row", "position", "wanted"), [(99, 0, 0), (-1, 0, 0), (0, 512, 0), (0, 0, 1)])
def test_memory_is_not_misread(row: int, position: int, wanted: int) -> None:
    engine, runner = built("llama")
    assert runner.fused is not None
    before = runner.snapshot(0, 1)
    with pytest.raises(ValueError, match=r"outside of the cache|are not among 1"):
        runner.fused(torch.ones(1, 128).bfloat16(), *(torch.tensor([number]) for number in (row, position, wanted)))
    assert all(old.equal(new) for old, new in zip(before.keys, runner.snapshot(0, 1).keys, strict=True))
    engine.close()
