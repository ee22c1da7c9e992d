"""A running trainer removes old data, and a watch that reconnects after events were thinned still ends correctly."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import NotFound
from shared.security import audit
from tests.log_lines import log_lines
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.maintenance.test_prompt_store import metric
from tests.trainer_service.requests import create_job
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.jobs.store import event_compaction
from trainer_service.jobs.store.event_compaction import MAX_CURVE_EVENTS
from trainer_service.maintenance import retention
from trainer_service.maintenance.rounds import retention_rounds

A_MILLISECOND_OF_DAYS = 1e-8


async def cancelled_job(trainer: RunningTrainer) -> pb.TuningJob:
    job = await create_job(trainer)
    return (await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=job.name))).job


async def test_ended_jobs_and_unused_datasets_go_by_the_settings(settings: TrainerSettings) -> None:
    quick = {
        "retention_seconds": 0.05,
        "ended_job_days": A_MILLISECOND_OF_DAYS,
        "unused_dataset_days": 1.0,
    }
    with log_lines(audit.LOGGER) as lines:
        async with running_trainer(settings.model_copy(update=quick)) as trainer:
            port = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]
            waiting = await create_job(trainer, prompt="other")
            ended = await cancelled_job(trainer)

            async def gone() -> bool:
                return await metric(port, "retention_removed_total", what="jobs") == 1

            await until(gone)
            assert isinstance(
                await refused(trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=ended.name))), NotFound
            )
            listed = await trainer.tuning.ListDatasets(pb.ListDatasetsRequest())
            assert [item.name for item in listed.datasets] == [waiting.spec.dataset.dataset], (
                "a job that waits needs it"
            )
            await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=waiting.name))

            def are_gone() -> bool:
                with closing(sqlite3.connect(settings.data_dir / "jobs.sqlite3", timeout=600)) as database, database:
                    database.execute("UPDATE datasets SET last_use_time = 0")
                return not list(settings.datasets_dir.iterdir())

            await until(lambda: asyncio.to_thread(are_gone))
            assert await metric(port, "retention_rounds_total", outcome="succeeded") > 0
    removed = [line for line in lines if line["action"] == "tidying"]
    assert [line["tenant"] for line in removed if "job" in line] == ["anonymous"] * 2
    assert [line["dataset"] for line in removed if "dataset" in line] == [waiting.spec.dataset.dataset]


async def test_nothing_goes_when_days_are_zero_or_a_trainer_does_no_rounds(settings: TrainerSettings) -> None:
    kept = {"retention_seconds": 0.02, "ended_job_days": 0.0, "unused_dataset_days": 0.0}
    async with running_trainer(settings.model_copy(update=kept)) as trainer:
        port = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]
        ended = await cancelled_job(trainer)

        async def rounds() -> bool:
            return await metric(port, "retention_rounds_total", outcome="succeeded") >= 3

        await until(rounds)
        await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=ended.name))
        assert len((await trainer.tuning.ListDatasets(pb.ListDatasetsRequest())).datasets) == 1
    await retention_rounds(None, dict, 0.0, None).run()  # type: ignore[arg-type]


async def test_a_watch_that_resumes_in_thinned_events_ends_with_the_jobs_last_one(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_trainer(settings) as trainer:
        ended = await cancelled_job(trainer)
    job_id, last = ended.name.removeprefix("tuningJobs/"), 5000
    with (
        closing(sqlite3.connect(settings.data_dir / "jobs.sqlite3")) as database,
        database,
    ):  # as a long training leaves them
        database.execute(
            "UPDATE job_events SET number = ? WHERE job_id = ? AND number = ?", (last, job_id, ended.last_event)
        )
        database.execute("UPDATE jobs SET last_event = ? WHERE id = ?", (last, job_id))
        rows = [(job_id, number, 0.0, "progress", json.dumps({"step": number})) for number in range(2, last)]
        database.executemany(
            "INSERT INTO job_events (job_id, number, time, kind, payload) VALUES (?, ?, ?, ?, ?)", rows
        )
    monkeypatch.setattr(event_compaction, "COMPACT_AFTER_SECONDS", 0.0)
    async with running_trainer(settings.model_copy(update={"retention_seconds": 0.05})) as trainer:
        port = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]

        async def thinned() -> bool:
            return await metric(port, "retention_removed_total", what="events") > 0

        await until(thinned)
        for after in (0, 1, 2500, last - 2, last):
            watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=ended.name, after=after))
            events = [response.event async for response in watch if not response.event.HasField("heartbeat")]
            numbers = [event.number for event in events]
            assert numbers == sorted(set(numbers))
            assert all(number > after for number in numbers)
            assert len(events) <= MAX_CURVE_EVENTS + 2
            if after < last:
                assert events[-1].number == last
                assert events[-1].state_changed.state == pb.TuningJob.STATE_CANCELLED


async def test_an_unexpected_error_in_a_round_ends_nothing(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(retention.Retention, "round", broken)
    async with running_trainer(settings.model_copy(update={"retention_seconds": 0.02})) as trainer:
        port = json.loads(Path(settings.ready_file).read_bytes())["metrics_port"]

        async def failed() -> bool:
            return await metric(port, "retention_rounds_total", outcome="failed") >= 2

        await until(failed)
        await create_job(trainer)
