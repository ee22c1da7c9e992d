"""Base models with different limits under the whole manager: workers, and the time that a launch may take."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.model.models_file import ModelsFile
from tests.trainer_service.builders import BASE_MODEL, effective_spec, spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.jobs.model import Note
from trainer_service.jobs.states import JobState


def models_file(path: Path, **workers: dict[str, Any]) -> ModelsFile:
    entries = [{"id": name, "source": f"/models/{name}", "workers": said} for name, said in workers.items()]
    path.write_text(json.dumps({"models": entries}))
    return ModelsFile(path)


async def create(service: Service, base_model: str, prompt: str) -> str:
    service.admission.base = effective_spec(replace(BASE_MODEL, id=base_model))
    return (await service.manager.create(spec("forever", prompt))).id


def workers_of(service: Service) -> Counter[str]:
    """Workers that have not been closed, by base model."""
    return Counter(worker.base_model for worker in service.pool.workers if not worker.is_closed)


async def test_each_base_model_gets_its_own_number_of_workers(service: Service, tmp_path: Path) -> None:
    service.models = models_file(tmp_path / "models.json", narrow={"most": 1}, kept={"least": 1})
    await service.start(max_workers=5, max_jobs_per_worker=1, worker_idle_seconds=0.1)
    narrow = [await create(service, "narrow", f"narrow-{number}") for number in range(4)]
    wide = [await create(service, "wide", f"wide-{number}") for number in range(4)]

    async def states(ids: list[str]) -> Counter[JobState]:
        return Counter([(await service.manager.get(id)).state for id in ids])

    async def all_places_are_taken() -> bool:
        assert workers_of(service)["narrow"] <= 1
        assert workers_of(service).total() <= 5
        running = (await states(narrow))[JobState.RUNNING], (await states(wide))[JobState.RUNNING]
        return running == (1, 3) and workers_of(service) == {"narrow": 1, "wide": 3, "kept": 1}

    await until(all_places_are_taken)
    service.finish.set()

    async def all_have_ended() -> bool:
        assert workers_of(service)["narrow"] <= 1
        return await states([*narrow, *wide]) == {JobState.SUCCEEDED: 8}

    await until(all_have_ended)
    await until(lambda: workers_of(service) == {"kept": 1})


async def test_a_launch_takes_no_longer_than_its_base_model_may(service: Service, tmp_path: Path) -> None:
    launched = Counter[str]()

    class NeverThere:
        async def start(self) -> None: ...

        async def launch(self, base_model: str) -> Any:
            launched[base_model] += 1
            await asyncio.Event().wait()

        async def close(self) -> None: ...

    service.models = models_file(
        tmp_path / "models.json", quick={"launch_seconds": 0.05, "num_gpus": 3, "memory_bytes": 1 << 30}
    )
    await service.start(NeverThere(), max_workers=2, launch_seconds=600)
    quick, _ = [await create(service, base_model, base_model) for base_model in ("quick", "slow")]
    await until(lambda: launched["quick"] >= 3 and launched["slow"])
    assert launched["slow"] == 1

    def notes() -> list[str]:
        found = [event.payload for event in service.store.events(quick, 0)]
        return [payload.text for payload in found if isinstance(payload, Note)]

    await until(lambda: bool(notes()))
    needed = "num_gpus 3, memory_bytes 1,073,741,824, the rest by SOFTPROMPT_TRAINER_CPUS_PER_WORKER"
    of_worker = f"labels that a worker of base model 'quick' needs ({needed})"
    assert f"no node had the processors, GPUs, memory and {of_worker}" in notes()[0]
    assert len(notes()) == 1, "once, however often the launch fails"


async def test_workers_that_are_kept_leave_one_place_to_other_base_models(service: Service, tmp_path: Path) -> None:
    service.models = models_file(tmp_path / "models.json", kept={"least": 2})
    await service.start(max_workers=2, max_jobs_per_worker=1, worker_idle_seconds=0.1)
    await until(lambda: workers_of(service) == {"kept": 2})
    other = await create(service, "other", "other")
    await service.state(other, JobState.RUNNING)
    assert workers_of(service) == {"kept": 1, "other": 1}
    service.finish.set()
    await service.state(other, JobState.SUCCEEDED)
    await until(lambda: workers_of(service) == {"kept": 2})
