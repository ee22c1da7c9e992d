"""The trainer service with workers of `gpu_worker`."""

from __future__ import annotations

import sys
from typing import Any

from trainer_service import __main__ as trainer
from trainer_service.cluster.ray_cluster import RayCluster

if __name__ == "__main__":
    RayCluster().set_environment()  # before Ray is imported
    from tests.trainer_service.cluster.gpu_worker import GpuWorkerActor
    from trainer_service.cluster import ray_actor

    module: Any = ray_actor
    module.WorkerActor = GpuWorkerActor
    sys.exit(trainer.main())
