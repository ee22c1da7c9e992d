"""Each alert on the trainer, its jobs and its storage, on what a trainer exports while the fault it is for happens."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared import invariants
from shared.invariants import Invariant
from shared.store import open_store
from shared.store.usage import COUNTS, HOUR_SECONDS, SegmentId, UsageRecord, UsageSegments, encode_segment
from tests.k8s.alert_jobs import ended, job_that, scripted
from tests.trainer_service.conftest import NoWorkers
from tests.trainer_service.requests import create_job
from tests.trainer_service.scripted import ScriptedTrainer
from tests.trainer_service.webhooks.receiver import receiver
from tests.waiting import until
from trainer_service.publish import publisher
from trainer_service.webhooks import deliveries

DISK_BYTES = 64 << 20


def used_bytes(disk: Path) -> int:
    """Of all its files but the filler."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    return shutil.disk_usage(disk).used


async def test_no_worker_comes(faults: Any) -> None:
    """The pool never places a worker: it is pending, and not a worker that is there."""
    async with faults(NoWorkers(), trainer={}) as fault:
        await create_job(fault.trainer)
        await fault.until("softprompt_trainer_workers", 1, base_model="tiny", state="pending")
        await fault.until("softprompt_trainer_oldest_queued_seconds", 0.01, base_model="tiny")
        assert await fault.fires(30, fault.queue_grows_older) == {"SoftpromptJobsWaitWithoutWorkers"}


async def test_no_worker_comes_within_the_time_for_a_launch(faults: Any) -> None:
    async with faults(NoWorkers(), trainer={"launch_seconds": 0.05}) as fault:
        await create_job(fault.trainer)
        failures = "softprompt_trainer_launch_failures_total"
        await fault.until(failures, 1, reason="no_place")

        async def minute() -> None:
            await fault.rises(failures, reason="no_place")
            await fault.queue_grows_older()

        assert await fault.fires(90, minute) == {"SoftpromptJobsWaitWithoutWorkers", "SoftpromptWorkersDontStart"}


async def test_workers_that_can_t_load_their_model(faults: Any) -> None:
    def fail(base_model: str) -> Any:
        raise RuntimeError("the weights are damaged")

    async with faults(scripted(fail), trainer={}) as fault:
        await create_job(fault.trainer)
        failures = "softprompt_trainer_launch_failures_total"
        await fault.until(failures, 1, reason="lost")
        assert await fault.fires(10, partial(fault.rises, failures, reason="lost")) == {"SoftpromptWorkersDontStart"}


async def test_a_base_model_that_is_missing(faults: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    both = (f"tiny={tiny_model_dir}", f"late={tmp_path / 'late'}")
    async with faults(scripted(), trainer={"base_models": both}) as fault:
        await fault.until("softprompt_trainer_base_models", 1, base_model="late", state="unavailable")
        assert await fault.fires(30) == {"SoftpromptBaseModelUnavailable"}


async def test_a_job_that_waits_for_hours_behind_another(faults: Any) -> None:
    async with faults(scripted(), trainer={"max_jobs_per_worker": 1}) as fault:
        running = await create_job(fault.trainer, **job_that("forever"))
        await fault.until("softprompt_trainer_workers", 1, state="ready")
        await fault.until("softprompt_trainer_jobs", 1, state="RUNNING")
        await create_job(fault.trainer, **job_that("plain"))
        await fault.until("softprompt_trainer_oldest_queued_seconds", 0.01)
        assert await fault.fires(300, fault.queue_grows_older) == {"SoftpromptQueueOld"}
        await fault.trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=running.name))


async def test_jobs_that_the_service_fails(faults: Any) -> None:
    async with faults(scripted(), trainer={}) as fault:
        job = await create_job(fault.trainer, **job_that("huge"))
        assert (await ended(fault.trainer, job)).error.code == "OUT_OF_MEMORY"
        assert await fault.fires(5) == {"SoftpromptJobsFail"}


async def test_jobs_that_fail_by_their_data_concern_only_their_callers(faults: Any) -> None:
    async with faults(scripted(), trainer={}) as fault:
        job = await create_job(fault.trainer, **job_that("nan"))
        assert (await ended(fault.trainer, job)).error.code == "NAN_LOSS"
        assert await fault.fires(30) == set()


async def test_workers_that_die(faults: Any) -> None:
    pool = scripted()
    async with faults(pool, trainer={}) as fault:
        job = await create_job(fault.trainer, **job_that("forever"))

        async def kill_one() -> None:
            lost = "softprompt_trainer_workers_ended_total"
            await fault.until("softprompt_trainer_workers", 1, state="ready")
            num_killed = len(pool.workers)
            pool.workers[-1].kill()
            await fault.until(lost, num_killed, reason="lost")

        await kill_one()
        assert await fault.fires(8, kill_one) == {"SoftpromptWorkersDie"}
        await fault.trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=job.name))


async def test_a_prompt_store_that_is_away(faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_LAST_PAUSE_SECONDS", 0.25)
    finish = threading.Event()
    async with faults(scripted(lambda id: (ScriptedTrainer(64, finish=finish), {})), trainer={}) as fault:
        store: Path = fault.trainer.settings.data_dir / "prompts"
        await create_job(fault.trainer, **job_that("forever"))
        await fault.until("softprompt_trainer_jobs", 1, state="RUNNING")
        store.rename(store.with_name("away"))
        finish.set()
        failures = "softprompt_trainer_publish_failures_total"
        await fault.until(failures, 1)
        await until(partial(fault.below, "softprompt_trainer_store_reachable", 1))
        found = await fault.fires(35, partial(fault.rises, failures))
        assert found == {"SoftpromptPublishFails", "SoftpromptTrainerStoreUnreachable"}
        shutil.rmtree(store, ignore_errors=True)
        store.with_name("away").rename(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of the test's own, where the trainer of `faults` has its data."""
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    disk = tmp_path / "data"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_disk_that_fills_up_and_is_full(faults: Any, small_disk: Path) -> None:
    async with faults(scripted(), trainer={}) as fault:
        for part, alerts in (
            (0.7, {"SoftpromptDataDiskFillsUp"}),
            (0.95, {"SoftpromptDataDiskFillsUp", "SoftpromptDataDiskFull"}),
        ):
            (small_disk / "filler").write_bytes(bytes(int(part * DISK_BYTES) - used_bytes(small_disk)))
            await fault.until("softprompt_trainer_disk_bytes", 1, kind="free")
            limit = (1.02 - part) * DISK_BYTES
            await until(partial(fault.below, "softprompt_trainer_disk_bytes", limit, kind="free"))
            assert await fault.fires(90) == alerts


async def test_a_job_database_that_has_grown_large(faults: Any) -> None:
    async with faults(scripted(), trainer={}) as fault:
        (database,) = fault.trainer.settings.data_dir.glob("*.sqlite3")
        os.truncate(database, 21_000_000_000)  # a hole: no disk is used
        await fault.until("softprompt_trainer_stored_bytes", 20e9, what="database")
        assert await fault.fires(90) == {"SoftpromptJobDatabaseLarge"}


async def test_old_things_that_can_t_be_removed(faults: Any) -> None:
    async with faults(scripted(), trainer={"retention_seconds": 0.02, "database_timeout_seconds": 1}) as fault:
        (database,) = fault.trainer.settings.data_dir.glob("*.sqlite3")
        other = sqlite3.connect(database, isolation_level=None, timeout=600)
        other.execute("BEGIN IMMEDIATE")  # a backup that hangs: the service reads on, and writes nothing
        failed = "softprompt_trainer_retention_rounds_total"
        await fault.until(failed, 1, outcome="failed")
        assert await fault.fires(140, partial(fault.rises, failed, outcome="failed")) == {"SoftpromptRetentionFails"}
        other.close()


async def test_a_webhook_that_refuses_its_events(faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "LOOK_SECONDS", 0.02)
    with receiver() as heard:
        heard.answer = lambda event: 500
        file = heard.write_file(tmp_path / "webhooks.json")
        async with faults(scripted(), trainer={"webhooks_file": file, "webhook_attempts": 1}) as fault:
            dead = "softprompt_trainer_webhook_attempts_total"

            async def minute() -> None:
                before = await fault.value(dead, outcome="dead")
                await fault.trainer.tuning.TestWebhook(pb.TestWebhookRequest(name="here"))
                await fault.until(dead, 1 + before, outcome="dead")

            await minute()
            assert await fault.fires(60, minute) == {"SoftpromptWebhooksGivenUp"}


async def test_a_tenant_that_uses_up_its_budget(faults: Any, tmp_path: Path) -> None:
    budget = {"name": "one", "of": "requests", "limit": 1}
    callers = {"tenants": [{"name": "shop", "budgets": [budget]}]}
    callers["callers"] = [{"name": "app", "tenant": "shop", "roles": ["generator"], "token_sha256": ["a" * 64]}]
    (tmp_path / "callers.json").write_text(json.dumps(callers))
    store = tmp_path / "prompts"
    asked = {"callers_file": str(tmp_path / "callers.json"), "store_url": str(store), "usage_seconds": 0.1}
    async with faults(scripted(), trainer=asked) as fault:
        hour = int(time.time()) // HOUR_SECONDS * HOUR_SECONDS
        counts: dict[str, Any] = dict.fromkeys(COUNTS, 1)
        used = UsageRecord(hour=hour, tenant="shop", caller="app", base_model="tiny", **counts)
        UsageSegments(open_store(str(store)).backend).publish(SegmentId("0" * 32, 1), encode_segment([used]))
        await fault.until("softprompt_trainer_budget_used_ratio", 1, budget="one")

        async def minute() -> None:
            return None

        assert await fault.fires(5, minute) == {"SoftpromptBudgetUsedUp"}


async def test_usage_that_can_not_be_read(faults: Any, tmp_path: Path) -> None:
    store = tmp_path / "prompts"
    async with faults(scripted(), trainer={"store_url": str(store), "usage_seconds": 0.1}) as fault:
        segments, numbers = UsageSegments(open_store(str(store)).backend), itertools.count(1)
        counted = "softprompt_trainer_usage_segments_total"

        async def minute() -> None:
            number = next(numbers)
            segments.publish(SegmentId("0" * 32, number), b"damaged\n")
            await fault.until(counted, number, outcome="refused")

        await minute()
        assert await fault.fires(60, minute) == {"SoftpromptUsageNotCounted"}


async def test_a_broken_invariant(faults: Any) -> None:
    async with faults(scripted(), trainer={}) as fault:

        async def minute() -> None:
            invariants.check(False, Invariant.JOB_ON_ONE_WORKER, job="one")

        assert await fault.fires(10, minute) == {"SoftpromptInvariantBroken"}
