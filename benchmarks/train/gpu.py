"""The GPU's two cases: a Llama of 1B shape with random bfloat16 weights, so that no download is needed."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.train.contestants import Peft, Shared
from benchmarks.train.workload import Case, make_rows

EIGHT_JOBS = Case("8 jobs of batch 4, 50 virtual tokens, 1B shape", 8, 4, 50, 6.0)
ONE_LARGE = Case("1 job, batch 256, 100 virtual tokens, 1B shape", 1, 256, 100, 0.0)
WANTED_SHARE_OF_RATE = 0.4


def measure_gpu_shape(rounds: int) -> dict[str, Any]:
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        use_cache=False,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval().requires_grad_(False)
    seconds = {
        "shared": _median_seconds(Shared(model, EIGHT_JOBS), EIGHT_JOBS, config.vocab_size, rounds),
        "one_large": _median_seconds(Shared(model, ONE_LARGE), ONE_LARGE, config.vocab_size, rounds),
        "peft": _median_seconds(Peft(model, EIGHT_JOBS), EIGHT_JOBS, config.vocab_size, rounds),
    }
    rate = _matrix_rate()
    share = _necessary_operations(config, ONE_LARGE) / seconds["one_large"] / rate
    return {
        "seconds": seconds,
        "ratio_of_eight_jobs": seconds["peft"] / seconds["shared"],
        "wanted_ratio": EIGHT_JOBS.wanted_ratio,
        "matrix_rate_flops": rate,
        "share_of_matrix_rate": share,
        "wanted_share": WANTED_SHARE_OF_RATE,
    }


def _median_seconds(contestant: Any, case: Case, vocab_size: int, rounds: int) -> float:
    found = []
    for step in range(rounds + 2):
        rows = make_rows(case, vocab_size, seed=step)
        torch.cuda.synchronize()
        started = time.perf_counter()
        contestant.step(rows)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def _matrix_rate(size: int = 8192, repeats: int = 20) -> float:
    """Operations a second of a large bfloat16 matrix product: what this chip can be measured to do."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return float(2 * size**3 * repeats / (time.perf_counter() - started))


def _necessary_operations(config: LlamaConfig, case: Case) -> float:
    """Of one step: linear layers forward and backward (inputs only) for each position once, and the head at two targets a row."""
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * head * config.num_key_value_heads
    layers = config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)
    rows = make_rows(case, config.vocab_size, seed=2)
    positions = case.num_virtual_tokens + sum(len(ids) - 1 for job in rows for ids in job)
    return 4.0 * (positions * layers + 2 * case.batch_size * hidden * config.vocab_size)
