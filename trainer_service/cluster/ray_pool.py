"""Workers as Ray actors, one for each GPU or share of the CPU cores. They belong to this process and end with it.

Ray's errors for a dead worker (a killed process, a lost node, the memory monitor) become `WorkerLost`. A pending actor
makes Ray's autoscaler add a node; killing an actor allows it to remove one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.errors import Unavailable
from shared.model.models_file import ModelsFile, Workers
from shared.process.call_pool import CallPool
from shared.process.container_limits import cpu_quota, out_of_memory_counts, usable_cpus
from trainer_service.cluster.draining import DrainingNodes
from trainer_service.cluster.interface import NoPlace, WorkerLost, WorkerReport, WrongSoftware
from trainer_service.cluster.ray_cluster import RayCluster
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.cluster.worker_init import DEFAULT_NUM_THREADS, WorkerSpec, software_version
from trainer_service.training.events import DatasetFile, TrainingTask

log = logging.getLogger(__name__)

_CONTROL_SECONDS = 60.0
"""Longest wait for an actor to take a task: no call waits for a step, but native code may hold the interpreter."""

_DATA_SECONDS = 300.0
"""The longest wait for an actor to check a dataset, which reads all of it, or to receive a piece."""
_PIECE_BYTES = 1 << 20

_NODE_ID = "ray.io/node-id"
"""A label that Ray gives every node."""
_DEVICE, _MODELS_FILE = "SOFTPROMPT_TRAINER_DEVICE", "SOFTPROMPT_TRAINER_MODELS_FILE"
_ACTOR_MODULE = f"{__package__}.ray_actor"
_UNITS = {"GPU": "GPU(s)", "CPU": "CPU(s)", "memory": "bytes of memory"}
_ANY_AMOUNT = 1e-3
"""What Ray takes of a type of GPU."""
_NEEDS_LESS = "shorter examples or fewer virtual tokens need less memory, or give workers more"


class OomKills:
    """Detects whether the kernel killed a process of this control group for memory, which Ray doesn't report.
    Attributes each kill to at most one death; without the kernel's counter, it attributes none.

    It covers only the control group of this process, which workers share if Ray is embedded. The kernel only counts
    kills: if another process of the group was killed just before a worker died for another reason, the worker's death
    is attributed to memory.
    """

    def __init__(self, events: Path | None = None) -> None:
        """`events`: the file with the kernel's counter; None: the file of this process' group."""
        self._events = out_of_memory_counts() if events is None else events
        self._seen = self._count()

    def explain_a_death(self) -> bool:
        """Whether there was a kill since the last call. The kernel counts before it kills, so no wait is needed."""
        count = self._count()
        explained, self._seen = count > self._seen, count
        return explained

    def _count(self) -> int:
        if self._events is None:
            return 0
        try:
            counts = dict(line.split() for line in self._events.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
        except (OSError, ValueError):
            return 0


class RayPool:
    """A `WorkerPool`. `base_models` has the directory or hub id of each base model, by id; the same on every node. What
    `models` says of a model overrides the settings.
    """

    def __init__(
        self,
        cluster: RayCluster,
        base_models: Mapping[str, str],
        settings: WorkerSettings,
        models: ModelsFile | None = None,
    ) -> None:
        self._cluster, self._base_models, self._settings = cluster, base_models, settings
        self._models = models or ModelsFile()
        self._numbers = itertools.count(1)
        self._workers: set[RayWorker] = set()
        """The workers that are not closed."""
        self._other_nodes: set[str] = set()
        """Ids of nodes with other software. A node's software never changes: a replaced pod is another node."""
        self._oom_kills = OomKills() if cluster.is_embedded else None
        self._calls = CallPool("ray")
        self._draining = None if cluster.is_embedded else DrainingNodes(self._calls)

    async def start(self) -> None:
        """Join the cluster. Raises Unavailable."""
        await self._cluster.start()
        # it imports torch, which takes seconds and would block the event loop at the first launch
        await asyncio.to_thread(importlib.import_module, _ACTOR_MODULE)

    async def launch(self, base_model: str) -> RayWorker:
        """Start a worker and wait, without a limit, until the cluster has placed it and it runs.

        Raises WrongSoftware if its node has other versions than this process. That node gets no more workers, so that
        the next launch finds another node, or makes the cluster add one. Raises NoPlace if an embedded cluster is too
        small for the worker, WorkerLost.
        """
        from trainer_service.cluster import ray_actor

        if base_model not in self._base_models:
            raise WorkerLost(f"this trainer no longer has the base model {base_model!r}", base_model_failed=True)
        spec = self._spec(base_model)
        options = actor_options(spec, self._models.workers(base_model), self._other_nodes)
        if self._cluster.is_embedded and (lacking := _lacking(options, self._cluster.resources)):
            raise NoPlace(f"a worker of base model {base_model!r} needs {lacking}")
        remote: Any = ray_actor.WorkerActor  # Ray adds methods to the class that no type checker knows
        actor = remote.options(**options).remote(spec)
        worker = RayWorker(
            f"ray-{next(self._numbers)}",
            base_model,
            actor,
            self._oom_kills,
            self._workers.discard,
            self._calls,
            self._draining,
        )
        self._workers.add(worker)
        try:
            await worker.check_software()
            await self._calls.call(self._cluster.watch_processes)
        except WrongSoftware:
            with contextlib.suppress(WorkerLost):
                self._other_nodes.add(await worker.node_id())
            await worker.close()
            raise
        except BaseException:
            await worker.close()
            raise
        return worker

    async def close(self) -> None:
        """End all workers and leave the cluster."""
        await asyncio.gather(*(worker.close() for worker in self._workers))
        await self._cluster.close()

    def _spec(self, base_model: str) -> WorkerSpec:
        asked, has_gpu = self._settings.device, self._cluster.resources.get("GPU", 0) > 0
        entry, wanted = self._models.entries.get(base_model), self._models.workers(base_model)
        num_gpus = wanted.num_gpus
        if num_gpus is None:
            num_gpus = self._settings.gpus_per_worker if asked == "cuda" or (asked == "auto" and has_gpu) else 0
        chosen = {"device": "cuda" if num_gpus else "cpu"}
        if entry is not None and entry.dtype is not None:
            chosen["dtype"] = entry.dtype
        return WorkerSpec(
            base_model,
            self._base_models[base_model],
            self._settings.model_copy(update=chosen),
            max(1, int(wanted.num_cpus)) if wanted.num_cpus else self._num_threads(),
            num_gpus=num_gpus,
            device_chosen_by=_DEVICE if wanted.num_gpus is None else f"{_MODELS_FILE}, num_gpus of {base_model}",
        )

    def _num_threads(self) -> int:
        if self._settings.cpus_per_worker:
            return self._settings.cpus_per_worker
        if not self._cluster.is_embedded:
            return 0
        return max(1, int(self._cluster.resources.get("CPU", usable_cpus())) // self._settings.max_workers)


class RayWorker:
    """A `WorkerHandle`. `on_close(self)` is called when the worker is closed."""

    def __init__(
        self,
        id: str,
        base_model: str,
        actor: Any,
        oom_kills: OomKills | None = None,
        on_close: Callable[[RayWorker], None] | None = None,
        calls: CallPool | None = None,
        draining: DrainingNodes | None = None,
    ) -> None:
        self.id, self.base_model, self._actor = id, base_model, actor
        self._calls = calls or CallPool("ray")
        self._oom_kills, self._on_close = oom_kills, on_close
        self._draining, self._node_id = draining, ""
        self._loss: WorkerLost | None = None
        """Why the worker's process died, found by the first call that notices."""

    async def check_software(self) -> None:
        """Raises WrongSoftware if the actor has other versions than this process; pickled tasks could be misread."""
        found = await self._answer(self._actor.software.remote(), None)
        if found != software_version():
            raise WrongSoftware(f"the node runs {found}, the trainer {software_version()}: use one image for both")

    async def node_id(self) -> str:
        """The id of the worker's node, by a call that actors of every version answer."""
        call = self._actor.__ray_call__.remote(lambda _: __import__("ray").get_runtime_context().get_node_id())
        return str(await self._answer(call, _CONTROL_SECONDS))

    async def add(self, task: TrainingTask) -> None:
        """Add a task, after datasets that the worker's node can't read. Arguments are pickled in a thread."""
        for file in task.data.files if task.data is not None else ():
            if not await self._answer(self._actor.has_dataset.remote(file), _DATA_SECONDS):
                await self._send(file)
        await self._answer(await asyncio.to_thread(self._actor.add.remote, task), _CONTROL_SECONDS)

    async def _send(self, file: DatasetFile) -> None:
        log.info(
            "sending a dataset to a worker's node", extra={"fields": {"dataset": file.digest, "bytes": file.size_bytes}}
        )

        def send_piece(offset: int) -> Any:
            with open(file.path, "rb") as opened:
                opened.seek(offset)
                return self._actor.receive_dataset.remote(file, offset, opened.read(_PIECE_BYTES))

        for offset in range(0, file.size_bytes, _PIECE_BYTES):
            await self._answer(await asyncio.to_thread(send_piece, offset), _DATA_SECONDS)

    async def stop(self, job_id: str, attempt: int) -> None:
        await self._answer(self._actor.stop.remote(job_id, attempt), _CONTROL_SECONDS)

    async def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        report: WorkerReport = await self._answer(self._actor.poll.remote(since, timeout_seconds), None)
        return replace(report, leaving=True) if await self._is_leaving() else report

    async def _is_leaving(self) -> bool:
        """Whether the worker's node is being drained. An embedded Ray has one node, which ends with the trainer."""
        if self._draining is None:
            return False
        self._node_id = self._node_id or await self.node_id()
        return await self._draining.contains(self._node_id)

    async def close(self) -> None:
        import ray

        if self._on_close is not None:
            self._on_close(self)
        try:
            await self._calls.call(ray.kill, self._actor, no_restart=True)
        except (Unavailable, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            log.info("a worker could not be killed, it is probably gone: %s", error)

    async def _answer(self, reference: Any, timeout_seconds: float | None) -> Any:
        import ray

        try:
            async with asyncio.timeout(timeout_seconds):
                return await reference
        except TimeoutError:
            raise WorkerLost(f"it did not answer within {timeout_seconds} s") from None
        except ray.exceptions.OutOfMemoryError as error:
            raise WorkerLost(f"its node ran out of memory; {_NEEDS_LESS}", out_of_memory=True) from error
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, WorkerLost):
                raise WorkerLost(cause.reason, cause.out_of_memory, cause.base_model_failed) from error
            raise WorkerLost(str(cause)) from error
        except ray.exceptions.RayError as error:
            self._loss = self._loss or self._explain(error)
            raise WorkerLost(self._loss.reason, self._loss.out_of_memory) from error

    def _explain(self, error: Exception) -> WorkerLost:
        """Find the cause of a death. Ray's text doesn't help: it lists memory among the causes of any sudden death."""
        if self._oom_kills is not None and self._oom_kills.explain_a_death():
            return WorkerLost(f"its process was killed for memory; {_NEEDS_LESS}", out_of_memory=True)
        if "creation task" in str(error):
            cause = str(error).strip().splitlines()[-1][:300]
            return WorkerLost(f"its node could not create it; the node needs the trainer's image: {cause}")
        return WorkerLost(
            f"its process or its node is gone ({type(error).__name__}); if it was killed for memory: {_NEEDS_LESS}"
        )


def actor_options(spec: WorkerSpec, wanted: Workers, other_nodes: Collection[str] = ()) -> dict[str, Any]:
    """Ray's options for a worker. `other_nodes`: ids of nodes on which it must not run."""
    options: dict[str, Any] = {
        "num_gpus": spec.num_gpus,
        "num_cpus": wanted.num_cpus or (1 if spec.num_gpus else spec.num_threads or DEFAULT_NUM_THREADS),
    }
    selector = dict(wanted.ray_labels)
    if other_nodes:
        selector[_NODE_ID] = f"!in({','.join(sorted(other_nodes))})"
    others = {
        "memory": wanted.memory_bytes,
        "accelerator_type": wanted.accelerator_type,
        "resources": dict(wanted.ray_resources),
        "label_selector": selector,
    }
    return options | {name: value for name, value in others.items() if value}


def _lacking(options: Mapping[str, Any], machine: Mapping[str, float]) -> str:
    """Which of a worker's resources the machine does not have at all, busy or free, as a text; empty if it has all."""
    wanted = {
        "GPU": options["num_gpus"],
        "CPU": options["num_cpus"],
        "memory": options.get("memory", 0),
        **options.get("resources", {}),
    }
    if kind := options.get("accelerator_type"):
        wanted[f"accelerator_type:{kind}"] = _ANY_AMOUNT
    lacking = {name: amount for name, amount in wanted.items() if amount > machine.get(name, 0)}
    return ", ".join(
        f"a GPU of type {kind}, and this machine has none"
        if name == f"accelerator_type:{kind}"
        else f"{amount:,.15g} {_UNITS.get(name, name)}, and this machine has {machine.get(name, 0):,.15g}"
        for name, amount in lacking.items()
    )


def connect(
    address: str, base_models: Mapping[str, str], settings: WorkerSettings, models: ModelsFile | None = None
) -> RayPool:
    """A pool on the Ray cluster at `address`, such as ray-head:6379; if empty, on an embedded cluster."""
    wanted = [entry.workers.num_cpus or 0 for entry in (models or ModelsFile()).entries.values()]
    return RayPool(RayCluster(address, _embedded_cpus(settings, max(wanted, default=0))), base_models, settings, models)


def _embedded_cpus(settings: WorkerSettings, most_per_worker: float) -> int | None:
    """CPUs for an embedded Ray, which would count the machine's rather than the container's. None: no CPU limit.

    `most_per_worker`: the most that the models file asks for a worker.
    """
    if cpu_quota() is None:
        return None
    per_worker = max(1, settings.cpus_per_worker, math.ceil(most_per_worker))
    return max(usable_cpus(), settings.max_workers * per_worker)
