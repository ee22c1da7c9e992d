"""Samples of a process's metrics port."""

from __future__ import annotations

import asyncio
import urllib.request

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def scraped(port: int) -> list[Sample]:
    """All samples on `127.0.0.1:port`. Blocks."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families: list[Metric] = list(text_string_to_metric_families(response.read().decode()))
    return [sample for family in families for sample in family.samples]


async def sample_of(port: int, name: str, **labels: str) -> float:
    """The value of the first sample with this name and these labels; 0 if there is none."""
    samples = await asyncio.to_thread(scraped, port)
    values = (sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())
    return float(next(values, 0.0))
