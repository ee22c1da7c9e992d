"""Makes the pool of Ray workers from the trainer's settings. Imports Ray, which is slow."""

from __future__ import annotations

from trainer_service.cluster.ray_pool import RayPool, RayPoolConfig, connect
from trainer_service.config import TrainerSettings


def ray_pool(settings: TrainerSettings) -> RayPool:
    """A pool on the configured Ray cluster."""
    config = RayPoolConfig(
        base_models={source.id: source.source for source in settings.sources},
        dtype=settings.dtype,
        device=settings.device,
        max_workers=settings.max_workers,
        gpus_per_worker=settings.gpus_per_worker,
        cpus_per_worker=settings.cpus_per_worker,
        checkpoint_seconds=settings.checkpoint_seconds,
        otlp_endpoint=settings.otlp_endpoint,
    )
    return connect(settings.ray_address, config)
