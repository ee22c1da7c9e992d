"""Each alert, on what the services themselves export while the fault it is for really happens; and none of them without
a fault.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Unavailable
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.layout import blob_key
from softprompt.gateway.server import serve as serve_gateway
from softprompt.gateway.settings import GatewaySettings
from tests.inference_service.replica import blob, matrix, publish, refusal
from tests.k8s.alert_jobs import ended, job_that, scripted
from tests.k8s.exposition import ONLY_UP
from tests.log_lines import log_lines
from tests.shared.security.pki import Authority
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.conftest import refused
from tests.trainer_service.requests import create_job
from tests.waiting import until


def asked(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "hello", "max_tokens": 4}


async def test_nothing_fires_while_all_is_well(faults: Any, tiny_model_dir: Path) -> None:
    async with (
        faults(scripted(), trainer={}, replica={}, gateway={}) as fault,
        httpx.AsyncClient(base_url=fault.gateway.url, timeout=None) as http,
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
        httpx.AsyncClient(base_url=fault.gateway.url, timeout=None) as http,
    ):
        fault.replica.stop.set()
        await fault.replica.done
        fault.targets["inference"] = ONLY_UP  # as if only the network between both had failed

        async def minute() -> None:
            assert (await http.post("/v1/completions", json=asked("tone"))).status_code == 503

        assert await fault.fires(15, minute) == {"SoftpromptGatewayFails"}


async def test_a_gateway_that_never_reached_the_replicas(faults: Any) -> None:
    settings, stop = GatewaySettings(port=0, inference="127.0.0.1:1", call_seconds=2), asyncio.Event()
    async with faults() as fault:
        with log_lines("softprompt.gateway.server", "listening") as lines:
            serving = asyncio.create_task(serve_gateway(settings, stop))
            await until(lambda: lines)
        fault.targets["gateway"] = lines[0]["metrics_port"]
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

        assert await fault.fires(90, minute) == {
            "SoftpromptErrorBudgetBurnsFast",
            "SoftpromptErrorBudgetBurnsSlowly",
            "SoftpromptClassBudgetBurnsFast",
            "SoftpromptClassBudgetBurns",
            "SoftpromptClassBudgetBurnsSlowly",
        }


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
    monkeypatch.setattr("shared.security.json_file._LOOK_SECONDS", 0.0)
    callers = tmp_path / "callers.json"
    callers.write_text(
        json.dumps({"callers": [{"name": "shop", "roles": ["admin"], "token_sha256": [hash_token(new_token())]}]})
    )
    async with faults(trainer={"callers_file": str(callers)}) as fault:
        assert await fault.value("softprompt_callers_file_current") == 1
        callers.unlink() if content is None else callers.write_text(content)
        assert await fault.fires(15) == {"SoftpromptCallersFileBroken"}


async def test_a_server_of_shared_limits_that_does_not_answer(faults: Any, tmp_path: Path) -> None:
    pytest.importorskip("limits")
    token, limits = new_token(), {"requests_per_second": 1000}
    caller = {"name": "shop", "roles": ["admin"], "token_sha256": [hash_token(token)], "limits": limits}
    (tmp_path / "callers.json").write_text(json.dumps({"callers": [caller]}))
    asked = {"callers_file": str(tmp_path / "callers.json"), "limits_storage": "redis://127.0.0.1:1/0"}
    async with faults(trainer=asked) as fault:

        async def minute() -> None:
            metadata = (("authorization", f"Bearer {token}"),)
            await fault.trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest(), metadata=metadata)

        assert await fault.fires(15, minute) == {"SoftpromptLimitsNotShared"}


async def test_a_certificate_that_runs_out(faults: Any, tmp_path: Path) -> None:
    certificate, key = Authority().issue("trainer", valid_hours=72).write(tmp_path)
    async with faults(trainer={"tls_certificate_file": str(certificate), "tls_key_file": str(key)}) as fault:
        assert await fault.fires(70) == {"SoftpromptCertificateExpires"}


async def test_first_tokens_that_come_late(faults: Any) -> None:
    async with faults(replica={"max_running": 1}) as fault:

        async def late_and_all() -> tuple[float, float]:
            quick, every = [
                await fault.replica.metric("time_to_first_token_seconds_bucket", le=le) for le in ("2.5", "+Inf")
            ]
            return every - quick, every

        async def minute() -> None:
            """More and more requests at once, until a tenth of all has waited for longer than the alert allows."""
            before, num_at_once = await late_and_all(), 4
            late = every = 0.0
            while late <= 0.1 * every:
                await asyncio.gather(
                    *(fault.replica.generate("hello", max_new_tokens=400, ignore_eos=True) for _ in range(num_at_once))
                )
                late, every = (now - then for now, then in zip(await late_and_all(), before, strict=True))
                num_at_once *= 2

        assert await fault.fires(25, minute) == {"SoftpromptFirstTokenSlow"}


async def test_requests_that_lose_their_place(faults: Any) -> None:
    async with faults(
        replica={"max_running": 8, "max_length": 256, "kv_cache_bytes": 256 * 2 * 2 * 2 * 32 * 4}
    ) as fault:

        async def minute() -> None:
            while await fault.replica.metric("preemptions_total") < 8:
                await asyncio.gather(
                    *(fault.replica.generate("hello", max_new_tokens=150, ignore_eos=True) for _ in range(8))
                )

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
