"""The probes of the manifests, asked of the running services the way kubelet asks: gRPC health over plaintext on the
health port.
"""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.inference_service.replica import running_replica
from tests.k8s.manifests import render
from tests.trainer_service.conftest import running_trainer
from trainer_service.config import TrainerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING


async def answers(service: str, port: int) -> dict[str, int]:
    """The status that each probe gets."""
    main = render("local-cpu").pod(service).main
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found = {}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            request = health_pb2.HealthCheckRequest(service=main[kind]["grpc"]["service"])
            found[kind] = (await stub.Check(request)).status
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        return found


def health_port(directory: Path) -> int:
    return int(json.loads((directory / "ready.json").read_bytes())["health_port"])


async def test_a_serving_replica_passes_all_of_its_probes(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with running_replica(tiny_model_dir, tmp_path, health_port=0):
        assert set((await answers("inference", health_port(tmp_path))).values()) == {SERVING}


async def test_a_serving_trainer_passes_all_of_its_probes(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = TrainerSettings(
        base_models=(str(tiny_model_dir),),
        data_dir=tmp_path / "data",
        ready_file=str(tmp_path / "ready.json"),
        health_port=0,
    )
    async with running_trainer(settings):
        assert set((await answers("trainer", health_port(tmp_path))).values()) == {SERVING}
