"""Usage over real sockets while replica and trainer are killed with SIGKILL: nothing that a caller got an end for is
lost, nothing counts twice, and the sums equal the metrics.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
from prompttuning.v1 import generation_pb2, generation_pb2_grpc

from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.usage import UsageSegments
from shared.values.usage import UsageDimension, UsageFilter, UsageRow
from tests.inference_service.replica import generate_request, stream_request
from tests.metric_samples import scraped
from tests.softprompt.router.fleet import Running, fleet
from tests.waiting import until
from trainer_service.database.database import Database
from trainer_service.usage.ledger import UsageLedger
from trainer_service.usage.rounds import UsageFolding

TENANTS = ("shop", "bank", "clinic")
GENERATED = {"shop": 3, "bank": 7, "clinic": 0}
"""Generated tokens of each request that ends."""
KILLS = 2


def add_segments(database_url: str, store_url: str) -> None:
    """What a trainer does with segments, until it is killed."""
    folding = UsageFolding(UsageLedger(Database(database_url)), UsageSegments(open_store(store_url).backend))
    while True:
        folding.fold()
        time.sleep(0.01)


@dataclass
class Callers:
    """Calls of all tenants at once. `ended`: requests that ended in their sight; `cut`: those that may have ended."""

    tokens: dict[str, str]
    ended: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)

    async def call(self, stub: Any, tenant: str) -> None:
        """One call. A tenant's calls are of one kind."""
        metadata = (("authorization", f"Bearer {self.tokens[tenant]}"),)
        ends, wanted = 0, 2 if tenant == "bank" else 1
        try:
            if tenant == "shop":
                await stub.Generate(generate_request(max_new_tokens=3, ignore_eos=True), metadata=metadata)
                ends = 1
            elif tenant == "bank":
                request = stream_request(max_new_tokens=7, ignore_eos=True, n=2)
                async for part in stub.GenerateStream(request, metadata=metadata):
                    ends += part.HasField("end")
            else:
                given = generation_pb2.GenerationInput(text="hello")
                await stub.Score(generation_pb2.ScoreRequest(input=given, candidates=["a", "bc"]), metadata=metadata)
                ends = 1
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        self.ended[tenant] += ends
        self.cut[tenant] += wanted - ends

    async def calls(self, replica: Running, stop: asyncio.Event) -> None:
        """Calls of all tenants, several at once, until `stop`."""

        async def repeat(stub: Any, tenant: str) -> None:
            while not stop.is_set():
                await self.call(stub, tenant)

        async with (
            grpc.aio.insecure_channel(replica.address, options=[("grpc.enable_retries", 0)]) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            for tenant in TENANTS * 2:
                group.create_task(repeat(stub, tenant))


def counted(replica: Running) -> dict[str, float]:
    """What the metrics of a replica have counted."""
    found: dict[str, float] = defaultdict(float)
    for sample in scraped(replica.ports["metrics_port"]):
        if sample.name.endswith(("inference_requests_finished_total", "inference_scores_finished_total")):
            found["requests"] += sample.value
        elif sample.name.endswith("inference_tokens_total"):
            found[f"{sample.labels['kind']}_tokens"] += sample.value
    return found


async def test_kills_lose_no_request_that_ended_and_count_none_twice(tiny_model_dir: Path, tmp_path: Path) -> None:
    callers = Callers({tenant: new_token() for tenant in TENANTS})
    entries = [
        {"name": f"{tenant}-app", "tenant": tenant, "roles": ["generator"], "token_sha256": [hash_token(token)]}
        for tenant, token in callers.tokens.items()
    ]
    file = tmp_path / "callers.json"
    file.write_text(json.dumps({"tenants": [{"name": tenant} for tenant in TENANTS], "callers": entries}))
    usage_dir, database_url = tmp_path / "usage", f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    segments = UsageSegments(open_store(str(tmp_path / "store")).backend)
    settings = {"CALLERS_FILE": str(file), "USAGE_DIR": str(usage_dir), "USAGE_SECONDS": "0.1"}

    def is_complete() -> bool:
        """Whether the table has all that the replicas have written."""
        return not segments.all() and not any(path.stat().st_size for path in usage_dir.glob("*/*/*"))

    with fleet(tmp_path) as processes:

        async def load(replica: Running, *killed: BaseProcess) -> None:
            """Calls until each tenant has some answers; then the processes are killed."""
            stop, goal = asyncio.Event(), {tenant: callers.ended[tenant] + 6 for tenant in TENANTS}
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.calls(replica, stop))
                await until(lambda: all(callers.ended[tenant] >= least for tenant, least in goal.items()))
                for process in killed:
                    process.kill()
                stop.set()

        async def table() -> dict[str, UsageRow]:
            """The table of usage once it is complete. Its trainer is killed, because SQLite serves one process."""
            trainer = processes.forked("trainer", add_segments, database_url, str(processes.store_dir))
            await until(is_complete)
            trainer.kill()
            trainer.join()
            database, hour = Database(database_url), int(time.time()) // 3600 * 3600
            found = UsageLedger(database).list(UsageFilter(hour - 3600, hour + 3600, (UsageDimension.TENANT,)), 100)
            database.close()
            return {row.tenant: row for row in found}

        for _ in range(KILLS):
            replica = await processes.replica("one", tiny_model_dir, **settings)
            trainer = processes.forked("trainer", add_segments, database_url, str(processes.store_dir))
            await load(replica, replica.process, trainer)
            trainer.join()
        last = await processes.replica("one", tiny_model_dir, **settings)
        before = await table()
        await load(last)
        after, metrics = await table(), counted(last)
    assert callers.cut.total(), "no kill met a running call"
    for tenant, row in after.items():
        assert callers.ended[tenant] <= row.requests <= callers.ended[tenant] + callers.cut[tenant]
        assert row.generated_tokens == GENERATED[tenant] * row.requests
    assert metrics["requests"]
    for name, value in metrics.items():
        assert value == sum(getattr(after[tenant], name) - getattr(before[tenant], name) for tenant in TENANTS)
