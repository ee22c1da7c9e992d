"""Times the sampler for a step's rows, with the compiled kernel and in torch.

The logits are those of a step: bfloat16, either with a few likely tokens or nearly flat, where a nucleus has thousands.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch

from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.run import sampler
from shared.kernels import sampling as kernel
from shared.values.sampling import SamplingParams

NUM_TOKENS = 300
"""Tokens that each sequence has, for penalties."""
SIZES = ((16, 49_152), (32, 49_152), (16, 262_144))
"""Rows and vocabulary."""
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 0.8, top_k 50": {"temperature": 0.8, "top_k": 50},
    "temperature 0.8, repetition penalty 1.1": {"temperature": 0.8, "repetition_penalty": 1.1},
    "greedy, frequency penalty 0.5": {"temperature": 0.0, "frequency_penalty": 0.5},
    "temperature 0.8, top_p 0.95, repetition penalty 1.1": {
        "temperature": 0.8,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
    },
    "greedy, 5 log-probabilities": {"temperature": 0.0, "num_logprobs": 5},
    "temperature 0.8, 100 biases": {"temperature": 0.8, "logit_bias": {7 * i: -1.0 for i in range(100)}},
}


def measure(rounds: int) -> dict[str, Any]:
    """Median milliseconds of a call for each size, kind of logits and set of parameters."""
    found: dict[str, Any] = {}
    for rows, vocab in SIZES:
        for kind in ("peaked", "flat"):
            logits = _logits(kind, rows, vocab)
            found[f"{rows} rows, {vocab} tokens, {kind}"] = {
                name: _compare(logits, values, rounds) for name, values in PARAMETERS.items()
            }
    return found


def _logits(kind: str, rows: int, vocab: int) -> torch.Tensor:
    noise = torch.randn(rows, vocab)
    if kind == "flat":
        return (2 * noise).bfloat16()
    ranks = torch.stack([torch.randperm(vocab) for _ in range(rows)]) + 1
    return (-2 * ranks.float().log() + 0.3 * noise).bfloat16()


def _compare(logits: torch.Tensor, parameters: Mapping[str, Any], rounds: int) -> dict[str, float]:
    sequences = [_sequence(i, logits.shape[1], parameters) for i in range(len(logits))]
    ends = [frozenset[int]()] * len(sequences)

    def step() -> None:
        sampler.sample(logits, sequences, ends)

    def in_torch() -> None:
        with patch.object(kernel, "takes", lambda rows: False):
            step()

    return {"kernel": _milliseconds(step, rounds), "torch": _milliseconds(in_torch, max(1, rounds // 3))}


def _sequence(index: int, vocab: int, parameters: Mapping[str, Any]) -> RunningRequest:
    tokens = [(index + place * 7919) % vocab for place in range(NUM_TOKENS)]
    params = SamplingParams(max_new_tokens=1000, **parameters)
    return RunningRequest(str(index), tokens, NUM_TOKENS // 2, params, index)


def _milliseconds(work: Callable[[], None], rounds: int) -> float:
    work()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1e3
