"""The services of a test under a fault, and the alerts that fire on what they export."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.inference_service.replica import Replica, running_replica
from tests.k8s import known_metrics
from tests.k8s.exposition import MINUTES_BEFORE, ONLY_UP, Scrape, scrape, series_over_time
from tests.k8s.prometheus import program, promtool
from tests.k8s.test_rules import RULES, without_annotations
from tests.softprompt.gateway.running import RunningGateway, running_gateway
from tests.trainer_service.conftest import PATIENT, NoWorkers, RunningTrainer, running_trainer
from tests.waiting import until
from trainer_service.cluster.interface import WorkerPool
from trainer_service.config import TrainerSettings

EXPRESSIONS = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
USED = frozenset(name for expression in EXPRESSIONS for name in known_metrics.metric_names(expression))
RULES_TEXT = json.dumps(without_annotations(RULES))
"""JSON is YAML, and takes a tenth of the time to write."""
LAST_CONTACT = "store_last_contact_timestamp_seconds"

SEEN: set[str] = set()
"""Alerts that were seen firing in this process."""


def firing(folder: Path, before: tuple[Scrape, Scrape], during: tuple[Scrape, Scrape], minutes: int) -> set[str]:
    """The alerts that fire after some minutes of the fault."""
    (folder / "rules.yaml").write_text(RULES_TEXT)
    at = f"{MINUTES_BEFORE + minutes - 1}m"
    query = 'group by (alertname) (ALERTS{alertstate="firing"})'
    asked = [{"expr": query, "eval_time": at, "exp_samples": [{"labels": '{alertname="expected"}', "value": 0}]}]
    series = series_over_time(before, during, minutes, lambda name: name in USED)
    case = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    # Hours are evaluated less often because each round costs promtool much time. An alert is found for five minutes.
    evaluation = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{min(4, 1 + minutes // 50)}m"}
    (folder / "tests.yaml").write_text(json.dumps({**evaluation, "tests": [case]}))
    said = "query timed out"
    while "query timed out" in said:  # promtool's own limit, which a busy machine exceeds
        done = promtool("test", "rules", folder / "tests.yaml")
        said = done.stdout + done.stderr
    assert "got:" in said, said
    return set(re.findall(r'alertname=\\?"(\w+)\\?"', said.split("got:")[1]))


@dataclass
class Fault:
    """The services under a fault. `targets` are their metrics ports by job."""

    folder: Path
    targets: dict[str, int | None]
    trainer: RunningTrainer | None = None
    replica: Replica | None = None
    gateway: RunningGateway | None = None
    before: list[Scrape] = field(default_factory=list)

    async def scrape(self, only: str = "") -> Scrape:
        return await asyncio.to_thread(scrape, self.targets, only)

    async def healthy(self) -> None:
        """Record the state of the services before the fault."""
        self.before = [await self.scrape(), await self.scrape()]

    async def fires(self, minutes: int, a_minute: Callable[[], Awaitable[Any]] | None = None) -> set[str]:
        """The alerts after `minutes` of a fault that is there. `a_minute` does what happens in each of them."""
        first = await self.scrape()
        await (a_minute or self._look_at_the_store)()
        during = (first, await self.scrape())
        found = await asyncio.to_thread(firing, self.folder, (self.before[0], self.before[1]), during, minutes)
        SEEN.update(found)
        return found

    async def _look_at_the_store(self) -> None:
        """Some polls of the store by a replica, if there is one and the store is there."""
        if self.replica is not None and self.replica.store_dir.exists() and not self.replica.done.done():
            contact = await self.replica.metric(LAST_CONTACT)
            await until(lambda: self._has_moved(contact))

    async def queue_grows_older(self) -> None:
        """Until the oldest queued job has waited for longer."""
        await self.rises("softprompt_trainer_oldest_queued_seconds", 0.1)

    async def rises(self, metric: str, by: float = 1, **labels: str) -> None:
        """Wait until a series is above its present value, whatever that is by now."""
        await self.until(metric, await self.value(metric, **labels) + by, **labels)

    async def _has_moved(self, contact: float) -> bool:
        assert self.replica is not None
        return self.replica.done.done() or await self.replica.metric(LAST_CONTACT) > contact

    async def value(self, metric: str, **labels: str) -> float:
        samples = (await self.scrape(metric)).samples
        return next(v for (name, its), v in samples.items() if name == metric and labels.items() <= dict(its).items())

    async def below(self, metric: str, value: float, **labels: str) -> bool:
        return await self.value(metric, **labels) < value

    async def until(self, metric: str, at_least: float, **labels: str) -> None:
        """Wait until a series that was scraped has this value."""

        async def reached() -> bool:
            samples = (await self.scrape(metric)).samples
            return any(
                name == metric and labels.items() <= dict(its).items() and v >= at_least
                for (name, its), v in samples.items()
            )

        await until(reached)


def maker(model_dir: Path, folder: Path) -> Any:
    """Makes the services of a test in `folder`: a trainer with the given pool, or a replica, or both."""
    program("promtool")

    @asynccontextmanager
    async def make(
        pool: WorkerPool | None = None,
        trainer: dict[str, Any] | None = None,
        replica: dict[str, Any] | None = None,
        gateway: dict[str, Any] | None = None,
    ) -> AsyncIterator[Fault]:
        """A service that is not asked for has a target that is up, and nothing else; a gateway needs a replica."""
        async with AsyncExitStack() as stack:
            fault = Fault(folder, {})
            if trainer is not None:
                settings = TrainerSettings(
                    **{
                        "base_models": (f"tiny={model_dir}",),
                        "data_dir": folder / "data",
                        "ready_file": str(folder / "trainer.json"),
                        "grace_seconds": 2,
                        **PATIENT,
                        **trainer,
                    }
                )
                fault.trainer = await stack.enter_async_context(
                    running_trainer(settings, lambda _: pool or NoWorkers())
                )
                fault.targets["trainer"] = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]
            if replica is not None:
                fault.replica = await stack.enter_async_context(
                    running_replica(model_dir, folder / "replica", **replica)
                )
                fault.targets["inference"] = fault.replica.metrics_port
            if gateway is not None and fault.replica is not None:
                fault.gateway = await stack.enter_async_context(
                    running_gateway(folder / "gateway", 1, fault.replica.port, **gateway)
                )
                fault.targets["gateway"] = fault.gateway.metrics_port
            for job in ("trainer", "inference"):
                fault.targets.setdefault(job, ONLY_UP)
            await fault.healthy()
            yield fault

    return make
