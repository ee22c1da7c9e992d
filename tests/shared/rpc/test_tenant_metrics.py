"""Requests by tenant and prompt class, over real sockets: at the service, and at a router that has no callers file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2

from shared.config import ConfigError
from shared.prompt.manifest import utc_now
from shared.rpc.tenant_metrics import TenantLabels, TenantMetrics, outcome_of_code, outcome_of_status
from shared.security.callers_file import CallersFile
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from tests.shared.rpc.service import Running, refusal, running_server
from tests.softprompt.router.readings import metric
from tests.softprompt.router.running import running_router
from tests.tcp_proxy import tcp_proxy
from tests.waiting import until

SHOP, ALONE = new_token(), new_token()
CALLERS: dict[str, Any] = {
    "tenants": [{"name": "acme", "limits": {"requests_per_second": 0.3}}],
    "callers": [
        {"name": "shop", "tenant": "acme", "roles": ["generator"], "token_sha256": [hash_token(SHOP)]},
        {"name": "alone", "roles": ["generator"], "token_sha256": [hash_token(ALONE)]},
    ],
    "prompt_classes": [{"name": "interactive", "prompts": ["support-*"], "objective": 0.995}],
}


@pytest.fixture
def callers_file(tmp_path: Path) -> Path:
    path = tmp_path / "callers.json"
    path.write_text(json.dumps(CALLERS))
    return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def counting(prompt: str, text: str = "hi") -> Any:
    return generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(prompt=prompt, text=text))


def requests(running: Running, tenant: str, prompt_class: str, outcome: str) -> float:
    labels = {"tenant": tenant, "prompt_class": prompt_class, "outcome": outcome}
    return running.registry.get_sample_value("softprompt_tenant_requests_total", labels) or 0.0


async def test_requests_are_counted_for_the_tenant_and_the_class_of_the_prompt(callers_file: Path) -> None:
    async with running_server(callers_file=str(callers_file)) as running:
        call = running.stub.CountTokens
        await call(counting("support-tone@production"), metadata=bearer(ALONE))
        await call(counting("prompts/support-tone/versions/7"), metadata=bearer(ALONE))
        await call(counting("sales"), metadata=bearer(ALONE))
        await refusal(call(counting("support-tone", "bad"), metadata=bearer(ALONE)))
        await refusal(call(counting("support-tone", "bug"), metadata=bearer(ALONE)))
        await refusal(call(counting("support-tone")))
        for _ in range(6):  # some more than the tenant's limit
            await refusal_or_answer(call(counting("support-tone"), metadata=bearer(SHOP)))
    # a call is counted when it is over, and its caller may know before
    assert requests(running, "alone", "interactive", "ok") == 2
    assert requests(running, "alone", "standard", "ok") == 1
    assert requests(running, "alone", "interactive", "invalid") == 1
    assert requests(running, "alone", "interactive", "fault") == 1
    assert requests(running, "other", "standard", "invalid") == 1
    refused = requests(running, "acme", "standard", "refused") + requests(running, "acme", "interactive", "refused")
    assert refused >= 1
    assert refused + requests(running, "acme", "interactive", "ok") == 6
    objective = {"prompt_class": "interactive"}, {"prompt_class": "standard"}
    found = [running.registry.get_sample_value("softprompt_slo_objective_ratio", labels) for labels in objective]
    assert found == [0.995, 0.999]


async def refusal_or_answer(call: Any) -> None:
    try:
        await call
    except Exception as error:
        assert "rate" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error)  # noqa: PT017 - both ends are right


async def test_a_stream_is_timed_until_its_first_message(callers_file: Path) -> None:
    async with running_server(callers_file=str(callers_file)) as running:
        request = generation_pb2.GenerateStreamRequest(input=generation_pb2.GenerationInput(prompt="support-tone"))
        call = running.stub.GenerateStream(request, metadata=bearer(ALONE))
        await call.read()
        running.servicer.release.set()
        while await call.read() is not grpc.aio.EOF:
            pass
        labels = {"tenant": "alone", "prompt_class": "interactive"}
        value = running.registry.get_sample_value
        await until(lambda: value("softprompt_tenant_first_message_seconds_count", labels) == 1)
        first = value("softprompt_tenant_first_message_seconds_sum", labels)
        last = value("softprompt_tenant_request_seconds_sum", labels)
        assert first is not None
        assert last is not None
        assert 0 < first <= last


async def test_without_callers_every_request_is_of_the_other_tenant() -> None:
    async with running_server() as running:
        await running.stub.CountTokens(counting("support-tone"))
    assert requests(running, "other", "standard", "ok") == 1


def announce(port: int, store_dir: Path) -> None:
    """Write the record of a replica at this port."""
    names = {"id": "a", "base_model": "m", "base_model_fingerprint": "f"}
    record = ReplicaRecord(**names, address=f"127.0.0.1:{port}", started_at=utc_now())
    ReplicaDirectory(open_store(str(store_dir)).backend).put(record)


async def test_a_router_counts_by_what_replicas_answer_and_by_nothing_that_callers_send(
    callers_file: Path, tmp_path: Path
) -> None:
    async with running_server(callers_file=str(callers_file)) as replica:
        await replica.server.set_serving(True)
        announce(replica.port, tmp_path / "store")
        async with running_router(tmp_path / "r", tmp_path / "store") as router:
            lie = (*bearer(ALONE), ("x-softprompt-tenant", "acme"))
            await router.stub.CountTokens(counting("support-tone"), metadata=lie)
            await refusal(router.stub.CountTokens(counting("support-tone", "bad"), metadata=lie))
            await refusal(router.stub.CountTokens(counting("support-tone", "bug"), metadata=lie))
            name, labels = "softprompt_tenant_requests_total", {"tenant": "alone", "prompt_class": "interactive"}

            async def each_is_counted() -> bool:
                outcomes = ("ok", "invalid", "fault")
                return [await metric(router, name, **labels, outcome=outcome) for outcome in outcomes] == [1, 1, 1]

            await until(each_is_counted)
            assert await metric(router, name, tenant="acme") == 0


async def test_a_router_counts_a_stream_that_is_cut_for_its_tenant(callers_file: Path, tmp_path: Path) -> None:
    async with running_server(callers_file=str(callers_file)) as replica:
        await replica.server.set_serving(True)
        with tcp_proxy(replica.port) as proxy:
            announce(proxy.port, tmp_path / "store")
            async with running_router(tmp_path / "r", tmp_path / "store") as router:
                given = generation_pb2.GenerationInput(prompt="support-tone")
                request = generation_pb2.GenerateStreamRequest(input=given)

                async def counted(outcome: str) -> bool:
                    labels = {"tenant": "alone", "prompt_class": "interactive", "outcome": outcome}
                    return await metric(router, "softprompt_tenant_requests_total", **labels) == 1

                call = router.stub.GenerateStream(request, metadata=bearer(ALONE))
                await call.read()
                call.cancel()
                await until(lambda: counted("cancelled"))
                call = router.stub.GenerateStream(request, metadata=bearer(ALONE))
                await call.read()
                proxy.cut(reset=True)
                with pytest.raises(grpc.aio.AioRpcError, match="the replica ended during the answer"):
                    await call.read()
                await until(lambda: counted("fault"))
                named = TenantLabels.read(await call.initial_metadata())  # a gateway counts by it
                assert named == TenantLabels("alone", "interactive")


def test_the_number_of_series_is_bounded() -> None:
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry)
    for number in range(1000):
        metrics.observe(TenantLabels(f"tenant-{number}"), "ok", 0.1, None)
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name.endswith("_total")]
    assert len({sample.labels["tenant"] for sample in samples}) == 256
    assert sum(sample.value for sample in samples) == 1000
    labels = {"tenant": "other", "prompt_class": "standard", "outcome": "ok"}
    assert registry.get_sample_value("softprompt_tenant_requests_total", labels) == 745
    metrics.observe(TenantLabels("one-more", "batch"), "ok", 0.1, None)
    labels["prompt_class"] = "batch"
    assert registry.get_sample_value("softprompt_tenant_requests_total", labels) == 1
    for number in range(1000):
        metrics.observe(TenantLabels("one-more", f"class-{number}"), "ok", 0.1, None)
    assert len(metrics._known) == 512


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([{"name": "a", "prompts": ["*"]}, {"name": "a", "prompts": ["x"]}], "two prompt classes have the same name"),
        ([{"name": "a", "prompts": []}], "prompt_classes.0.prompts"),
        ([{"name": "A b", "prompts": ["*"]}], "prompt_classes.0.name"),
        ([{"name": "a", "prompts": ["*"], "objective": 1.0}], "prompt_classes.0.objective"),
        ([{"name": f"c{number}", "prompts": ["*"]} for number in range(9)], "prompt_classes"),
    ],
)
def test_a_wrong_class_is_refused_by_its_field(tmp_path: Path, classes: list[Any], reason: str) -> None:
    path = tmp_path / "callers.json"
    path.write_text(json.dumps({**CALLERS, "prompt_classes": classes}))
    with pytest.raises(ConfigError, match=reason):
        CallersFile(path)


def test_outcomes_separate_faults_of_the_service_from_mistakes_of_the_caller() -> None:
    assert [outcome_of_code(code) for code in ("OK", "NOT_FOUND", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED")] == [
        "ok",
        "invalid",
        "fault",
        "fault",
        "refused",
    ]
    assert [outcome_of_status(status) for status in (200, 404, 429, 499, 500, 504)] == [
        "ok",
        "invalid",
        "refused",
        "cancelled",
        "fault",
        "fault",
    ]
