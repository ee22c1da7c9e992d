"""Each alert, on what the services themselves export while the fault it is for really happens; and none of them without
a fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Unavailable
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.layout import blob_key
from shared.store.usage import COUNTS, HOUR_SECONDS, SegmentId, UsageRecord, UsageSegments, encode_segment
from softprompt.gateway.server import serve as serve_gateway
from softprompt.gateway.settings import GatewaySettings
from tests.inference_service.replica import blob, matrix, publish, refusal
from tests.k8s.alert_faults import SEEN, maker
from tests.k8s.exposition import ONLY_UP
from tests.k8s.test_rules import ALERTS
from tests.shared.security.pki import Authority
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.conftest import NoWorkers, RunningTrainer, refused
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.requests import create_job, first_step, inline
from tests.trainer_service.scripted import ScriptedTrainer
from tests.trainer_service.test_server import free_port
from tests.trainer_service.webhooks.receiver import receiver
from tests.waiting import until
from trainer_service import server
from trainer_service.maintenance import storage_usage
from trainer_service.webhooks import deliveries

DISK_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(storage_usage, "MEASURE_SECONDS", 0.02)


@pytest.fixture
def faults(tiny_model_dir: Path, tmp_path: Path) -> Any:
    """As `alert_faults.maker`."""
    return maker(tiny_model_dir, tmp_path)


def scripted(load: Callable[[str], Any] = lambda id: (ScriptedTrainer(64), {})) -> LocalPool:
    return LocalPool(load, close_seconds=1.0)


def used_bytes(disk: Path) -> int:
    """Of all its files but the filler."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    return shutil.disk_usage(disk).used


def job_that(wish: str, **fields: Any) -> dict[str, Any]:
    examples = [pb.Example(input=f"{wish} {n}", output="yes") for n in range(20)]
    fields.setdefault("hyperparameters", pb.Hyperparameters(num_steps=4, num_virtual_tokens=4))
    return {"dataset": inline(examples), **fields}


def asked(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "hello", "max_tokens": 4}


async def ended(trainer: RunningTrainer, job: pb.TuningJob) -> Any:
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name))
    return [response.event async for response in watch][-1].state_changed


async def test_nothing_fires_while_all_is_well(faults: Any, tiny_model_dir: Path) -> None:
    async with (
        faults(scripted(), trainer={}, replica={}, gateway={}) as fault,
        httpx.AsyncClient(base_url=fault.gateway.url, timeout=30) as http,
    ):
        publish(fault.replica.store, blob(tiny_model_dir, matrix(1)))

        async def traffic() -> None:
            job = await create_job(fault.trainer, **job_that("plain"))
            assert (await ended(fault.trainer, job)).state == pb.TuningJob.STATE_SUCCEEDED
            await fault.replica.generate("hello", "tone")
            await refusal(fault.replica.generate("hello", "nobody"))
            assert (await http.post("/v1/completions", json=asked("tone"))).status_code == 200
            assert (await http.post("/v1/completions", json=asked("nobody"))).status_code == 404
            await fault._look_at_the_store()

        await traffic()
        await fault.healthy()
        assert await fault.fires(400, traffic) == set()


async def test_a_trainer_that_waits_for_its_base_model_is_not_said_to_have_lost_the_store(faults: Any) -> None:
    async with faults(trainer={}) as fault:
        name = "softprompt_trainer_store_reachable"
        assert [value for (series, _), value in fault.before[0].samples.items() if series == name] == [1.0]


async def test_a_service_that_is_gone(faults: Any) -> None:
    async with faults(trainer={}, replica={}) as fault:
        fault.replica.stop.set()
        await fault.replica.done
        assert await fault.fires(15) == {"SoftpromptDown"}


async def test_a_gateway_that_is_gone(faults: Any) -> None:
    async with faults(replica={}, gateway={}) as fault:
        fault.gateway.stop.set()
        await fault.gateway.done
        assert await fault.fires(15) == {"SoftpromptDown"}


async def test_a_gateway_whose_services_are_away(faults: Any) -> None:
    async with (
        faults(replica={}, gateway={}) as fault,
        httpx.AsyncClient(base_url=fault.gateway.url, timeout=30) as http,
    ):
        fault.replica.stop.set()
        await fault.replica.done
        fault.targets["inference"] = ONLY_UP  # as if only the network between both had failed

        async def minute() -> None:
            assert (await http.post("/v1/completions", json=asked("tone"))).status_code == 503

        assert await fault.fires(15, minute) == {"SoftpromptGatewayFails"}


async def test_a_gateway_that_never_reached_the_replicas(faults: Any) -> None:
    settings = GatewaySettings(port=0, metrics_port=free_port(), inference="127.0.0.1:1", call_seconds=2)
    stop = asyncio.Event()
    async with faults() as fault:
        serving = asyncio.create_task(serve_gateway(settings, stop))
        fault.targets["gateway"] = settings.metrics_port
        await fault.until("softprompt_gateway_ready", 0)
        assert await fault.fires(15) == {"SoftpromptGatewayNotReady"}
        stop.set()
        await serving


async def test_a_service_that_has_no_target(faults: Any) -> None:
    async with faults(trainer={}) as fault:
        fault.targets["inference"] = None
        assert await fault.fires(20) == {"SoftpromptAbsent"}


async def test_calls_that_fail(faults: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    gone = publish(store, blob(tiny_model_dir, matrix(1)), alias=None)
    (tmp_path / "store" / blob_key(gone.digest)).unlink()
    async with faults(replica={"store_dir": tmp_path / "store"}) as fault:

        async def minute() -> None:
            assert isinstance(await refusal(fault.replica.generate("hello", "tone@1")), Unavailable)
            await fault.replica.generate("hello")

        assert await fault.fires(50, minute) == {"SoftpromptErrorBudgetBurnsFast", "SoftpromptErrorBudgetBurnsSlowly"}


async def test_a_full_queue(faults: Any) -> None:
    async with faults(trainer={"max_queued_jobs": 1}) as fault:
        await create_job(fault.trainer)

        async def minute() -> None:
            await refused(create_job(fault.trainer))

        assert await fault.fires(15, minute) == {"SoftpromptRefusesCalls"}


async def test_callers_without_a_token(faults: Any, tmp_path: Path) -> None:
    callers = tmp_path / "callers.json"
    callers.write_text(
        json.dumps({"callers": [{"name": "shop", "roles": ["admin"], "token_sha256": [hash_token(new_token())]}]})
    )
    async with faults(trainer={"callers_file": str(callers)}) as fault:

        async def minute() -> None:
            for _ in range(70):
                await refused(fault.trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest()))

        assert await fault.fires(25, minute) == {"SoftpromptRejectsCallers"}


@pytest.mark.parametrize("content", ['{"callers": [{"nam', None], ids=["broken", "gone"])
async def test_a_callers_file_that_cannot_be_used(
    faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr("shared.security.callers_file._LOOK_SECONDS", 0.0)
    callers = tmp_path / "callers.json"
    callers.write_text(
        json.dumps({"callers": [{"name": "shop", "roles": ["admin"], "token_sha256": [hash_token(new_token())]}]})
    )
    async with faults(trainer={"callers_file": str(callers)}) as fault:
        assert await fault.value("softprompt_callers_file_current") == 1
        callers.unlink() if content is None else callers.write_text(content)
        assert await fault.fires(15) == {"SoftpromptCallersFileBroken"}


async def test_a_certificate_that_runs_out(faults: Any, tmp_path: Path) -> None:
    certificate, key = Authority().issue("trainer", valid_hours=72).write(tmp_path)
    async with faults(trainer={"tls_certificate_file": str(certificate), "tls_key_file": str(key)}) as fault:
        assert await fault.fires(70) == {"SoftpromptCertificateExpires"}


async def test_first_tokens_that_come_late(faults: Any) -> None:
    async with faults(replica={"max_running": 1}) as fault:

        async def minute() -> None:
            begun = time.monotonic()
            await fault.replica.generate("hello", max_new_tokens=400, ignore_eos=True)
            queued = int(4 / (time.monotonic() - begun)) + 2
            await asyncio.gather(
                *(fault.replica.generate("hello", max_new_tokens=400, ignore_eos=True) for _ in range(queued))
            )

        assert await fault.fires(25, minute) == {"SoftpromptFirstTokenSlow"}


async def test_requests_that_lose_their_place(faults: Any) -> None:
    async with faults(
        replica={"max_running": 8, "max_length": 256, "kv_cache_bytes": 256 * 2 * 2 * 2 * 32 * 4}
    ) as fault:

        async def minute() -> None:
            while True:
                before = await fault.replica.metric("preemptions_total")
                await asyncio.gather(
                    *(fault.replica.generate("hello", max_new_tokens=150, ignore_eos=True) for _ in range(8))
                )
                assert await fault.replica.metric("preemptions_total") > before
                if await fault.replica.metric("preemptions_total") >= 8:
                    return

        assert "SoftpromptPreempts" in await fault.fires(35, minute)


async def test_a_replica_that_lost_the_prompt_store(faults: Any, tiny_model_dir: Path) -> None:
    async with faults(replica={}) as fault:
        await fault.until("softprompt_inference_store_last_contact_timestamp_seconds", 1)
        fault.replica.store_dir.rename(fault.replica.store_dir.with_name("away"))
        await fault.until("softprompt_inference_store_errors_total", 1)
        assert await fault.fires(10) == {"SoftpromptPromptStoreUnread"}
        fault.replica.store_dir.with_name("away").rename(fault.replica.store_dir)


async def test_a_damaged_version(faults: Any, tiny_model_dir: Path) -> None:
    async with faults(replica={}) as fault:
        publish(fault.replica.store, blob(tiny_model_dir, matrix(1)))
        await fault.replica.state("prompts/tone/versions/1", "LOADED")
        await fault.healthy()
        publish(fault.replica.store, blob(tiny_model_dir, matrix(2, hidden_size=32)))
        await fault.replica.state("prompts/tone/versions/2", "QUARANTINED")
        assert await fault.fires(12) == {"SoftpromptVersionQuarantined", "SoftpromptAliasBehind"}


async def test_a_version_for_another_base_model_is_everyday(faults: Any, tmp_path: Path) -> None:
    async with faults(replica={}) as fault:
        other = save_tiny_llama(tmp_path / "other", seed=7)
        publish(fault.replica.store, blob(other, matrix(1)))
        await fault.replica.state("prompts/tone/versions/1", "QUARANTINED")
        await fault.until("softprompt_inference_version_load_failures_total", 1, reason="base_model")
        assert await fault.fires(30) == set()


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
            await fault.until(failures, 2, reason="no_place")

        assert await fault.fires(50, minute) == {"SoftpromptJobsWaitWithoutWorkers", "SoftpromptWorkersDontStart"}


async def test_workers_that_can_t_load_their_model(faults: Any) -> None:
    def fail(base_model: str) -> Any:
        raise RuntimeError("the weights are damaged")

    async with faults(scripted(fail), trainer={}) as fault:
        await create_job(fault.trainer)
        failures = "softprompt_trainer_launch_failures_total"
        await fault.until(failures, 1, reason="lost")

        async def minute() -> None:
            await fault.until(failures, 2, reason="lost")

        assert await fault.fires(10, minute) == {"SoftpromptWorkersDontStart"}


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


async def test_a_prompt_store_that_is_away(faults: Any) -> None:
    async with faults(scripted(), trainer={}) as fault:
        store: Path = fault.trainer.settings.data_dir / "prompts"
        steps = pb.Hyperparameters(num_steps=500, num_virtual_tokens=4)
        job = await create_job(fault.trainer, **job_that("plain", hyperparameters=steps))
        await first_step(fault.trainer.tuning, job.name)
        store.rename(store.with_name("away"))
        await fault.until("softprompt_trainer_publish_failures_total", 1)

        async def minute() -> None:
            await fault.until("softprompt_trainer_publish_failures_total", 2)

        found = await fault.fires(35, minute)
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
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # a backup that hangs: the service reads on, and writes nothing
        failed = "softprompt_trainer_retention_rounds_total"
        await fault.until(failed, 1, outcome="failed")

        async def minute() -> None:
            await fault.until(failed, 1 + await fault.value(failed, outcome="failed"), outcome="failed")

        assert await fault.fires(140, minute) == {"SoftpromptRetentionFails"}
        other.close()


async def test_a_tenant_that_uses_up_its_budget(faults: Any, tmp_path: Path) -> None:
    budget = {"name": "one", "of": "requests", "limit": 1}
    callers = {"tenants": [{"name": "shop", "budgets": [budget]}], "callers": []}
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


def test_every_alert_was_seen_firing() -> None:
    """Runs last: of this module's tests, each alert has one that provokes it."""
    seen = SEEN if os.geteuid() == 0 else SEEN | {"SoftpromptDataDiskFillsUp", "SoftpromptDataDiskFull"}
    assert ALERTS.keys() <= seen or not SEEN, f"no fault provokes {sorted(ALERTS.keys() - seen)}"
