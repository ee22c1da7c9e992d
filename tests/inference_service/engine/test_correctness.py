"""Float32 greedy output equals transformers' `generate` with the soft prompt put before the input as embeddings, token
for token.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_service.engine.core.request import GenerationRequest, ScoreRequest, TokenLogprob
from inference_service.engine.engine import Engine
from inference_service.engine.run.row_runner import RowRunner
from shared.errors import PreconditionFailed
from shared.kernels import library, serving_linear
from tests.inference_service.engine.builders import (
    ARCHITECTURES,
    drain,
    greedy,
    reference,
    run_one,
    small_config,
    soft_prompt,
    tiny_base,
)


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


Mixed = tuple[tuple[int, ...], str | None, int, int, int]
"""Input, prompt, new tokens, priority, step of its arrival."""


class Workbench:
    """One model with its references remembered; the engine takes the model over, so a twin computes the references."""

    def __init__(self) -> None:
        self.twin, self.base = tiny_base("llama"), tiny_base("llama")
        self.prompts = {"a": soft_prompt(self.twin, 7, seed=1), "b": soft_prompt(self.twin, 40, seed=2), None: None}
        self._known: dict[tuple[tuple[int, ...], str | None], tuple[int, ...]] = {}

    def expected(self, ids: tuple[int, ...], prefix: str | None, count: int) -> tuple[int, ...]:
        key = (ids, prefix)
        if key not in self._known:
            self._known[key] = reference(self.twin, self.prompts[prefix], ids, 24)
        return self._known[key][:count]

    def engine(self, **config: int) -> Engine:
        engine = Engine.from_base_model(self.base, small_config(**config))
        for name, prompt in self.prompts.items():
            if prompt is not None and name is not None:
                engine.load_prefix(name, prompt)
        return engine

    def check_mix(self, engine: Engine, requests: list[Mixed]) -> None:
        """Submit each request at the step of its arrival; every answer is what `generate` gives, and the books balance
        at each step.
        """
        deltas: dict[str, list[int]] = {}
        for step in range(4000):
            for i, (ids, prefix, count, priority, arrival) in enumerate(requests):
                if arrival == step:
                    engine.submit(GenerationRequest(f"r{i}", ids, greedy(count), prefix, priority=priority))
            if step > 12 and not engine.has_work:
                break
            for output in engine.step():
                deltas.setdefault(output.request_id, []).extend(output.delta.token_ids)
            engine.check_integrity()
        assert {name: tuple(tokens) for name, tokens in deltas.items()} == {
            f"r{i}": self.expected(ids, prefix, count) for i, (ids, prefix, count, _, _) in enumerate(requests)
        }


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


INSTRUCTION = tuple(range(100, 120))
INPUTS = [random_input(random.Random(i), 1, 50) for i in range(5)] + [
    (*INSTRUCTION, *random_input(random.Random(i), 1, 9)) for i in range(4)
]
REQUESTS = st.tuples(
    st.sampled_from(INPUTS),
    st.sampled_from(["a", "b", None]),
    st.integers(1, 24),
    st.integers(0, 1),
    st.integers(0, 12),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    max_running=st.integers(1, 5),
    max_tokens_per_step=st.integers(1, 80),
    num_blocks=st.integers(4, 10),
)
def test_any_mix_gives_what_generate_gives(
    workbench: Workbench,
    requests: list[Mixed],
    max_running: int,
    max_tokens_per_step: int,
    num_blocks: int,
) -> None:
    """Arrivals, lengths, prompts, chunk sizes, row reuse and preemptions, all at random."""
    bytes_per_block = 4 * 2 * 2 * 16 * 4 * 32  # layers, keys and values, heads, width, float32, tokens
    engine = workbench.engine(
        max_running=max_running,
        max_tokens_per_step=max_tokens_per_step,
        kv_cache_bytes=num_blocks * bytes_per_block,
        prefix_kv_bytes=1,
    )
    workbench.check_mix(engine, requests)


def test_preemption_really_happens_and_changes_nothing(workbench: Workbench) -> None:
    engine = workbench.engine(kv_cache_bytes=5 * 4 * 2 * 2 * 16 * 4 * 32, max_running=4)
    ids = [random_input(random.Random(i), 20, 30) for i in range(4)]
    for i in range(4):
        engine.submit(GenerationRequest(f"r{i}", ids[i], greedy(24), "b"))
    found = {name: delta.token_ids for name, delta in drain(engine).items()}
    assert engine.stats().preemptions > 0
    assert found == {f"r{i}": workbench.expected(ids[i], "b", 24) for i in range(4)}


def test_a_shared_beginning_is_not_computed_again(workbench: Workbench) -> None:
    engine = workbench.engine()
    ids = [(*INSTRUCTION, 50 + i) for i in range(3)]
    for i in range(3):
        engine.submit(GenerationRequest(f"r{i}", ids[i], greedy(8), "a"))
        delta = drain(engine)[f"r{i}"]
        assert delta.token_ids == workbench.expected(ids[i], "a", 8)
        assert delta.usage is not None
        assert delta.usage.cached_tokens == (0 if i == 0 else len(INSTRUCTION))


def test_bfloat16_logits_stay_near_float32() -> None:
    """The stated tolerance: 5 % of the norm of the logits, on a random model with weights three times as large as
    usual.
    """
    exact, rounded = tiny_base("llama"), tiny_base("llama", dtype=torch.bfloat16)
    prompt = soft_prompt(exact, 20)
    ids = random_input(random.Random(0), 20, 20)
    embeds = torch.cat([prompt.embeddings, exact.model.get_input_embeddings()(torch.tensor(ids))])
    expected = torch.log_softmax(exact.model(inputs_embeds=embeds[None]).logits[0, -1], -1)
    engine = Engine.from_base_model(rounded, small_config())
    engine.load_prefix("a", prompt)
    delta = run_one(engine, ids, greedy(1, num_logprobs=20), "a")
    top = delta.logprobs[0].top
    own = torch.tensor([expected[token] for token, _ in top])
    assert float((torch.tensor([value for _, value in top]) - own).norm() / own.norm()) < 0.05


@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3"])
@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_with_and_without_compiled_kernels(kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mix of prompts, lengths, chunks, decodes and a score: each token's log-probability is near that of the same
    weights in float32.
    """
    if compiled and library.load() is None:
        pytest.skip("no compiled kernels on this machine")
    if compiled:
        monkeypatch.setattr(serving_linear, "KINDS", {"native": serving_linear.NativeLinear})
    else:
        monkeypatch.setattr(library, "load", lambda: None)
    base = tiny_base(kind, dtype=torch.bfloat16, hidden_size=128, head_dim=32)
    exact, rng, candidates = copy.deepcopy(base.model).float(), random.Random(0), ((5,), (6, 7, 8), (6, 9))
    prompts = {"a": soft_prompt(base, 7, seed=1), "b": soft_prompt(base, 12, seed=2), None: None}
    cases = {f"r{i}": (random_input(rng), ["a", "b", None][i % 3]) for i in range(6)}

    def expected(prefix: str | None, ids: tuple[int, ...], tokens: Sequence[int]) -> torch.Tensor:
        embeds = exact.get_input_embeddings()(torch.tensor((*ids, *tokens)))
        if (prompt := prompts[prefix]) is not None:
            embeds = torch.cat([prompt.cast(torch.bfloat16).float(), embeds])
        table = torch.log_softmax(exact(inputs_embeds=embeds[None]).logits[0, -len(tokens) - 1 : -1], -1)
        return table[range(len(tokens)), list(tokens)]

    engine = Engine.from_base_model(base, small_config(max_tokens_per_step=9))
    assert any(isinstance(module, serving_linear.NativeLinear) for module in base.model.modules()) is compiled
    for name in ("a", "b"):
        engine.load_prefix(name, prompts[name] or soft_prompt(base))
    for name, (ids, prefix) in cases.items():
        engine.submit(GenerationRequest(name, ids, greedy(num_logprobs=1), prefix))
    engine.submit(ScoreRequest("score", cases["r0"][0], candidates, "a"))
    generated: dict[str, list[TokenLogprob]] = {name: [] for name in cases}
    pairs: list[tuple[Sequence[float], torch.Tensor]] = []
    while engine.has_work:
        for output in engine.step():
            if output.score is not None:
                scores = zip(candidates, output.score.scores, strict=True)
                pairs += [(score.logprobs, expected("a", cases["r0"][0], candidate)) for candidate, score in scores]
            elif output.request_id in generated:
                generated[output.request_id] += output.delta.logprobs
    engine.check_integrity()
    for name, logprobs in generated.items():
        ids, prefix = cases[name]
        pairs.append(
            ([token.logprob for token in logprobs], expected(prefix, ids, [token.token_id for token in logprobs]))
        )
    assert [len(found) for found, _ in pairs] == [1, 3, 2, *[16] * 6]
    found, wanted = (
        torch.tensor([value for found, _ in pairs for value in found]),
        torch.cat([wanted for _, wanted in pairs]),
    )
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "falcon"])
@pytest.mark.parametrize("budget", [64, 9])
def test_scores_equal_a_plain_forward(kind: str, budget: int) -> None:
    base = tiny_base(kind)
    prompt = soft_prompt(base)
    ids = random_input(random.Random(3), 12, 12)
    candidates = ((5,), (6, 7, 8), (6, 7, 9), tuple(range(30, 42)))
    expected = []
    for candidate in candidates:
        embeds = torch.cat([prompt.embeddings, base.model.get_input_embeddings()(torch.tensor((*ids, *candidate)))])
        table = torch.log_softmax(base.model(inputs_embeds=embeds[None]).logits[0], -1)
        begin = prompt.num_virtual_tokens + len(ids) - 1
        expected.append([float(table[begin + i, token]) for i, token in enumerate(candidate)])
    engine = Engine.from_base_model(base, small_config(max_tokens_per_step=budget))
    engine.load_prefix("a", prompt)
    engine.submit(ScoreRequest("s", ids, candidates, "a"))
    engine.submit(GenerationRequest("beside", (9, 9, 9), greedy(20), "a"))
    results = []
    while engine.has_work:
        results += [output.score for output in engine.step() if output.score is not None]
        engine.check_integrity()
    assert len(results) == 1
    for score, wanted in zip(results[0].scores, expected, strict=True):
        assert score.logprobs == pytest.approx(wanted, abs=2e-4)
        assert score.logprob == pytest.approx(sum(wanted), abs=1e-3)
    assert sum(score.probability for score in results[0].scores) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama4_text", {"head_dim": 16, "intermediate_size_mlp": 64, "attention_chunk_size": 8}),
        ("phimoe", {"sliding_window": 20}),  # longer than the check's tokens, and in the mask alone
    ],
)
def test_masks_that_the_engine_does_not_know_are_left_to_the_models_own_attention(
    kind: str, config: dict[str, Any]
) -> None:
    base = tiny_base(kind, num_local_experts=2, **config)
    ids = tuple((13 * index) % 200 + 20 for index in range(30))
    expected = reference(base, None, ids, 12)
    engine = Engine.from_base_model(base, small_config())
    assert isinstance(engine.runner, RowRunner)
    assert run_one(engine, ids, greedy(12)).token_ids == expected


def test_a_model_that_the_engine_would_serve_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_service.engine.run.attention.QuerySegment.positions", lambda self: [0] * self.count)
    monkeypatch.setattr(
        "inference_service.engine.run.model_runner.fed_positions", lambda chunk: [0] * chunk.num_positions
    )
    with pytest.raises(PreconditionFailed, match="differ"):
        Engine.from_base_model(tiny_base("llama"), small_config())
