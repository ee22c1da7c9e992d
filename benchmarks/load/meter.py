"""Samples the resources of a process: memory, file descriptors, threads, and the usage in its own metrics."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families

_GAUGES = {
    "softprompt_inference_requests_running": "running",
    "softprompt_inference_requests_waiting": "waiting",
    "softprompt_inference_kv_cache_usage_ratio": "kv_usage",
    "softprompt_inference_prefix_kv_bytes": "prefix_kv_bytes",
    "softprompt_inference_versions_loaded": "versions_loaded",
}
MAX_MEMORY_GROWTH_SHARE = 0.02
"""Allowed growth of resident memory after the warm-up, for heap fragmentation."""


@dataclass(frozen=True)
class Sample:
    """`seconds` counts from the meter's creation; bytes are resident memory."""

    seconds: float
    memory_bytes: int
    descriptors: int
    threads: int
    gauges: dict[str, float]


class Meter:
    def __init__(self, pid: int, metrics_port: int) -> None:
        self._process, self._url = psutil.Process(pid), f"http://127.0.0.1:{metrics_port}/metrics"
        self._begun = time.monotonic()
        self.samples: list[Sample] = []

    async def take(self) -> Sample:
        gauges = await asyncio.to_thread(self._scrape)
        memory, descriptors, threads = (
            self._process.memory_info().rss,
            self._process.num_fds(),
            self._process.num_threads(),
        )
        sample = Sample(time.monotonic() - self._begun, memory, descriptors, threads, gauges)
        self.samples.append(sample)
        return sample

    async def run(self, interval_seconds: float) -> None:
        """Samples until cancelled."""
        while True:
            await self.take()
            await asyncio.sleep(interval_seconds)

    async def until_idle(self, timeout_seconds: float) -> Sample:
        """The first sample without a running request. Raises TimeoutError if there is none in time."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                sample = await self.take()
                if not (sample.gauges.get("running") or sample.gauges.get("waiting")):
                    return sample
                await asyncio.sleep(0.2)

    def _scrape(self) -> dict[str, float]:
        with urllib.request.urlopen(self._url, timeout=10) as response:
            text = response.read().decode()
        return {
            _GAUGES[sample.name]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in _GAUGES
        }


def memory_growth_bytes(samples: list[Sample]) -> float:
    """Mean of the last fifth minus mean of the third fifth; caches fill up during the first two fifths."""
    fifth = max(1, len(samples) // 5)

    def mean(part: list[Sample]) -> float:
        return sum(sample.memory_bytes for sample in part) / len(part)

    return mean(samples[-fifth:]) - mean(samples[2 * fifth : 3 * fifth] or samples[:1])


def still_held(warm: Sample, last: Sample, growth_bytes: float) -> list[str]:
    """Describes growth of memory, descriptors and threads."""
    failures = []
    if growth_bytes > MAX_MEMORY_GROWTH_SHARE * warm.memory_bytes:
        failures.append(f"memory grew by {growth_bytes / 2**20:.0f} MiB")
    if last.descriptors > warm.descriptors + 2:
        failures.append(f"{last.descriptors} file descriptors are open, {warm.descriptors} were")
    if last.threads > warm.threads + 2:
        failures.append(f"{last.threads} threads run, {warm.threads} did")
    return failures
