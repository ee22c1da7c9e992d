"""The worker as a Ray actor. Its methods run in separate threads, so that none waits for a training step.

Importing this module imports Ray, so import it only after `RayCluster` has set Ray's environment.
"""

from __future__ import annotations

from functools import partial

import ray

from shared.process.garbage import paused_collector

with paused_collector():  # a worker's process begins with these imports, torch among them
    from shared.tracing import tracing_of
    from trainer_service.cluster.interface import WorkerReport
    from trainer_service.cluster.memory import measure_memory
    from trainer_service.cluster.node_datasets import NodeDatasets
    from trainer_service.cluster.worker import Worker
    from trainer_service.cluster.worker_init import WorkerSpec, load_trainer_in_background, software_version
    from trainer_service.training.events import DatasetFile, TrainingTask


@ray.remote(concurrency_groups={"control": 1, "data": 1, "poll": 1}, max_restarts=0, max_task_retries=0)
class WorkerActor:
    """A `Worker` in an actor. One control thread keeps adds and stops in order.

    Ray never restarts the actor, which would lose its jobs; the job manager retries.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._datasets = NodeDatasets()
        tracing = tracing_of("softprompt-worker", spec.settings.otlp_endpoint)
        self._worker = Worker(partial(load_trainer_in_background, spec), measure_memory, tracing, self._datasets)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def software(self) -> str:
        """Versions of the software that this process runs."""
        return software_version()

    @ray.method(concurrency_group="data")  # type: ignore[untyped-decorator]
    def has_dataset(self, file: DatasetFile) -> bool:
        """Whether this node has the dataset's bytes, whole."""
        return self._datasets.has(file)

    @ray.method(concurrency_group="data")  # type: ignore[untyped-decorator]
    def receive_dataset(self, file: DatasetFile, offset: int, piece: bytes) -> None:
        """Takes one piece of a dataset's bytes."""
        self._datasets.receive(file, offset, piece)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def add(self, task: TrainingTask) -> None:
        """See `Worker.add`."""
        self._worker.add(task)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self, job_id: str, attempt: int) -> None:
        """See `Worker.stop`."""
        self._worker.stop(job_id, attempt)

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        """See `Worker.poll`."""
        return self._worker.poll(since, timeout_seconds)
