"""The trace of the call that created a job reaches its worker, through the database and through Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind

from shared.model import base_model
from shared.trace_context import parent_of
from shared.tracing import Tracing
from tests.shared.spans import attributes, receiver
from tests.trainer_service.builders import effective_spec, spec
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.job_service import Service
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.jobs.states import JobState

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.ray
async def test_an_attempt_on_a_ray_worker_is_a_span_in_the_callers_trace(
    tmp_path: Path, ray_cluster: SharedCluster, tiny_model_dir: Path
) -> None:
    service = Service(tmp_path, effective_spec(base_model.inspect(tiny_model_dir, id="tiny")))
    with receiver() as received:
        settings = WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1, otlp_endpoint=received.url)
        manager = await service.start(RayPool(ray_cluster, {"tiny": str(tiny_model_dir)}, settings))
        with Tracing().span("CreateTuningJob", parent_of(f"00-{TRACE_ID}-00f067aa0ba902b7-01"), SpanKind.SERVER, {}):
            job = await manager.create(spec(num_steps=3))
        await service.state(job.id, JobState.SUCCEEDED)
        span = await asyncio.to_thread(received.named, "train")
        await service.drain()
    assert span.trace_id.hex() == TRACE_ID
    found = attributes(span)
    assert (found["softprompt.job"], found["softprompt.attempt"], found["softprompt.outcome"]) == (
        job.id,
        1,
        "finished",
    )
