"""Alternating measurements in the shapes of SmolLM2-135M. A ratio is the median over pairs of adjacent measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_WIDTH = 30, 576, 1536, 9, 3, 64


def in_turn(contestants: Mapping[str, Callable[[], object]], rounds: int, ours: str, peer: str) -> dict[str, Any]:
    """Medians, and the ratio of `peer`'s time to `ours`. The first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, work in contestants.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(samples[1:]) for name, samples in seconds.items()}
    ratio = statistics.median(one / other for one, other in list(zip(seconds[peer], seconds[ours], strict=True))[1:])
    return {"milliseconds": {name: value * 1e3 for name, value in medians.items()}, f"{peer} over {ours}": ratio}
