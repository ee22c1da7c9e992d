"""What a router says of itself in its metrics."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.softprompt.router.running import Router
from tests.waiting import until


async def metric(router: Router, name: str, **labels: str) -> float:
    def scrape() -> str:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{router.metrics_port}/metrics") as response:
            return str(response.read().decode())

    for family in text_string_to_metric_families(await asyncio.to_thread(scrape)):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


async def serves(router: Router, base_model: str) -> None:
    """Wait until the router is connected to one replica of the base model."""

    async def look() -> bool:
        return await metric(router, "softprompt_router_replicas", base_model=base_model, state="serving") == 1

    await until(look)


async def reads_records(router: Router) -> None:
    """Wait until the router has read the records of this moment: the read after the one that may run now has ended."""
    ends = set[float]()

    async def look() -> bool:
        ends.add(await metric(router, "softprompt_router_store_last_contact_timestamp_seconds"))
        return len(ends) > 2

    await until(look)
