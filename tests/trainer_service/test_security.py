"""Two teams and a release manager at one trainer: each sees and changes only its own data, and no input makes the
trainer open connections.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prompttuning.v1 import prompts_pb2, tuning_pb2
from prompttuning.v1 import tuning_pb2 as pb
from safetensors.torch import save

from shared.errors import InvalidInput, NotFound, Overloaded, PermissionDenied, PreconditionFailed, Unauthenticated
from shared.security.tokens import hash_token, new_token
from tests.retry_info import retry_delay_seconds
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import json_lines, tuning_spec, upload_of
from tests.trainer_service.test_prompt_service import MATRIX, import_of
from trainer_service.config import TrainerSettings

SUPPORT, SALES, RELEASE, VIEWER = (new_token() for _ in range(4))
TOKENS = {"support": SUPPORT, "sales": SALES, "release": RELEASE, "viewer": VIEWER}
NO_ALIAS = pb.PublishPolicy(alias="-")


@pytest.fixture
async def trainer(settings: TrainerSettings, tmp_path: Path) -> AsyncIterator[RunningTrainer]:
    limits = {"active_jobs": 1, "dataset_bytes_per_day": 10_000}
    callers: list[dict[str, Any]] = [
        {"name": "support", "roles": ["tuner"], "prompts": ["support-*"], "limits": limits},
        {"name": "sales", "roles": ["tuner"], "prompts": ["sales-*", "t*"]},
        {"name": "release", "roles": ["tuner", "publisher"]},
        {"name": "viewer", "roles": ["viewer"]},
    ]
    file = tmp_path / "callers.json"
    file.write_text(
        json.dumps(
            {"callers": [{**caller, "token_sha256": [hash_token(TOKENS[caller["name"]])]} for caller in callers]}
        )
    )
    async with running_trainer(
        settings.model_copy(update={"callers_file": str(file), "dataset_roots": (str(tmp_path),)})
    ) as running:
        yield running


def by(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def create(trainer: RunningTrainer, token: str, request_id: str = "", **fields: Any) -> pb.TuningJob:
    spec = tuning_spec(**{"publish": NO_ALIAS, **fields})
    response = await trainer.tuning.CreateTuningJob(
        pb.CreateTuningJobRequest(spec=spec, request_id=request_id), **by(token)
    )
    job: pb.TuningJob = response.job
    return job


async def test_jobs_are_for_ones_own_prompts_and_move_no_alias_without_the_role(trainer: RunningTrainer) -> None:
    assert isinstance(await refused(create(trainer, VIEWER)), PermissionDenied)
    assert isinstance(await refused(create(trainer, SUPPORT, prompt="sales-pitch")), PermissionDenied)
    moves_an_alias = await refused(create(trainer, SUPPORT, publish=pb.PublishPolicy()))
    assert isinstance(moves_an_alias, PermissionDenied)
    assert moves_an_alias.metadata["role"] == "publisher", "a client can say what to do about it"
    init = pb.PromptInit(method=pb.PromptInit.METHOD_FROM_PROMPT, source="sales-pitch@1")
    assert isinstance(await refused(create(trainer, SUPPORT, hyperparameters=pb.Hyperparameters(init=init))), NotFound)
    await create(trainer, SUPPORT)
    await create(trainer, RELEASE, publish=pb.PublishPolicy())
    assert isinstance(await refused(trainer.tuning.GetServiceInfo(pb.GetServiceInfoRequest())), Unauthenticated)


async def test_other_teams_jobs_are_neither_seen_nor_touched(trainer: RunningTrainer) -> None:
    ours, theirs = await create(trainer, SUPPORT), await create(trainer, SALES, prompt="sales-pitch")
    for method, request in (
        ("GetTuningJob", pb.GetTuningJobRequest),
        ("CancelTuningJob", pb.CancelTuningJobRequest),
        ("PauseTuningJob", pb.PauseTuningJobRequest),
        ("ResumeTuningJob", pb.ResumeTuningJobRequest),
        ("DeleteTuningJob", pb.DeleteTuningJobRequest),
    ):
        error = await refused(getattr(trainer.tuning, method)(request(name=theirs.name), **by(SUPPORT)))
        assert isinstance(error, NotFound), method
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=theirs.name), **by(SUPPORT))
    assert isinstance(await refused(watch.read()), NotFound)

    async def listed(token: str) -> set[str]:
        response = await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest(), **by(token))
        return {job.name for job in response.jobs}

    assert await listed(SUPPORT) == {ours.name}
    assert await listed(VIEWER) == {ours.name, theirs.name}
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=ours.name), **by(SUPPORT))


async def test_a_job_goes_on_from_ones_own_unpublished_job_and_no_other(trainer: RunningTrainer) -> None:
    """A job's prompt decides who may see it, even if the job's name matches a pattern such as `t*`."""
    ours, theirs = await create(trainer, SUPPORT), await create(trainer, SALES, prompt="tone")
    refusals = {}
    for token, prompt, source in (
        (SUPPORT, "support-tone", ours.name),
        (SUPPORT, "support-tone", theirs.name),
        (SALES, "tone", ours.name),
        (SALES, "tone", f"tuningJobs/{'z' * 26}"),
    ):
        init = pb.Hyperparameters(init=pb.PromptInit(source=source))
        refusals[prompt, source] = await refused(create(trainer, token, prompt=prompt, hyperparameters=init))
    own, *others = refusals.values()
    assert isinstance(own, PreconditionFailed), "found, and judged by its state: it has trained nothing yet"
    assert all(isinstance(error, NotFound) for error in others)


async def test_where_a_prompt_comes_from_is_shown_to_callers_that_may_name_it(trainer: RunningTrainer) -> None:
    await trainer.prompts.ImportPromptVersion(
        import_of(save({"prompt_embeddings": MATRIX}), prompt="sales-pitch"), **by(RELEASE)
    )
    init = pb.Hyperparameters(init=pb.PromptInit(source="sales-pitch@1"))
    job = await create(trainer, RELEASE, hyperparameters=init)
    for token, shown in ((RELEASE, True), (SUPPORT, False)):
        found = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name), **by(token))).job
        assert ("sales-pitch" in str(found)) is shown


async def test_lists_and_watches_of_prompts_show_ones_own(trainer: RunningTrainer) -> None:
    watch = trainer.prompts.WatchPrompts(prompts_pb2.WatchPromptsRequest(after_revision=0), **by(SUPPORT))
    for prompt in ("sales-pitch", "support-tone"):
        await trainer.prompts.ImportPromptVersion(
            import_of(save({"prompt_embeddings": MATRIX}), prompt=prompt), **by(RELEASE)
        )
    first = await watch.read()
    watch.cancel()
    assert "sales" not in str(first)
    assert "support-tone" in str(first)
    names = [
        prompt.name
        for prompt in (await trainer.prompts.ListPrompts(prompts_pb2.ListPromptsRequest(), **by(SUPPORT))).prompts
    ]
    assert names == ["prompts/support-tone"]
    for name in ("prompts/sales-pitch/versions/1", "sales-pitch@1", "sales-pitch"):
        error = await refused(
            trainer.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name=name), **by(SUPPORT))
        )
        assert isinstance(error, NotFound), name
    alias = prompts_pb2.SetPromptAliasRequest(prompt="prompts/support-tone", alias="default")
    assert isinstance(await refused(trainer.prompts.SetPromptAlias(alias, **by(SUPPORT))), PermissionDenied)


async def test_a_callers_jobs_and_bytes_are_bounded(trainer: RunningTrainer) -> None:
    await create(trainer, SUPPORT)
    error = await refused(create(trainer, SUPPORT))
    assert isinstance(error, Overloaded)
    assert "(active_jobs) is 1" in str(error), "the name of the limit is the callers file's"
    assert retry_delay_seconds(error) == 60
    data = json_lines(400)
    assert len(data) > 10_000
    error = await refused(trainer.tuning.UploadDataset(upload_of(data), **by(SUPPORT)))
    assert isinstance(error, Overloaded)
    assert "bytes of datasets" in error.message
    lying = upload_of(data, size_bytes=1)
    assert isinstance(await refused(trainer.tuning.UploadDataset(lying, **by(SUPPORT))), Overloaded)
    await trainer.tuning.UploadDataset(upload_of(data), **by(SALES))


@pytest.mark.parametrize("token", [VIEWER, SUPPORT, new_token()], ids=["no role", "too many bytes", "unknown"])
async def test_an_upload_that_is_refused_before_its_handler_hears_the_reason_while_it_writes(
    trainer: RunningTrainer, token: str
) -> None:
    data = json_lines(400)
    expected = {VIEWER: PermissionDenied, SUPPORT: Overloaded}.get(token, Unauthenticated)
    for _ in range(10):
        call = trainer.tuning.UploadDataset(**by(token))

        async def write(call: Any = call) -> None:
            for message in upload_of(data, chunk_bytes=200):
                await call.write(message)
            await call.done_writing()
            await call

        assert isinstance(await refused(write()), expected)


async def test_a_request_id_is_ones_own(trainer: RunningTrainer) -> None:
    first = await create(trainer, SALES, "once", prompt="sales-pitch")
    assert (await create(trainer, SALES, "once", prompt="sales-pitch")).name == first.name
    assert (await create(trainer, RELEASE, "once", prompt="sales-pitch")).name != first.name


SCHEMES = ["http", "https", "ftp", "s3", "gs", "FILE", "file+http", "unix", "data", "jar:file"]


async def test_no_uri_makes_the_trainer_reach_out(trainer: RunningTrainer) -> None:
    visitors = 0

    def seen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visitors
        visitors += 1
        writer.close()

    async with await asyncio.start_server(seen, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for scheme in SCHEMES:
            for uri in (f"{scheme}://{address}/data.jsonl", f"{scheme}://user:password@{address}/data.jsonl?x#y"):
                error = await refused(create(trainer, RELEASE, dataset=tuning_pb2.DatasetSource(uri=uri)))
                assert isinstance(error, InvalidInput), uri
    assert visitors == 0


async def test_without_a_token_nothing_is_answered_but_health(trainer: RunningTrainer) -> None:
    assert await trainer.health("live") == 1
    for service in (tuning_pb2, prompts_pb2):
        for descriptor in service.DESCRIPTOR.services_by_name.values():
            for method in descriptor.methods:
                call = trainer.channel.unary_stream(f"/{descriptor.full_name}/{method.name}")(b"")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
