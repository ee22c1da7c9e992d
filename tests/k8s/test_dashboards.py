"""Every query of the dashboards, the recording rules and the autoscaler, asked of a real Prometheus that scrapes both
real services and the gateway.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from google.protobuf import duration_pb2
from prompttuning.v1 import generation_pb2
from prompttuning.v1 import tuning_pb2 as pb

from tests.inference_service.replica import Replica, generate_request, refusal, running_replica, stream_request
from tests.k8s import known_metrics
from tests.k8s.manifests import K8S, render
from tests.k8s.prometheus import Prometheus, program, running_prometheus
from tests.softprompt.gateway.running import running_gateway
from tests.trainer_service.conftest import PATIENT, RunningTrainer, running_trainer
from tests.trainer_service.requests import create_job
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.waiting import wait_until
from trainer_service.config import TrainerSettings

DASHBOARDS = sorted((K8S / "components" / "monitoring" / "dashboards").glob("*.json"))
RULES = yaml.safe_load((K8S / "components" / "monitoring" / "rules.yaml").read_text())["spec"]
NEVER_HERE = frozenset(
    {
        "softprompt_trainer_attempt_failures_total",
        "softprompt_trainer_worker_device_bytes",
        "softprompt_trainer_worker_device_busy_ratio",
        "softprompt_trainer_worker_resident_bytes",
    }
)
"""Series that need a broken attempt, a GPU, or a worker that is still alive: of these the name is checked, not the
answer.
"""


@dataclass(frozen=True)
class Query:
    where: str
    expression: str
    legend: frozenset[str]
    """Labels that the legend shows."""


def dashboard_queries() -> list[Query]:
    found = []
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$namespace", "softprompt").replace("$__rate_interval", "1m")
                expression = expression.replace("$tenant", "other")  # without a callers file
                legend = frozenset(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
                found.append(Query(f"{file.stem}: {panel['title']}", expression, legend))
    return found


def other_queries() -> list[Query]:
    scaled = render("ha").get("ScaledObject", "inference")["spec"]["triggers"]
    recorded = [rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule]
    return [
        *(Query("autoscaler", trigger["metadata"]["query"], frozenset()) for trigger in scaled),
        *(Query("recording rule", name, frozenset({"namespace"})) for name in recorded),
    ]


def prometheus_config(folder: Path, ports: dict[str, int]) -> dict[str, Any]:
    """Scrapes as the operator would make of the ServiceMonitor, but every second; the recording rules, too."""
    recording = [
        {**group, "interval": "1s"} for group in RULES["groups"] if any("record" in rule for rule in group["rules"])
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": recording}))
    jobs = [
        {
            "job_name": job,
            "static_configs": [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "softprompt", "pod": f"{job}-0"}}
            ],
        }
        for job, port in ports.items()
    ]
    timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": timing, "rule_files": [str(folder / "rules.yaml")], "scrape_configs": jobs}


async def traffic(trainer: RunningTrainer, replica: Replica) -> None:
    """A job that succeeds and one that fails, answers of every kind, refusals."""
    few = pb.Hyperparameters(num_steps=4, num_virtual_tokens=6, evaluation_interval_steps=2)
    job = await create_job(trainer, hyperparameters=few)
    assert (await last_event(trainer, job)).state == pb.TuningJob.STATE_SUCCEEDED
    endless = pb.Hyperparameters(num_steps=100_000, num_virtual_tokens=6, evaluation_interval_steps=100_000)
    job = await create_job(trainer, hyperparameters=endless, max_runtime=duration_pb2.Duration(seconds=1))
    assert (await last_event(trainer, job)).error.code == "MAX_RUNTIME"
    await replica.state("prompts/support-tone/versions/1", "LOADED")


async def last_event(trainer: RunningTrainer, job: pb.TuningJob) -> Any:
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name))
    return [response.event async for response in watch][-1].state_changed


ROUND_PAUSE_SECONDS = 0.1
"""Sets the rate of the calls; without it, they leave no processor time for the scrapes."""


async def keep_asking(trainer: RunningTrainer, replica: Replica, http: httpx.AsyncClient) -> None:
    """Calls of every kind until cancelled, so that rates have something to show."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    while True:
        await http.post("/v1/chat/completions", json=chat)
        await replica.generate("hello", "support-tone", max_new_tokens=4, ignore_eos=True)
        async for _ in replica.stub.GenerateStream(stream_request("hello", max_new_tokens=4, ignore_eos=True)):
            pass
        asked = generate_request("hello", "support-tone").input
        await replica.stub.Score(generation_pb2.ScoreRequest(input=asked, candidates=["yes", "no"]))
        await refusal(replica.generate("hello", "nobody"))
        with pytest.raises(grpc.aio.AioRpcError):
            await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name="tuningJobs/none"))
        await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest())
        await asyncio.sleep(ROUND_PAUSE_SECONDS)


def unanswered(server: Prometheus, queries: list[Query]) -> Iterator[str]:
    """What is wrong with each query: an error, no answer, or a legend whose labels no answer has."""
    for query in queries:
        try:
            results = server.query(query.expression)
        except AssertionError as error:
            yield f"{query.where}: {error}"
            continue
        labels = {label for result in results for label in result["metric"]}
        if not results and not known_metrics.metric_names(query.expression) <= NEVER_HERE:
            yield f"{query.where}: no answer to {query.expression}"
        if results and not query.legend <= labels:
            yield f"{query.where}: no label {sorted(query.legend - labels)} in the answer to {query.expression}"


async def with_all_processes(
    settings: TrainerSettings, model_dir: Path, folder: Path, look: Callable[[Prometheus], None]
) -> None:
    """Start all, make traffic, scrape, and have a look while the traffic goes on."""
    program("prometheus")
    changes = {"store_url": str(folder / "store"), "worker_idle_seconds": 0.5}
    async with (
        running_replica(model_dir, folder) as replica,
        running_trainer(settings.model_copy(update=changes), local_pool) as trainer,
        running_gateway(folder, trainer.port, replica.port) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=None) as http,
    ):
        port = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]
        ports = {"trainer": port, "inference": replica.metrics_port, "gateway": gateway.metrics_port}
        with running_prometheus(folder, prometheus_config(folder, ports)) as server:
            await traffic(trainer, replica)
            asking = asyncio.create_task(keep_asking(trainer, replica, http))
            try:
                await asyncio.to_thread(look, server)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> TrainerSettings:
    return TrainerSettings(
        base_models=(f"tiny-llama={tiny_model_dir}",),
        data_dir=tmp_path / "data",
        ready_file=str(tmp_path / "trainer.json"),
        grace_seconds=5,
        **PATIENT,
    )


async def test_every_query_has_an_answer(settings: TrainerSettings, tiny_model_dir: Path, tmp_path: Path) -> None:
    queries = [*dashboard_queries(), *other_queries()]
    assert len(queries) > 80
    wrong = [
        Query("a metric that isn't there", "sum(rate(softprompt_inference_answers_total[6s]))", frozenset()),
        Query("a label value that isn't there", 'sum(softprompt_trainer_jobs{state="DONE"})', frozenset()),
        Query(
            "a label that isn't there",
            "sum by (replica) (softprompt_inference_requests_running)",
            frozenset({"replica"}),
        ),
        Query("no PromQL", "sum(rate(", frozenset()),
    ]

    def look(server: Prometheus) -> None:
        assert len(list(unanswered(server, wrong))) == len(wrong)
        wait_until(lambda: not any(unanswered(server, queries)), pause_seconds=0.5)

    await with_all_processes(settings, tiny_model_dir, tmp_path, look)


def test_queries_use_series_that_the_services_export() -> None:
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    unknown = {name for query in dashboard_queries() for name in known_metrics.unknown_in(query.expression)}
    assert unknown <= recorded


def test_legends_show_what_queries_group_by() -> None:
    for query in dashboard_queries():
        for labels in re.findall(r"\bby \(([^)]*)\)", query.expression):
            assert set(labels.replace(" ", "").split(",")) - {"le"} <= query.legend, query


def test_panels_have_room_and_ids_of_their_own() -> None:
    for file in DASHBOARDS:
        panels = json.loads(file.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, (file.name, panel["title"])
            assert place["x"] + place["w"] <= 24
            taken |= cells


def test_metrics_of_files_are_called_as_the_alerts_have_them() -> None:
    for name, module in (
        (known_metrics.TLS_EXPIRY, "rpc/server.py"),
        (known_metrics.CALLERS_FILE, "rpc/guard.py"),
        (known_metrics.SHARED_LIMITS, "security/shared_limits.py"),
    ):
        assert f'"{name}"' in (Path(__file__).parents[2] / "shared" / module).read_text()
