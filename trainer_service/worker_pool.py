"""Makes the pool of Ray workers from the trainer's settings. Imports Ray, which is slow."""

from __future__ import annotations

from trainer_service.cluster.ray_pool import RayPool, connect
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.config import TrainerSettings


def ray_pool(settings: TrainerSettings) -> RayPool:
    """A pool on the configured Ray cluster. Workers get only their own settings, none of the service's secrets."""
    base_models = {source.id: source.source for source in settings.sources}
    return connect(settings.ray_address, base_models, WorkerSettings.of(settings), settings.models)
