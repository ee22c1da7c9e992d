"""What Prometheus sees: every figure has its series, and the number of series is bounded whatever callers name."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from inference_service.engine.core.request import FinishReason, TokenUsage
from inference_service.engine.core.stats import FinishedRequest
from inference_service.metrics import EngineMetrics
from inference_service.prompts.version import prompt_of_prefix
from tests.inference_service.replica import Replica, blob, matrix, publish, refusal


def finished(prompt: str | None, **changes: object) -> FinishedRequest:
    values: dict[str, object] = {
        "tenant": "acme",
        "prefix_id": None if prompt is None else f"prompts/{prompt}/versions/1#sha256:0",
        "finish_reason": FinishReason.EOS,
        "usage": TokenUsage(input_tokens=5, virtual_tokens=10, cached_tokens=2, generated_tokens=3),
        "queue_seconds": 0.01,
        "ttft_seconds": 0.02,
        "e2e_seconds": 0.1,
        "inter_token_seconds": (0.02, 0.03),
    }
    return FinishedRequest(**{**values, **changes})  # type: ignore[arg-type]


def engine_metrics(limit: int) -> tuple[CollectorRegistry, EngineMetrics]:
    registry = CollectorRegistry()
    return registry, EngineMetrics(
        registry, limit, lambda prefix_id: prompt_of_prefix(prefix_id) if prefix_id else None
    )


def test_prompts_beyond_the_bound_share_a_label() -> None:
    registry, metrics = engine_metrics(limit=2)
    for prompt in ("a", "b", *(f"p{n}" for n in range(1000)), "a", None):
        metrics.on_finished(finished(prompt))

    def count(prompt: str) -> float | None:
        labels = {"prompt": prompt, "finish_reason": "EOS"}
        return registry.get_sample_value("softprompt_inference_requests_finished_total", labels)

    assert {prompt: count(prompt) for prompt in ("a", "b", "other", "none")} == {
        "a": 2,
        "b": 1,
        "other": 1000,
        "none": 1,
    }
    assert (
        sum(
            sample.name.endswith("requests_finished_total")
            for family in registry.collect()
            for sample in family.samples
        )
        == 4
    )


def test_a_request_leaves_its_story() -> None:
    registry, metrics = engine_metrics(limit=10)
    metrics.on_finished(finished("tone"))
    tokens = {
        kind: registry.get_sample_value("softprompt_inference_tokens_total", {"prompt": "tone", "kind": kind})
        for kind in ("input", "virtual", "cached", "generated")
    }
    assert tokens == {"input": 5, "virtual": 10, "cached": 2, "generated": 3}
    assert registry.get_sample_value("softprompt_inference_inter_token_seconds_count") == 2
    assert registry.get_sample_value("softprompt_inference_time_to_first_token_seconds_sum", {"prompt": "tone"}) == 0.02


def test_the_services_own_replays_do_not_count_as_requests() -> None:
    registry, metrics = engine_metrics(limit=10)
    metrics.on_finished(finished("tone", tenant=""))
    assert (
        registry.get_sample_value(
            "softprompt_inference_requests_finished_total", {"prompt": "tone", "finish_reason": "EOS"}
        )
        is None
    )


async def test_a_running_replica_tells_its_state(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.generate("hello", "tone", max_new_tokens=4, ignore_eos=True)
    await refusal(replica.generate("hello", "nobody"))
    assert await replica.metric("time_to_first_token_seconds_count", prompt="tone") == 1
    assert await replica.metric("tokens_total", prompt="tone", kind="generated") == 4
    assert await replica.metric("publish_to_served_seconds_count") == 1
    assert await replica.metric("store_revision") == replica.store.index().revision == 1
    assert await replica.metric("versions_loaded") == await replica.metric("prefixes_resident") == 1
    assert await replica.metric("prefix_kv_loads_total") == 1
    assert await replica.metric("requests_finished_total", prompt="nobody") == 0
