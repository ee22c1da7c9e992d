"""Publication of a trained prompt: the gate against the version that is current at that time, and waiting for the
replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shared.prompt.blob import decode_blob, encode_blob
from shared.prompt.manifest import utc_now
from shared.store import AliasTarget, LoadedVersion, RefusedVersion, ReplicaRecord, VersionRecord
from shared.store.fleet import Serving, serving
from shared.store.replicas import ReplicaDirectory
from shared.values.base_model import BaseModelInfo
from shared.values.results import TuningResult
from shared.values.spec import PublishGate, PublishPolicy
from tests.shared.prompt.blobs import base_model_info, manifest, soft_prompt
from tests.trainer_service.builders import BASE_MODEL, effective_spec, spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.jobs.model import Job, Note
from trainer_service.jobs.states import JobState
from trainer_service.publish import rollout

BEAT_CURRENT = PublishPolicy(gate=PublishGate(beat_current=True))


def put_version(service: Service, number: int, model: BaseModelInfo = BASE_MODEL) -> VersionRecord:
    """A version that another publisher made, and that gets the default alias."""
    blob = encode_blob(soft_prompt(number), manifest("tone", base_model=model))
    made: VersionRecord = service.prompt_store.publish("tone", blob, job=f"other-{number}")
    return made


def result_of(job: Job) -> TuningResult:
    assert job.result is not None
    return job.result


def current(service: Service) -> list[int]:
    return [target.version for target in service.prompt_store.refresh().prompt("tone").aliases["default"].targets]


async def test_a_job_that_beats_the_current_version_takes_its_place(service: Service) -> None:
    manager = await service.start()
    put_version(service, 1)
    job = await manager.create(spec(publish=BEAT_CURRENT))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.version, result.alias_moved) == ("prompts/tone/versions/2", True)
    assert result.current_version == "prompts/tone/versions/1"
    assert current(service) == [2]


async def test_a_current_version_that_cannot_be_compared_is_not_beaten(service: Service) -> None:
    """The alias names a version of another base model: the two losses can not be compared."""
    manager = await service.start()
    put_version(service, 1, base_model_info())
    job = await manager.create(spec(publish=BEAT_CURRENT))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.published, result.current_version) == (False, "prompts/tone/versions/1")
    assert "the current version was not measured" in result.gate_decision
    assert current(service) == [1]


@pytest.mark.parametrize(("num_steps", "published"), [(20, True), (1, False)])
async def test_a_current_version_of_another_base_model_is_compared_by_its_kept_answers(
    service: Service, num_steps: int, published: bool
) -> None:
    manager = await service.start()
    old = await manager.create(spec(num_steps=2))
    await service.state(old.id, JobState.SUCCEEDED)
    service.admission.base = effective_spec(base_model_info())
    job = await manager.create(spec(num_steps=num_steps, publish=BEAT_CURRENT))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.published, result.current_version) == (published, "prompts/tone/versions/1")
    verb = "beats" if published else "does not beat"
    assert f"loss {1 / num_steps:.4g} {verb} 0.5 of the current version" in result.gate_decision
    assert result.current_metrics == {"loss": 0.5}
    assert current(service) == [2 if published else 1]


async def test_a_version_that_became_current_after_the_comparison_is_left_in_place(service: Service) -> None:
    manager = await service.start()
    put_version(service, 1)
    job = await manager.create(spec("forever", num_steps=150, publish=BEAT_CURRENT))
    await service.until(job.id, lambda job: job.progress.step > 5)
    put_version(service, 2)
    service.finish.set()
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.published, result.version, result.alias_moved) == (True, "prompts/tone/versions/3", False)
    assert "left alone" in result.gate_decision
    assert current(service) == [2]


async def test_of_a_shared_alias_the_version_with_most_of_the_traffic_is_current(service: Service) -> None:
    manager = await service.start()
    put_version(service, 1)
    put_version(service, 2)
    service.prompt_store.set_alias("tone", "default", [AliasTarget(1, 90), AliasTarget(2, 10)])
    job = await manager.create(spec(publish=BEAT_CURRENT))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.current_version, result.alias_moved) == ("prompts/tone/versions/1", True)


def heartbeat(service: Service, replica: str, **said: Any) -> None:
    record = ReplicaRecord(id=replica, base_model_fingerprint=BASE_MODEL.fingerprint, started_at=utc_now(), **said)
    ReplicaDirectory(service.prompt_store.backend).put(record)


async def published(service: Service, job_id: str) -> dict[str, Any]:
    """What a replica reports of the version, once the job has published it."""
    await service.until(job_id, lambda job: service.versions("tone") == [1])
    record = service.prompt_store.refresh().prompt("tone").version(1)
    return {"prompt": "tone", "version": 1, "digest": record.digest}


async def test_a_job_may_wait_until_every_live_replica_serves_its_version(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[VersionRecord] = []

    def look(version: VersionRecord, replicas: Sequence[ReplicaRecord]) -> Serving:
        looks.append(version)
        return serving(version, replicas)

    monkeypatch.setattr(rollout, "serving", look)
    monkeypatch.setattr(rollout, "_LOOK_SECONDS", 0.02)
    manager = await service.start()
    heartbeat(service, "a")
    heartbeat(service, "b")
    ReplicaDirectory(service.prompt_store.backend).put(
        ReplicaRecord(id="other-model", base_model_fingerprint="sha256:other", started_at=utc_now())
    )
    job = await manager.create(spec(publish=PublishPolicy(wait_until_served_seconds=60)))
    about = await published(service, job.id)
    heartbeat(service, "a", loaded=(LoadedVersion(**about, loaded_at=utc_now()),))
    seen = len(looks)
    await until(lambda: len(looks) >= seen + 2)  # one of two is not all
    assert (await manager.get(job.id)).state is JobState.RUNNING
    heartbeat(service, "b", loaded=(LoadedVersion(**about, loaded_at=utc_now()),))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.served_by_all, result.serving) == (True, "served by 2 of 2 live replicas")
    notes = [event.payload.text async for event in manager.watch(job.id) if isinstance(event.payload, Note)]
    assert any("waiting until every live replica serves it" in note for note in notes)


async def test_a_refusal_ends_the_wait_and_is_reported(service: Service) -> None:
    manager = await service.start()
    heartbeat(service, "a")
    job = await manager.create(spec(publish=PublishPolicy(wait_until_served_seconds=60)))
    about = await published(service, job.id)
    heartbeat(service, "a", refused=(RefusedVersion(**about, reason="golden: 1.0 here, 2.0 there"),))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.published, result.served_by_all) == (True, False)
    assert result.serving == "served by 0 of 1 live replicas; a refused it: golden: 1.0 here, 2.0 there"


async def test_the_wait_ends_without_replicas_too(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec(publish=PublishPolicy(wait_until_served_seconds=0.1)))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.published, result.served_by_all) == (True, False)


async def test_cancelling_ends_the_wait_and_what_is_published_stays(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec(publish=PublishPolicy(wait_until_served_seconds=600)))
    await published(service, job.id)
    await manager.cancel(job.id)
    assert result_of(await service.state(job.id, JobState.SUCCEEDED)).version == "prompts/tone/versions/1"


async def test_a_restarted_trainer_goes_on_waiting(service: Service) -> None:
    manager = await service.start()
    heartbeat(service, "a")
    job = await manager.create(spec(publish=PublishPolicy(wait_until_served_seconds=60)))
    about = await published(service, job.id)
    await service.drain()
    manager = await service.start()
    heartbeat(service, "a", loaded=(LoadedVersion(**about, loaded_at=utc_now()),))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert (result.served_by_all, service.versions("tone")) == (True, [1])


async def test_what_the_gate_decided_and_on_which_numbers_is_in_the_job_and_in_the_manifest(service: Service) -> None:
    manager = await service.start()
    gate = PublishGate(beat_bare_model=True, minimum_metric=0.5)
    job = await manager.create(spec(num_steps=5, publish=PublishPolicy(gate=gate)))
    result = result_of(await service.state(job.id, JobState.SUCCEEDED))
    assert result.gate_decision == (
        "loss 0.2 (95 % interval 0.15 to 0.25, 20 held-out examples) is at most 0.5; "
        "loss 0.2 beats 1.5 of the bare model: better by 1.3 (95 % interval 1.25 to 1.35, 20 held-out examples)"
    )
    assert result.verdict == (
        "the prompt beats the bare model and the model with an instruction; "
        "loss 0.2 does not beat 0.15 of the model with an instruction and examples in its input: "
        "worse by 0.05 (95 % interval -0.1 to 0, 20 held-out examples)"
    )
    assert (result.metrics["loss"], result.template_metrics["loss"]) == (0.2, 1.5)
    assert (result.instructed_metrics["loss"], result.few_shot_metrics["loss"], result.num_shots) == (0.3, 0.15, 7)
    assert result.metric_low == pytest.approx(0.15)
    assert (result.metric_high, result.num_judging, result.judged_apart) == (0.25, 20, True)
    assert {one.rival: one.beats for one in result.comparisons} == {
        "bare_model": True,
        "instructed_model": True,
        "few_shot_model": False,
    }
    manifest = decode_blob(service.prompt_store.fetch(result.digest)).manifest
    decided: Any = manifest.gate
    assert (decided["decision"], decided["verdict"]) == (result.gate_decision, result.verdict)
    assert [one["rival"] for one in decided["comparisons"]] == [one.rival for one in result.comparisons]
    assert manifest.metrics["loss"] == 0.2
    assert result.verdict in [
        event.payload.text async for event in manager.watch(job.id) if isinstance(event.payload, Note)
    ]
    assert manifest.recipe["num_steps"] == 5
