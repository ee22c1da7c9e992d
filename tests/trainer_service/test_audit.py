"""What the trainer's log lines name: the caller of each change, and the job, dataset or version that it made."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb
from safetensors.torch import save

from shared.security import audit
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from tests.log_lines import log_lines
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.requests import create_job, json_lines, tuning_spec, upload_of
from tests.trainer_service.test_prompt_service import MATRIX, import_of, publish, set_alias, target
from tests.waiting import until
from trainer_service.config import TrainerSettings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = (("x-request-id", "r-1"), ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"))


async def test_the_audit_names_what_was_made(trainer: RunningTrainer) -> None:
    with log_lines(audit.LOGGER) as lines:
        dataset = (await trainer.tuning.UploadDataset(upload_of(json_lines()))).dataset
        job = (await trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=tuning_spec()))).job
        version = await publish(trainer)
        await publish(trainer)
        moved = await set_alias(trainer, "stable", target(2))
        deleting = prompts_pb2.SetPromptAliasRequest(prompt="prompts/colours", alias="default", targets=[target(2)])
        await trainer.prompts.SetPromptAlias(deleting)
        deleted = await trainer.prompts.DeletePromptVersion(prompts_pb2.DeletePromptVersionRequest(name=version.name))
    upload, creation, first_import, _, move, _, deletion = lines
    assert (upload["action"], upload["dataset"]) == ("TuningService/UploadDataset", dataset)
    assert (creation["action"], creation["prompt"]) == ("TuningService/CreateTuningJob", "support-tone")
    assert f"tuningJobs/{creation['job']}" == job.name
    assert (first_import["prompt"], first_import["version"]) == ("colours", "prompts/colours/versions/1")
    assert (move["alias"], move["targets"], move["revision"]) == ("stable", "2x1", str(moved.revision))
    assert (deletion["prompt"], deletion["revision"]) == ("colours/versions/1", str(deleted.revision))
    assert {line["result"] for line in lines} == {"OK"}
    assert {line["caller"] for line in lines} == {"anonymous"}


async def test_a_job_that_ends_leaves_one_line_with_its_state_however_it_ended(
    trainer: RunningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline, real = Timestamp(), time.time
    deadline.FromSeconds(int(real()) + 3600)
    with log_lines(audit.LOGGER) as lines:
        late = await create_job(trainer, deadline=deadline)
        unwanted = await create_job(trainer)
        for _ in range(2):
            await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=unwanted.name))
        monkeypatch.setattr(time, "time", lambda: real() + 7200)
        await until(lambda: sum(line["action"] == "end" for line in lines) == 2)
    cancelled, expired = sorted(
        (line for line in lines if line["action"] == "end"), key=lambda line: str(line["state"])
    )
    assert (cancelled["job"], cancelled["state"]) == (unwanted.name.removeprefix("tuningJobs/"), "CANCELLED")
    assert "error" not in cancelled
    assert (expired["job"], expired["state"], expired["error"]) == (
        late.name.removeprefix("tuningJobs/"),
        "FAILED",
        "DEADLINE_EXCEEDED",
    )
    assert {(line["caller"], line["prompt"]) for line in (cancelled, expired)} == {("anonymous", "support-tone")}


async def test_manual_changes_have_an_actor_and_downloads_are_audited(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    token = new_token()
    caller = {"name": "release", "roles": ["publisher"], "prompts": ["colours"], "token_sha256": [hash_token(token)]}
    (tmp_path / "callers.json").write_text(json.dumps({"callers": [caller]}))
    metadata = (("authorization", f"Bearer {token}"),)
    async with running_trainer(settings.model_copy(update={"callers_file": str(tmp_path / "callers.json")})) as trainer:
        with log_lines(audit.LOGGER) as audited, log_lines("trainer_service.prompts") as logged:
            matrix = save({"prompt_embeddings": MATRIX})
            for _ in range(2):
                await trainer.prompts.ImportPromptVersion(import_of(matrix), metadata=metadata)
            moving = prompts_pb2.SetPromptAliasRequest(prompt="colours", alias="stable", targets=[target(2)])
            await trainer.prompts.SetPromptAlias(moving, metadata=metadata)
            await trainer.prompts.DeletePromptVersion(
                prompts_pb2.DeletePromptVersionRequest(name="colours@1"), metadata=metadata
            )
            for name in ("colours@2", "acme-layoffs@1"):
                call = trainer.prompts.DownloadPromptVersion(
                    prompts_pb2.DownloadPromptVersionRequest(name=name), metadata=metadata
                )
                with suppress(grpc.aio.AioRpcError):
                    _ = [part async for part in call]
    store = open_store(settings.resolved_store_url)
    commits = store.changes_since(0).commits
    assert [commit.actor for commit in commits] == ["release"] * 4
    assert [(line["actor"], line["revision"]) for line in logged] == [
        ("release", commit.revision) for commit in commits
    ]
    store.close()
    done, refused = (line for line in audited if line["action"] == "PromptService/DownloadPromptVersion")
    assert (done["caller"], done["result"], done["version"]) == ("release", "OK", "prompts/colours/versions/2")
    assert (refused["caller"], refused["result"], refused["prompt"]) == ("release", "NOT_FOUND", "acme-layoffs@1")


async def test_a_calls_line_names_request_caller_prompt_job_and_trace(trainer: RunningTrainer) -> None:
    with log_lines("shared.rpc.interceptors", "call") as lines:
        job = (
            await trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=tuning_spec()), metadata=METADATA)
        ).job
        await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name), metadata=METADATA)
    created, got = (line for line in lines if line["method"].endswith("TuningJob"))
    job_id = job.name.removeprefix("tuningJobs/")
    for line in (created, got):
        assert (line["request_id"], line["trace_id"], line["caller"]) == ("r-1", TRACE_ID, "anonymous")
        assert (line["job"], line["code"]) == (job_id, "OK")
    assert created["prompt"] == "support-tone"
