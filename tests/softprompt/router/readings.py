"""Values of a router's metrics, and waiting for them."""

from __future__ import annotations

from tests.metric_samples import sample_of
from tests.softprompt.router.running import Router
from tests.waiting import until


async def metric(router: Router, name: str, **labels: str) -> float:
    """A sample of the router's metrics."""
    return await sample_of(router.metrics_port, name, **labels)


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
