"""TuningService through a real channel: ordinary calls, and every change of state that a caller may request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Conflict, InvalidInput, NotFound, Overloaded, PreconditionFailed
from tests.retry_info import retry_delay_seconds
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import (
    NUM_EXAMPLES,
    chat_examples,
    classification_examples,
    create_job,
    inline,
    json_lines,
    upload_of,
)
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.training.recipe import defaults


async def get(trainer: RunningTrainer, name: str) -> pb.TuningJob:
    response = await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=name))
    job: pb.TuningJob = response.job
    return job


async def test_a_created_job_is_queued_with_nothing_left_open(trainer: RunningTrainer) -> None:
    job = await create_job(trainer, annotations={"team": "web"}, priority=3)
    assert job.name.startswith("tuningJobs/")
    assert job.state == pb.TuningJob.STATE_QUEUED
    assert job.spec.dataset.dataset.startswith("datasets/sha256-")
    assert dict(job.spec.annotations) == {"team": "web"}
    assert not job.spec.HasField("validation_fraction")
    effective = job.effective_spec
    assert effective.base_model == "tiny"
    assert effective.task == pb.TASK_KIND_GENERATION
    assert effective.template.text == "{input}"
    assert effective.hyperparameters.num_virtual_tokens == 64  # an eighth of the tiny context
    assert effective.hyperparameters.init.method == pb.PromptInit.METHOD_TEXT
    assert effective.hyperparameters.init.text
    assert effective.hyperparameters.learning_rate > 0
    assert effective.hyperparameters.num_steps > 0
    assert effective.validation_fraction == 0.1
    assert effective.max_runtime.seconds == 24 * 3600
    assert effective.priority == 3
    assert effective.publish.alias == "default"
    assert await get(trainer, job.name) == job


@pytest.mark.parametrize(
    ("examples", "task", "format"),
    [
        (classification_examples(), pb.TASK_KIND_CLASSIFICATION, "FORMAT_CHAT"),
        (chat_examples(), pb.TASK_KIND_CHAT, "FORMAT_CHAT"),
    ],
)
async def test_the_task_is_read_off_the_examples(
    trainer: RunningTrainer, examples: Any, task: int, format: str
) -> None:
    effective = (await create_job(trainer, dataset=inline(examples))).effective_spec
    assert effective.task == task
    assert effective.template.format == pb.TuningSpec().template.Format.Value(format)
    assert list(effective.labels) == (["even", "odd"] if task == pb.TASK_KIND_CLASSIFICATION else [])


async def test_an_uploaded_dataset_trains_and_validates(trainer: RunningTrainer) -> None:
    uploaded = await trainer.tuning.UploadDataset(upload_of(json_lines()))
    held_out = await trainer.tuning.UploadDataset(upload_of(json_lines(5)))
    assert (uploaded.num_examples, uploaded.task) == (NUM_EXAMPLES, pb.TASK_KIND_GENERATION)
    job = await create_job(
        trainer,
        dataset=pb.DatasetSource(dataset=uploaded.dataset),
        validation_dataset=pb.DatasetSource(dataset=held_out.dataset),
    )
    assert job.spec.dataset.dataset == uploaded.dataset
    assert job.effective_spec.validation_dataset.dataset == held_out.dataset
    assert job.effective_spec.WhichOneof("validation") == "validation_dataset"


async def test_inline_examples_and_the_same_upload_are_one_dataset(trainer: RunningTrainer) -> None:
    first, second = await create_job(trainer), await create_job(trainer)
    assert first.name != second.name
    assert first.spec.dataset == second.spec.dataset


async def test_a_file_under_an_allowed_root_is_copied_when_the_job_is_created(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    root = tmp_path / "shared-data"
    root.mkdir()
    (root / "train.jsonl").write_bytes(json_lines())
    source = pb.DatasetSource(uri=f"file://{root}/train.jsonl")
    async with running_trainer(settings.model_copy(update={"dataset_roots": (str(root),)})) as trainer:
        job = await create_job(trainer, dataset=source, validation_dataset=source)
        assert job.spec.dataset == job.spec.validation_dataset
        assert (
            settings.datasets_dir / f"{job.spec.dataset.dataset.removeprefix('datasets/')}.jsonl"
        ).read_bytes() == json_lines()
        outside = await refused(
            create_job(trainer, dataset=pb.DatasetSource(uri=f"file://{root}/../{settings.data_dir.name}/jobs.sqlite3"))
        )
        assert isinstance(outside, InvalidInput)
        (root / "train.jsonl").write_bytes(json_lines() + b"oops\n")
        broken = await refused(create_job(trainer, validation_dataset=source))
        assert isinstance(broken, InvalidInput)
        assert [violation.field for violation in broken.violations] == ["validation dataset line 21"]


async def test_held_out_examples_need_not_show_every_label(trainer: RunningTrainer) -> None:
    train, held_out = classification_examples(), [pb.Example(input="number 44", label="even")]
    job = await create_job(trainer, dataset=inline(train), validation_dataset=inline(held_out))
    assert list(job.effective_spec.labels) == ["even", "odd"]
    unknown = await refused(
        create_job(trainer, dataset=inline(train), validation_dataset=inline([pb.Example(input="1", label="prime")]))
    )
    assert isinstance(unknown, InvalidInput)
    assert [violation.field for violation in unknown.violations] == ["spec.validation_dataset.inline.examples[0].label"]


async def test_a_request_id_makes_one_job(trainer: RunningTrainer) -> None:
    jobs = await asyncio.gather(*(create_job(trainer, request_id="order-7") for _ in range(5)))
    assert len({job.name for job in jobs}) == 1
    other = await refused(create_job(trainer, request_id="order-7", prompt="another"))
    assert isinstance(other, Conflict)
    assert other.metadata["current"] == jobs[0].name
    assert len((await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest())).jobs) == 1


async def test_listing_pages_newest_first_and_filters(trainer: RunningTrainer) -> None:
    names = [(await create_job(trainer, prompt=f"prompt-{n % 2}", annotations={"n": str(n)})).name for n in range(7)]
    listed: list[str] = []
    token = ""
    while True:
        page = await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest(page_size=3, page_token=token))
        listed += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
        assert len(page.jobs) == 3
    assert listed == names[::-1]

    async def filtered(**fields: Any) -> list[str]:
        return [job.name for job in (await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest(**fields))).jobs]

    assert await filtered(prompt="prompt-1") == [names[5], names[3], names[1]]
    assert await filtered(annotations={"n": "4"}) == [names[4]]
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=names[2]))
    assert await filtered(states=[pb.TuningJob.STATE_CANCELLED]) == [names[2]]
    assert len(await filtered(states=[pb.TuningJob.STATE_QUEUED, pb.TuningJob.STATE_CANCELLED])) == 7


async def test_cancel_pause_resume_delete(trainer: RunningTrainer) -> None:
    name = (await create_job(trainer)).name
    paused = await trainer.tuning.PauseTuningJob(pb.PauseTuningJobRequest(name=name))
    assert paused.job.state == pb.TuningJob.STATE_PAUSED
    resumed = await trainer.tuning.ResumeTuningJob(pb.ResumeTuningJobRequest(name=name))
    assert resumed.job.state == pb.TuningJob.STATE_QUEUED
    too_early = await refused(trainer.tuning.DeleteTuningJob(pb.DeleteTuningJobRequest(name=name)))
    assert isinstance(too_early, PreconditionFailed)
    assert too_early.metadata["state"] == "QUEUED"
    for _ in range(2):
        cancelled = await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name))
        assert cancelled.job.state == pb.TuningJob.STATE_CANCELLED
    ended = await refused(trainer.tuning.ResumeTuningJob(pb.ResumeTuningJobRequest(name=name)))
    assert isinstance(ended, PreconditionFailed)
    assert ended.metadata["state"] == "CANCELLED"
    await trainer.tuning.DeleteTuningJob(pb.DeleteTuningJobRequest(name=name))
    assert isinstance(await refused(trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=name))), NotFound)


async def test_a_watch_resumes_after_a_number_and_ends_with_the_job(trainer: RunningTrainer) -> None:
    name = (await create_job(trainer)).name
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
    first = (await watch.read()).event
    assert (first.number, first.state_changed.state) == (1, pb.TuningJob.STATE_QUEUED)
    watch.cancel()
    await trainer.tuning.PauseTuningJob(pb.PauseTuningJobRequest(name=name))
    resumed = aiter(trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name, after=first.number)))
    second = (await anext(resumed)).event
    assert (second.number, second.state_changed.state) == (2, pb.TuningJob.STATE_PAUSED)
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name))
    rest = [response.event async for response in resumed]
    assert [event.number for event in rest] == [3]
    assert rest[-1].state_changed.state == pb.TuningJob.STATE_CANCELLED
    again = [
        response.event.number async for response in trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
    ]
    assert again == [1, 2, 3]


async def test_a_job_that_will_not_see_every_example_says_so(
    trainer: RunningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_STEPS", 9)  # in earnest it takes 128,000 examples
    name = (await create_job(trainer, hyperparameters=pb.Hyperparameters(batch_size=1))).name
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
    events = [(await watch.read()).event for _ in range(2)]
    watch.cancel()
    assert events[1].note.startswith("9 steps of 1 see 9 of the 18 training examples (50 %)")


async def test_unknown_jobs_are_not_found(trainer: RunningTrainer) -> None:
    name = "tuningJobs/00000000000000000000000000"
    for method, request in (
        ("GetTuningJob", pb.GetTuningJobRequest(name=name)),
        ("CancelTuningJob", pb.CancelTuningJobRequest(name=name)),
        ("PauseTuningJob", pb.PauseTuningJobRequest(name=name)),
        ("ResumeTuningJob", pb.ResumeTuningJobRequest(name=name)),
        ("DeleteTuningJob", pb.DeleteTuningJobRequest(name=name)),
    ):
        error = await refused(getattr(trainer.tuning, method)(request))
        assert isinstance(error, NotFound), method
        assert "00000000000000000000000000" in error.message
    error = await refused(trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name)).read())
    assert isinstance(error, NotFound)


MALFORMED = ["", "tuningJobs/", "tuningJobs/../../etc/passwd", "jobs/1", "tuningJobs/A", "tuningJobs/" + "a" * 100]


async def test_malformed_job_names_are_refused(trainer: RunningTrainer) -> None:
    for name in MALFORMED:
        error = await refused(trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=name)))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "name"


async def test_listing_refuses_what_it_did_not_make(trainer: RunningTrainer) -> None:
    for field, request in (
        ("page_size", pb.ListTuningJobsRequest(page_size=-1)),
        ("page_token", pb.ListTuningJobsRequest(page_token="../../x")),
        ("states[0]", pb.ListTuningJobsRequest(states=[99])),  # type: ignore[list-item]
    ):
        error = await refused(trainer.tuning.ListTuningJobs(request))
        assert isinstance(error, InvalidInput), field
        assert error.violations[0].field == field
    error = await refused(trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name="tuningJobs/a", after=-1)).read())
    assert isinstance(error, InvalidInput)


async def test_a_full_queue_says_when_to_try_again(settings: TrainerSettings) -> None:
    async with running_trainer(settings.model_copy(update={"max_queued_jobs": 2})) as trainer:
        for _ in range(2):
            await create_job(trainer)
        error = await refused(create_job(trainer))
    assert isinstance(error, Overloaded)
    assert retry_delay_seconds(error) == 30


async def test_service_info_tells_models_limits_and_defaults(trainer: RunningTrainer) -> None:
    await create_job(trainer)
    info = await trainer.tuning.GetServiceInfo(pb.GetServiceInfoRequest())
    assert [model.id for model in info.base_models] == ["tiny"]
    assert info.base_models[0].fingerprint.startswith("sha256:")
    assert info.base_models[0].hidden_size == 64
    assert info.limits.max_virtual_tokens == trainer.settings.max_virtual_tokens
    assert info.limits.max_line_bytes == trainer.settings.max_line_bytes
    assert info.default_hyperparameters.num_virtual_tokens == 64
    assert (info.queued_jobs, info.running_jobs) == (1, 0)
    assert info.software_version


async def test_jobs_survive_a_restart(settings: TrainerSettings) -> None:
    async with running_trainer(settings) as trainer:
        job = await create_job(trainer)
    async with running_trainer(settings) as trainer:
        found = await get(trainer, job.name)
        found.estimated_start_time.CopyFrom(job.estimated_start_time)  # a guess, made anew each time
        assert found == job


async def test_health_and_a_drain_that_ends_watches(settings: TrainerSettings) -> None:
    async with running_trainer(settings) as trainer:
        for service in ("", "live", "ready", "prompttuning.v1.TuningService", "prompttuning.v1.PromptService"):
            assert await trainer.health(service) == health_pb2.HealthCheckResponse.SERVING
        watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=(await create_job(trainer)).name))
        await watch.read()
        trainer.stop.set()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(trainer.task.done)


async def test_a_watcher_that_vanishes_leaves_nothing(trainer: RunningTrainer) -> None:
    name = (await create_job(trainer)).name
    before = len(asyncio.all_tasks())
    watches = [trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name)) for _ in range(20)]
    await asyncio.gather(*(watch.read() for watch in watches))
    for watch in watches:
        watch.cancel()
    await until(lambda: len(asyncio.all_tasks()) <= before + 2)
