"""The paged engine on a CPU gives what `generate` gives: with gathered blocks, a stand-in for the kernel, and padded
decode batches.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_service.engine import build
from inference_service.engine.core.request import FinishReason, GenerationRequest, ScoreRequest
from inference_service.engine.engine import Engine
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.run.decode_graphs import Decode, DecodeGraphs, ladder
from inference_service.engine.run.paged_runner import PagedRunner
from inference_service.engine.run.varlen_kernel import (
    VarlenKernel,
)
from tests.host_waits import HostWaits
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
from tests.inference_service.engine.run.test_varlen_kernel import BLOCK, KERNEL
from tests.inference_service.engine.test_correctness import INPUTS, REQUESTS, Mixed, Workbench, random_input

PAGED = [kind for kind in ARCHITECTURES if kind not in ("falcon", "bloom")]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BLOCK_TOKENS", BLOCK)


class EagerGraph:
    """Runs `decode` on the same fixed inputs without capturing it."""

    def __init__(self, decode: Decode, inputs: torch.Tensor) -> None:
        self._decode, self.inputs = decode, inputs

    def replay(self) -> torch.Tensor:
        return self._decode(self.inputs)


def with_kernel(monkeypatch: pytest.MonkeyPatch, kernel: VarlenKernel = KERNEL) -> None:
    """Where a layer's shape allows a kernel, this one is used, and decodes run as padded batches of a ladder."""
    real = build.kernel_for

    def found(base: Any, shapes: Any, config: Any) -> VarlenKernel | None:
        calls: list[None] = []
        with monkeypatch.context() as patched:
            patched.setattr(build, "find_kernel", lambda *_: calls.append(None))
            real(base, shapes, config)
        return kernel if calls else None

    monkeypatch.setattr(build, "kernel_for", found)
    monkeypatch.setattr(
        build,
        "capture",
        lambda decode, size, pad, device: DecodeGraphs(lambda inputs: EagerGraph(decode, inputs), size, pad, device),
    )


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("kind", PAGED)
def test_paged_greedy_equals_generate_alone_and_together(
    kind: str, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        with_kernel(monkeypatch)
    base = tiny_base(kind)
    rng = random.Random(kind)
    prompts = {"a": soft_prompt(base, 7, seed=1), "b": soft_prompt(base, 20, seed=2), None: None}
    cases = [(f"r{i}", random_input(rng), ["a", "b", None][i % 3]) for i in range(6)]
    expected = {name: reference(base, prompts[prefix], ids, 16) for name, ids, prefix in cases}
    engine = Engine.from_base_model(base, small_config(paged=True, max_tokens_per_step=23))
    assert isinstance(engine.runner, PagedRunner)
    for name in ("a", "b"):
        prompt = prompts[name]
        assert prompt is not None
        engine.load_prefix(name, prompt)
    for name, ids, prefix in cases:
        engine.submit(GenerationRequest(name, ids, greedy(), prefix))
    assert {name: delta.token_ids for name, delta in drain(engine).items()} == expected
    for name, ids, prefix in cases[:3]:
        assert run_one(engine, ids, greedy(), prefix).token_ids == expected[name]


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("budget", [64, 9])
def test_paged_scores_equal_those_of_rows(
    kind: str, budget: int, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for paged in (False, True):
        if paged and kernel:
            with_kernel(monkeypatch)
        base = tiny_base(kind)
        engine = Engine.from_base_model(base, small_config(paged=paged, max_tokens_per_step=budget))
        engine.load_prefix("a", soft_prompt(base))
        ids = random_input(random.Random(3), 12, 12)
        engine.submit(ScoreRequest("s", ids, ((5,), (6, 7, 8), (6, 7, 9), tuple(range(30, 42))), "a"))
        engine.submit(GenerationRequest("beside", (9, 9, 9, *range(20, 40)), greedy(20), "a"))
        while engine.has_work:
            results += [output.score for output in engine.step() if output.score is not None]
            engine.check_integrity()
    rows, blocks = ([value for score in result.scores for value in score.logprobs] for result in results)
    assert blocks == pytest.approx(rows, abs=2e-4)


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


@pytest.mark.parametrize("kernel", [False, True])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    max_running=st.integers(1, 5),
    max_tokens_per_step=st.integers(1, 80),
    num_blocks=st.integers(16, 30),
)
def test_paged_any_mix_gives_what_generate_gives(
    workbench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    kernel: bool,
    requests: list[Mixed],
    max_running: int,
    max_tokens_per_step: int,
    num_blocks: int,
) -> None:
    """Arrivals, lengths, prompts, chunk sizes, shared blocks and preemptions, all at random."""
    bytes_per_block = 4 * 2 * 2 * 16 * 4 * BLOCK  # layers, keys and values, heads, width, float32, tokens
    with monkeypatch.context() as patched:
        if kernel:
            with_kernel(patched)
        engine = workbench.engine(
            paged=True,
            max_running=max_running,
            max_tokens_per_step=max_tokens_per_step,
            kv_cache_bytes=num_blocks * bytes_per_block,
            prefix_kv_bytes=1,
        )
    workbench.check_mix(engine, requests)


def test_paged_preemption_really_happens_and_changes_nothing(workbench: Workbench) -> None:
    engine = workbench.engine(paged=True, kv_cache_bytes=20 * 4 * 2 * 2 * 16 * 4 * BLOCK, max_running=4)
    ids = [random_input(random.Random(i), 20, 30) for i in range(4)]
    for i in range(4):
        engine.submit(GenerationRequest(f"r{i}", ids[i], greedy(24)))
    found = {name: delta.token_ids for name, delta in drain(engine).items()}
    assert engine.stats().preemptions > 0
    assert found == {f"r{i}": workbench.expected(ids[i], None, 24) for i in range(4)}


def test_requests_of_one_prompt_share_its_blocks(workbench: Workbench) -> None:
    engine = workbench.engine(paged=True, max_running=4)
    for i in range(4):
        engine.submit(GenerationRequest(f"r{i}", INPUTS[i], greedy(24), "b"))
    engine.step()
    pool = engine.scheduler.pool
    assert isinstance(pool, BlockPool)
    tables = [row.blocks[: 40 // BLOCK] for row in pool.rows if row.holder is not None]
    assert len(tables) > 1
    assert all(table == tables[0] for table in tables)
    drain(engine)


def test_numbers_that_are_not_finite_stay_with_their_sequence(workbench: Workbench) -> None:
    engine = workbench.engine(paged=True, max_running=2, kv_cache_bytes=18 * 4 * 2 * 2 * 16 * 4 * BLOCK)
    table = engine.base.embedding_table
    keep = table[77].clone()
    table[77] = float("nan")
    engine.submit(GenerationRequest("good", INPUTS[0], greedy(12), "a"))
    engine.submit(GenerationRequest("bad", (77, 78, *range(20, 60)), greedy(12)))
    found = drain(engine)
    table[77] = keep
    assert found["bad"].finish_reason is FinishReason.ERROR
    assert found["good"].token_ids == workbench.expected(INPUTS[0], "a", 12)
    for i in range(6):
        assert run_one(engine, INPUTS[i], greedy(12), "a").token_ids == workbench.expected(INPUTS[i], "a", 12)


def test_a_step_that_raises_leaves_no_wrong_blocks(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = workbench.engine(paged=True, max_running=5)
    run = engine.runner.run
    tries = 0

    def flaky(plan: Any, prefixes: Any) -> torch.Tensor:
        nonlocal tries
        tries += 1
        logits = run(plan, prefixes)
        if tries % 3 == 0 and len(plan.chunks) > 1:
            raise RuntimeError("after everything was written")
        return logits

    monkeypatch.setattr(engine.runner, "run", flaky)
    for i, ids in enumerate(INPUTS):
        engine.submit(GenerationRequest(f"r{i}", ids, greedy(20), ["a", "b", None][i % 3]))
    found = {name: delta.token_ids for name, delta in drain(engine).items()}
    assert found == {f"r{i}": workbench.expected(ids, ["a", "b", None][i % 3], 20) for i, ids in enumerate(INPUTS)}


def test_a_ladder_ends_at_the_largest_batch_and_wastes_little() -> None:
    assert ladder(1) == [1]
    assert ladder(4) == [1, 2, 4]
    assert ladder(32) == [1, 2, 4, 8, 16, 24, 32]
    assert ladder(20) == [1, 2, 4, 8, 16, 20]


def test_a_decode_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it can be captured as a graph."""
    with_kernel(monkeypatch, VarlenKernel(lambda query, *_, **__: query, BLOCK, with_offsets=True))
    monkeypatch.setattr("inference_service.engine.self_check.check_runner", lambda *_: None)
    engine = Engine.from_base_model(tiny_base(), small_config(paged=True))
    runner = engine.runner
    assert isinstance(runner, PagedRunner)
    inputs = torch.tensor([[5, 6, 7], [0, 1, runner.cache.null_row], [9, 3, 0]])
    with HostWaits() as waits:
        runner.decode(inputs)
    assert waits.found == []
