"""Two cases of a Llama of 1B shape with random weights: eight jobs together compared with PEFT, and one large job
compared with the device's rate of matrix products.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.train.contestants import Peft, Shared
from benchmarks.train.workload import Case, make_rows

REPEATS = 20
"""Measured repeats of one operation, for its rate."""
EIGHT_JOBS = Case("8 jobs of batch 4, 50 virtual tokens, 1B shape", 8, 4, 50, 6.0)
ONE_LARGE = Case("1 job, batch 256, 100 virtual tokens, 1B shape", 1, 256, 100, 0.0)
WANTED_SHARE_OF_RATE = 0.4
SHAPES: dict[str, dict[str, int]] = {
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def measure(shape: str, device: str, rounds: int) -> dict[str, Any]:
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, use_cache=False)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = (
            AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
            .eval()
            .requires_grad_(False)
        )
    one_large = ONE_LARGE if shape == "1b" else replace(ONE_LARGE, batch_size=16)
    contestants = {
        "shared": (Shared(model, EIGHT_JOBS), EIGHT_JOBS),
        "one_large": (Shared(model, one_large), one_large),
        "peft": (Peft(model, EIGHT_JOBS), EIGHT_JOBS),
    }
    seconds = {
        name: _median_seconds(contestant, case, config.vocab_size, rounds, device)
        for name, (contestant, case) in contestants.items()
    }
    rate = _matrix_rate(device, 8192 if shape == "1b" else 256)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "shape": shape,
        "seconds": seconds,
        "ratio_of_eight_jobs": seconds["peft"] / seconds["shared"],
        "wanted_ratio": EIGHT_JOBS.wanted_ratio,
        "matrix_rate_flops": rate,
        "share_of_matrix_rate": _necessary_operations(config, one_large) / seconds["one_large"] / rate,
        "wanted_share": WANTED_SHARE_OF_RATE,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _median_seconds(contestant: Any, case: Case, vocab_size: int, rounds: int, device: str) -> float:
    found = []
    for step in range(rounds + 2):  # two warm-up rounds
        rows = make_rows(case, vocab_size, seed=step)
        _wait(device)
        started = time.perf_counter()
        contestant.step(rows)
        _wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def _matrix_rate(device: str, size: int) -> float:
    """Measured operations per second of a large matrix product on this device."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    _wait(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        left @ right
    _wait(device)
    return float(2 * size**3 * REPEATS / (time.perf_counter() - started))


def _necessary_operations(config: LlamaConfig, case: Case) -> float:
    """Operations of one step: linear layers forward and backward (inputs only) once per position, and the head at two
    targets per row.
    """
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * head * config.num_key_value_heads
    layers = config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)
    rows = make_rows(case, config.vocab_size, seed=2)
    positions = case.num_virtual_tokens + sum(len(ids) - 1 for job in rows for ids in job)
    return 4.0 * (positions * layers + 2 * case.batch_size * hidden * config.vocab_size)
