"""A tenant sees nothing of another one: a trainer with that one's data answers byte for byte as without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import prompts_pb2, tuning_pb2
from prompttuning.v1 import prompts_pb2 as pp
from prompttuning.v1 import tuning_pb2 as pb
from safetensors.torch import save
from sqlalchemy import delete, make_url

from shared.security.tokens import hash_token, new_token
from tests.rpc_outcome import Outcome, outcome_of
from tests.shared.store_copy import copy_without
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.requests import json_lines, tuning_spec, upload_of
from tests.trainer_service.test_prompt_service import MATRIX, import_of, target
from trainer_service.config import TrainerSettings
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs as jobs_table

ADMIN, SUPPORT, LEAD = new_token(), new_token(), new_token()
CALLERS = [
    {"name": "admin", "roles": ["admin"], "token_sha256": [hash_token(ADMIN)]},
    {
        "name": "support",
        "roles": ["tuner", "generator", "viewer"],
        "prompts": ["support-*"],
        "token_sha256": [hash_token(SUPPORT)],
    },
    {
        "name": "lead",
        "roles": ["tuner", "publisher", "generator"],
        "prompts": ["support-*"],
        "token_sha256": [hash_token(LEAD)],
    },
]
NO_ALIAS = pb.PublishPolicy(alias="-")
MISSING = "z" * 26
LOAD = ("estimated_start_time", "current_time")
"""How long work waits and what time it is are not hidden: docs/security.md says so."""

MADE_NOW = (*LOAD, "revision", "end_time", "create_time", "name", "update_time", "last_event", "version")


@dataclass
class Pair:
    """A service with data of the tenant acme, and a copy without it."""

    full: RunningTrainer
    copy: RunningTrainer
    foreign_jobs: list[str]
    own_jobs: list[str]
    foreign_dataset: str

    async def same(
        self, method: str, request: Any, token: str = SUPPORT, masked: tuple[str, ...] = LOAD, num_answers: int = 1000
    ) -> Outcome:
        def service(trainer: RunningTrainer) -> Any:
            return trainer.tuning if hasattr(trainer.tuning, method) else trainer.prompts

        seen = await outcome_of(service(self.full), method, request, token, masked, num_answers)
        assert seen == await outcome_of(service(self.copy), method, request, token, masked, num_answers), (
            method,
            request,
        )
        assert b"acme" not in b"".join(seen[3]) or "acme" in str(request)
        return seen


def by(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def fill(trainer: RunningTrainer) -> tuple[list[str], list[str]]:
    """Creates data of acme before, between and after support's. Returns the jobs of acme and of support."""
    jobs: dict[str, list[str]] = {"acme": [], "support": []}
    for number in range(3):
        for prompt in ("acme-layoffs", "acme-merger", f"support-{'tone' if number else 'faq'}", "acme-layoffs"):
            annotations = {"team": prompt.partition("-")[0], "kind": "all"}
            spec = tuning_spec(prompt=prompt, annotations=annotations)
            made = (await trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec), **by(ADMIN))).job.name
            jobs[prompt.partition("-")[0]].append(made)
            blob = save({"prompt_embeddings": MATRIX + number})
            await trainer.prompts.ImportPromptVersion(import_of(blob, prompt=prompt), **by(ADMIN))
    for name in (jobs["acme"][0], jobs["support"][0]):
        await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name), **by(ADMIN))
    for prompt in ("acme-layoffs", "support-tone"):
        for _ in range(2):
            alias = pp.SetPromptAliasRequest(prompt=prompt, alias="stable", targets=[target(1)])
            await trainer.prompts.SetPromptAlias(alias, **by(ADMIN))
            await trainer.prompts.SetPromptAlias(pp.SetPromptAliasRequest(prompt=prompt, alias="stable"), **by(ADMIN))
    await trainer.prompts.DeletePromptVersion(pp.DeletePromptVersionRequest(name="support-tone@1"), **by(ADMIN))
    await trainer.prompts.SetPromptAlias(
        pp.SetPromptAliasRequest(prompt="acme-merger", alias="late", targets=[target(1)]), **by(ADMIN)
    )
    return jobs["acme"], jobs["support"]


@pytest.fixture
async def pair(stored_settings: TrainerSettings, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    callers = tmp_path / "callers.json"
    callers.write_text(json.dumps({"callers": CALLERS}))
    full = stored_settings.model_copy(update={"callers_file": str(callers)})
    copy = full.model_copy(update={"data_dir": tmp_path / "copy", "ready_file": str(tmp_path / "copy.json")})
    async with running_trainer(full) as trainer:
        foreign, own = await fill(trainer)
    shutil.copytree(full.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("prompts", "*.lock"))
    copy_without(full.data_dir / "prompts", copy.data_dir / "prompts", "acme-")
    if full.database_url:
        name = make_url(full.database_url).database
        copied = request.getfixturevalue("postgres").create_database(f"{name}_copy", copy_of=name)
        copy = copy.model_copy(update={"database_url": copied})
    database = Database(copy.resolved_database_url)
    with database.write() as connection:
        assert connection.execute(delete(jobs_table).where(jobs_table.c.prompt.like("acme-%"))).rowcount == len(foreign)
    database.close()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_trainer(full))
        second = await stack.enter_async_context(running_trainer(copy))
        lines = b"".join(b'{"input": "acme %d", "output": "laid off"}\n' % number for number in range(4))
        dataset = (await first.tuning.UploadDataset(iter(upload_of(lines)), **by(ADMIN))).dataset
        yield Pair(first, second, foreign, own, dataset)


def create(prompt: str = "support-new", source: str = "", **fields: Any) -> pb.CreateTuningJobRequest:
    init = pb.Hyperparameters(init=pb.PromptInit(source=source)) if source else None
    return pb.CreateTuningJobRequest(spec=tuning_spec(prompt=prompt, publish=NO_ALIAS, hyperparameters=init, **fields))


def requests_of(pair: Pair, job: str, prompt: str, dataset: str) -> dict[str, list[Any]]:
    """Requests about a job, a prompt and a dataset, for every method that names one."""
    version, watched = f"{prompt}@1", f"prompts/{prompt}"
    import_ = list(import_of(save({"prompt_embeddings": MATRIX}), prompt=prompt))
    by_name = {
        name: [getattr(pb, f"{name}Request")(name=job)]
        for name in ("GetTuningJob", "CancelTuningJob", "PauseTuningJob", "ResumeTuningJob", "DeleteTuningJob")
    }
    return {
        **by_name,
        "GetJobReport": [pb.GetJobReportRequest(name=job), pb.GetJobReportRequest(name=job, omit_answers=True)],
        "GetDataset": [pb.GetDatasetRequest(name=dataset)],
        "DownloadDataset": [pb.DownloadDatasetRequest(name=dataset)],
        "DeleteDataset": [pb.DeleteDatasetRequest(name=dataset)],
        "WatchTuningJob": [pb.WatchTuningJobRequest(name=job), pb.WatchTuningJobRequest(name=job, after=7)],
        "CreateTuningJob": [
            create(source=version),
            create(source=prompt),
            create(source=job),
            create(source=f"{watched}/versions/1"),
        ],
        "ListTuningJobs": [pb.ListTuningJobsRequest(prompt=prompt, page_size=1)],
        "ListPrompts": [pp.ListPromptsRequest(name_prefix=prompt, page_size=1)],
        "GetPrompt": [pp.GetPromptRequest(name=watched)],
        "ListPromptVersions": [pp.ListPromptVersionsRequest(parent=watched, page_size=1)],
        "GetPromptVersion": [
            pp.GetPromptVersionRequest(name=name) for name in (prompt, version, f"{watched}/versions/1", f"{prompt}@x")
        ],
        "GetPromptStatus": [pp.GetPromptStatusRequest(name=watched)],
        "DownloadPromptVersion": [
            pp.DownloadPromptVersionRequest(name=name) for name in (prompt, version, f"{prompt}@9")
        ],
        "SetPromptAlias": [
            pp.SetPromptAliasRequest(prompt=prompt, alias="default", targets=[target(1)]),
            pp.SetPromptAliasRequest(prompt=prompt, alias="default", targets=[target(77)]),
            pp.SetPromptAliasRequest(prompt=prompt, alias="default", targets=[target(1)], expected_version=5),
            pp.SetPromptAliasRequest(prompt=prompt, alias="default", targets=[target(1)], expected_revision=5),
            pp.SetPromptAliasRequest(prompt=prompt, alias="default"),
        ],
        "DeletePromptVersion": [
            pp.DeletePromptVersionRequest(name=version),
            pp.DeletePromptVersionRequest(name=f"{prompt}@9"),
        ],
        "ImportPromptVersion": [import_] if not prompt.startswith("support") else [],
    }


async def test_what_another_tenant_has_is_as_if_it_did_not_exist(pair: Pair) -> None:
    missing, no_dataset, asked = f"tuningJobs/{MISSING}", f"datasets/sha256-{'0' * 64}", set[str]()
    for token in (SUPPORT, LEAD):
        seen: list[dict[str, list[str]]] = []
        for job, prompt, dataset in (
            (pair.foreign_jobs[1], "acme-layoffs", pair.foreign_dataset),
            (pair.foreign_jobs[0], "acme-layoffs", pair.foreign_dataset),
            (missing, "acme-nothing", no_dataset),
            (missing, "support-none", no_dataset),
        ):
            found: dict[str, list[str]] = {}
            names = {prompt: "PROMPT", job.removeprefix("tuningJobs/"): "JOB", dataset: "DATASET"}
            for method, requests in requests_of(pair, job, prompt, dataset).items():
                outcomes = [str(await pair.same(method, request, token)) for request in requests]
                for name, stand_in in names.items():
                    outcomes = [text.replace(name, stand_in) for text in outcomes]
                found[method] = outcomes
            seen.append(found)
            asked |= found.keys()
        seen[3]["ImportPromptVersion"] = seen[2][
            "ImportPromptVersion"
        ]  # of these names one may be created, and the others not
        assert seen[0] == seen[1] == seen[2] == seen[3]
    services = [service for file in (tuning_pb2, prompts_pb2) for service in file.DESCRIPTOR.services_by_name.values()]
    everything = {method.name for service in services for method in service.methods}
    for_administrators = {"ListWebhooks", "TestWebhook", "RetryWebhook"}
    assert everything == asked | for_administrators | {
        "UploadDataset",
        "ListDatasets",
        "ListUsage",
        "GetServiceInfo",
        "WatchPrompts",
    }


async def pages(pair: Pair, method: str, **fields: Any) -> list[int]:
    """The sizes of all pages of a list; the same in both services, tokens included."""
    request_class = {"ListTuningJobs": pb.ListTuningJobsRequest}.get(method) or getattr(pp, f"{method}Request")
    sizes, token = [], ""
    while True:
        request = request_class(page_token=token, **fields)
        (_, _, _, (answer,)) = await pair.same(method, request)
        response = {"ListTuningJobs": pb.ListTuningJobsResponse}.get(
            method, getattr(pp, f"{method}Response", None)
        ).FromString(answer)
        (entries,) = [value for field, value in response.ListFields() if field.name != "next_page_token"] or [[]]
        sizes.append(len(entries))
        if not (token := response.next_page_token):
            return sizes


async def test_lists_counts_and_watches_tell_nothing_of_others(pair: Pair) -> None:
    oldest = pb.ListTuningJobsRequest.ORDER_OLDEST_FIRST
    assert await pages(pair, "ListTuningJobs", page_size=1) == [1, 1, 1]
    assert await pages(pair, "ListTuningJobs", page_size=2, order=oldest) == [2, 1]
    assert await pages(pair, "ListTuningJobs", page_size=1, states=[pb.TuningJob.STATE_QUEUED]) == [1, 1]
    assert await pages(pair, "ListTuningJobs", page_size=2, annotations={"kind": "all"}) == [2, 1]
    assert await pages(pair, "ListTuningJobs", page_size=2, annotations={"team": "acme"}) == [0]
    assert await pages(pair, "ListTuningJobs", page_size=1, prompt="support-tone") == [1, 1]
    assert await pages(pair, "ListPrompts", page_size=1) == [1, 1]
    assert await pages(pair, "ListPrompts", page_size=1, name_prefix="a") == [0]
    assert await pages(pair, "ListPromptVersions", page_size=1, parent="support-tone") == [1]
    assert (
        pb.ListDatasetsResponse.FromString((await pair.same("ListDatasets", pb.ListDatasetsRequest()))[3][0])
        == pb.ListDatasetsResponse()
    )
    for name in pair.own_jobs:
        await pair.same("GetTuningJob", pb.GetTuningJobRequest(name=name))
        await pair.same("WatchTuningJob", pb.WatchTuningJobRequest(name=name), num_answers=1)
    for prompt in ("support-tone", "support-faq"):
        for method in ("GetPrompt", "GetPromptStatus", "GetPromptVersion", "DownloadPromptVersion"):
            await pair.same(method, getattr(pp, f"{method}Request")(name=prompt))
    info = pb.GetServiceInfoResponse.FromString((await pair.same("GetServiceInfo", pb.GetServiceInfoRequest()))[3][0])
    assert info.queued_jobs == 2
    snapshot = (await pair.same("WatchPrompts", pp.WatchPromptsRequest(), masked=("store_id",), num_answers=1))[3]
    revision = pp.WatchPromptsResponse.FromString(snapshot[0]).revision
    changes = (
        await pair.same("WatchPrompts", pp.WatchPromptsRequest(after_revision=0), masked=("store_id",), num_answers=11)
    )[3]
    for after in (1, 5, 1000, 10**15, revision + 2, 2**62):  # a caller can't learn the store's revision
        await pair.same(
            "WatchPrompts", pp.WatchPromptsRequest(after_revision=after), masked=("store_id",), num_answers=1
        )
    messages = [pp.WatchPromptsResponse.FromString(change) for change in changes]
    assert messages[-1].deleted_version == "prompts/support-tone/versions/1"
    for index in (
        3,
        7,
        9,
    ):  # after a version, an alias that moved on, the last but one; each may be asked for again, as clients do
        for after, wanted in (
            (messages[index].revision, messages[index + 1]),
            (messages[index].revision - 1, messages[index]),
        ):
            seen = await pair.same(
                "WatchPrompts", pp.WatchPromptsRequest(after_revision=after), masked=("store_id",), num_answers=1
            )
            assert pp.WatchPromptsResponse.FromString(seen[3][0]).revision == wanted.revision


async def test_what_a_caller_changes_is_answered_the_same(pair: Pair) -> None:
    upload = list(upload_of(json_lines()))
    await pair.same("UploadDataset", upload)
    await pair.same("CreateTuningJob", create("acme-new"))
    await pair.same("CreateTuningJob", create("acme-layoffs"))
    await pair.same("CreateTuningJob", create("support-tone", source="support-tone@2"), masked=MADE_NOW)
    for method in ("PauseTuningJob", "ResumeTuningJob", "CancelTuningJob", "DeleteTuningJob"):
        await pair.same(method, getattr(pb, f"{method}Request")(name=pair.own_jobs[1]), masked=MADE_NOW)
    shown = pp.GetPromptResponse.FromString(
        (await pair.same("GetPrompt", pp.GetPromptRequest(name="support-tone")))[3][0]
    )
    revision = next(alias.revision for alias in shown.prompt.aliases if alias.name == "default")
    for targets, expected in (([target(2)], revision + 1), ([target(2)], revision), ([], None)):
        request = pp.SetPromptAliasRequest(
            prompt="support-tone", alias="default", targets=targets, expected_revision=expected
        )
        answer = await pair.same("SetPromptAlias", request, LEAD, masked=MADE_NOW)
        assert answer[0] == ("ABORTED" if expected == revision + 1 else "OK")
    deletion = pp.DeletePromptVersionRequest(name="support-tone@2")
    assert (await pair.same("DeletePromptVersion", deletion, LEAD, masked=MADE_NOW))[0] == "OK"
    import_ = list(import_of(save({"prompt_embeddings": MATRIX}), prompt="support-tone"))
    assert (await pair.same("ImportPromptVersion", import_, LEAD, masked=(*MADE_NOW, "digest")))[0] == "OK"


async def test_tokens_are_of_one_caller_and_unreadable(pair: Pair) -> None:
    first = await pair.full.tuning.ListTuningJobs(pb.ListTuningJobsRequest(page_size=1), **by(ADMIN))
    wrong = [first.next_page_token, first.next_page_token[:-2] + "AA", pair.foreign_jobs[0], "acme-layoffs", "YWNtZQ"]
    for token in wrong:
        for method, request in (
            ("ListTuningJobs", pb.ListTuningJobsRequest(page_size=1, page_token=token)),
            ("ListPrompts", pp.ListPromptsRequest(page_size=1, page_token=token)),
            ("ListPromptVersions", pp.ListPromptVersionsRequest(parent="support-tone", page_token=token)),
        ):
            code, details, _, _ = await pair.same(method, request)
            assert (code, "page_token" in details) == ("INVALID_ARGUMENT", True)
