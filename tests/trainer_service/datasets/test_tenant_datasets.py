"""Datasets of two tenants at one trainer, through a real channel: neither tenant learns of the other's datasets."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import InvalidInput, NotFound, Overloaded, PreconditionFailed
from shared.security.tokens import hash_token
from tests.metric_samples import scraped
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.datasets.tenants import (
    NAMES,
    TOKENS,
    by,
    content,
    create,
    delete,
    get,
    listed,
    status,
    upload,
)
from tests.trainer_service.requests import classification_examples, inline, json_lines, tuning_spec
from tests.waiting import until
from trainer_service.config import TrainerSettings

UNKNOWN = "datasets/sha256-" + "0" * 64
QUOTA = 3_000


@pytest.fixture
def guarded(stored_settings: TrainerSettings, tmp_path: Path) -> TrainerSettings:
    """`acme` and `acme-2` are of one tenant, which has its own root and quota."""
    for folder in ("roots/acme", "roots/all"):
        (tmp_path / folder).mkdir(parents=True)
    prompts = {"acme": ["support-*"], "acme-2": ["hidden-*"], "rival": ["support-*"]}
    callers = [
        {"name": name, "roles": ["tuner"], "prompts": prompts[name], "token_sha256": [hash_token(TOKENS[name])]}
        for name in NAMES
    ]
    callers[0]["tenant"] = callers[1]["tenant"] = "acme-corp"
    tenant = {"name": "acme-corp", "dataset_roots": [str(tmp_path / "roots/acme")], "dataset_bytes": QUOTA}
    file = tmp_path / "callers.json"
    file.write_text(json.dumps({"callers": callers, "tenants": [tenant]}))
    return stored_settings.model_copy(
        update={"callers_file": str(file), "dataset_roots": (str(tmp_path / "roots/all"),)}
    )


@pytest.fixture
async def trainer(guarded: TrainerSettings) -> AsyncIterator[RunningTrainer]:
    async with running_trainer(guarded) as running:
        yield running


async def test_another_tenants_dataset_is_unknown_word_for_word(trainer: RunningTrainer) -> None:
    theirs = await upload(trainer, "acme", json_lines())

    async def answers(dataset: str) -> list[tuple[Any, str]]:
        source = pb.DatasetSource(dataset=dataset)
        calls = [
            create(trainer, "rival", dataset=source),
            create(trainer, "rival", validation_dataset=source),
            create(trainer, "rival", dataset=source, validation_dataset=inline(classification_examples())),
            trainer.tuning.GetDataset(pb.GetDatasetRequest(name=dataset), **by("rival")),
            delete(trainer, "rival", dataset),
            content(trainer, "rival", dataset),
        ]
        errors = [await refused(call) for call in calls]
        assert all(isinstance(error, NotFound) for error in errors)
        return [(code, text.replace(dataset, "DATASET")) for code, text in map(status, errors)]

    assert await answers(theirs) == await answers(UNKNOWN)
    inlined = await create(trainer, "rival")  # stored for the job that names an unknown validation dataset, too
    assert [item.name for item in (await listed(trainer, "rival")).datasets] == [inlined.spec.dataset.dataset]


async def test_a_tenant_downloads_what_it_has_sent_and_no_file_that_it_only_named(
    trainer: RunningTrainer, tmp_path: Path
) -> None:
    data = json_lines()
    dataset = await upload(trainer, "acme", data, file_name="numbers.jsonl")
    assert await content(trainer, "acme-2", dataset) == data
    assert (await get(trainer, "acme", dataset)).file_name == "numbers.jsonl"
    await upload(trainer, "acme", data)
    assert (await get(trainer, "acme", dataset)).file_name == "numbers.jsonl", "a later upload without a name keeps it"
    for bad in ("x" * 256, "a\nb"):
        error = await refused(upload(trainer, "acme", data, file_name=bad))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "header.file_name"

    named = tmp_path / "roots/all/named.jsonl"
    named.write_bytes(json_lines(7))
    source = pb.DatasetSource(uri=f"file://{named}")
    copied = (await create(trainer, "rival", dataset=source)).spec.dataset.dataset
    assert isinstance(await refused(content(trainer, "rival", copied)), PreconditionFailed)
    assert await upload(trainer, "rival", json_lines(7)) == copied
    assert await content(trainer, "rival", copied) == json_lines(7)


async def test_jobs_after_a_job_are_those_that_follow_it(trainer: RunningTrainer) -> None:
    names = [(await create(trainer, "acme")).name for _ in range(3)]

    async def after(name: str, **fields: Any) -> list[str]:
        request = pb.ListTuningJobsRequest(after=name, **fields)
        return [job.name for job in (await trainer.tuning.ListTuningJobs(request, **by("acme"))).jobs]

    assert await after(names[2]) == names[1::-1]
    assert await after(names[0], order=pb.ListTuningJobsRequest.ORDER_OLDEST_FIRST) == names[1:]
    assert isinstance(await refused(after("jobs/1")), InvalidInput)


async def test_equal_bytes_are_stored_once_and_belong_to_each(trainer: RunningTrainer) -> None:
    first, second = await upload(trainer, "acme", json_lines()), await upload(trainer, "rival", json_lines())
    assert first == second
    files = list(trainer.settings.datasets_dir.iterdir())
    assert len(files) == 1
    for name in ("acme", "acme-2", "rival"):
        found = await get(trainer, name, first)
        assert (found.size_bytes, found.num_examples, found.num_jobs) == (len(json_lines()), 20, 0)
        assert found.task == pb.TASK_KIND_GENERATION
        assert found.create_time.seconds > 0
    job = await create(trainer, "rival", dataset=pb.DatasetSource(dataset=first))
    assert (await get(trainer, "rival", first)).num_jobs == 1
    assert (await get(trainer, "acme", first)).num_jobs == 0

    await delete(trainer, "acme-2", first)
    assert isinstance(await refused(get(trainer, "acme", first)), NotFound)
    assert files[0].exists(), "the other tenant still has it"
    assert (await create(trainer, "rival", dataset=pb.DatasetSource(dataset=first))).spec == job.spec
    for made in (job, await create(trainer, "rival", dataset=pb.DatasetSource(dataset=first))):
        await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=made.name), **by("rival"))


async def test_the_bytes_go_with_the_last_tenant(trainer: RunningTrainer) -> None:
    dataset = await upload(trainer, "acme", json_lines())
    await upload(trainer, "rival", json_lines())
    await delete(trainer, "acme", dataset)
    await delete(trainer, "rival", dataset)
    assert not list(trainer.settings.datasets_dir.iterdir())
    assert await upload(trainer, "rival", json_lines()) == dataset


async def test_a_dataset_that_jobs_need_stays_and_the_refusal_names_only_what_the_caller_may_see(
    trainer: RunningTrainer,
) -> None:
    dataset = await upload(trainer, "acme", json_lines())
    source = pb.DatasetSource(dataset=dataset)
    seen, hidden = (
        await create(trainer, "acme", dataset=source),
        await create(trainer, "acme-2", prompt="hidden-x", dataset=source),
    )
    error = await refused(delete(trainer, "acme", dataset))
    assert isinstance(error, PreconditionFailed)
    assert seen.name in error.message
    assert hidden.name not in error.message
    assert "and 1 more" in error.message
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=seen.name), **by("acme"))
    assert "1 jobs of your tenant" in (await refused(delete(trainer, "acme", dataset))).message
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=hidden.name), **by("acme-2"))
    await delete(trainer, "acme", dataset)
    assert not list(trainer.settings.datasets_dir.iterdir())


async def test_pages_show_the_tenants_own_and_their_tokens_are_the_callers_own(trainer: RunningTrainer) -> None:
    own = {await upload(trainer, "acme", json_lines(number)) for number in (3, 4, 5)}
    other = {await upload(trainer, "rival", json_lines(number)) for number in (6, 7)}
    found, token = list[str](), ""
    while True:
        page = await listed(trainer, "acme", page_size=1, page_token=token)
        found += [item.name for item in page.datasets]
        token, previous = page.next_page_token, token
        if not token:
            break
        assert found[-1] not in token
    assert found == sorted(own)
    for wrong in (previous, previous[:-2], other.pop()):
        error = await refused(listed(trainer, "rival", page_token=wrong))
        assert isinstance(error, InvalidInput)
        assert [violation.field for violation in error.violations] == ["page_token"]


async def test_a_quota_counts_each_tenants_datasets_in_full(trainer: RunningTrainer) -> None:
    big = json_lines(60)
    await upload(trainer, "rival", big)
    kept = await upload(trainer, "acme", big)
    assert await upload(trainer, "acme-2", big) == kept, "what the tenant has is no second charge"
    for call in (
        upload(trainer, "acme-2", json_lines(40)),
        upload(trainer, "acme-2", json_lines(40), size_bytes=0, digest=""),
        create(
            trainer, "acme", dataset=inline([pb.Example(input=f"{number}" * 40, output="yes") for number in range(40)])
        ),
    ):
        error = await refused(call)
        assert isinstance(error, Overloaded)
        assert f"take {len(big)} of {QUOTA} bytes" in error.message
        assert "softprompt datasets delete" in error.message
    assert len(list(trainer.settings.datasets_dir.iterdir())) == 1
    await upload(trainer, "rival", json_lines(40))
    await delete(trainer, "acme", kept)
    await upload(trainer, "acme-2", json_lines(40))


async def test_two_datasets_that_do_not_fit_together_are_refused_by_check_and_creation(trainer: RunningTrainer) -> None:
    first, second = (
        inline([pb.Example(input=f"{name} {number}".ljust(QUOTA // 20), output="yes") for number in range(12)])
        for name in ("first", "second")
    )
    spec = tuning_spec(dataset=first, validation_dataset=second, publish=pb.PublishPolicy(alias="-"))
    for check in (True, False):
        request = pb.CreateTuningJobRequest(spec=spec, validate_only=check)
        with pytest.raises(grpc.aio.AioRpcError, match="your tenant's datasets take") as refused_job:
            await trainer.tuning.CreateTuningJob(request, **by("acme"))
        assert refused_job.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_tenant_reads_files_under_its_own_roots_only(trainer: RunningTrainer, tmp_path: Path) -> None:
    for folder in ("acme", "all"):
        (tmp_path / "roots" / folder / "data.jsonl").write_bytes(json_lines())
    (tmp_path / "roots/acme/link.jsonl").symlink_to(tmp_path / "roots/all/data.jsonl")

    def uri(path: str) -> pb.DatasetSource:
        return pb.DatasetSource(uri=f"file://{tmp_path}/roots/{path}")

    await create(trainer, "acme", dataset=uri("acme/data.jsonl"))
    await create(trainer, "rival", dataset=uri("all/data.jsonl"))
    for name, path in (
        ("acme", "all/data.jsonl"),
        ("rival", "acme/data.jsonl"),
        ("acme", "acme/link.jsonl"),
        ("acme", "acme/../all/data.jsonl"),
    ):
        error = await refused(create(trainer, name, dataset=uri(path)))
        assert isinstance(error, InvalidInput)
        assert [violation.field for violation in error.violations] == ["spec.dataset.uri"]


SECRET = "hunter2"
LEAKY = [
    b'{"hunter2": "x", "input": "y"}',
    b'{"input": "a", "label": "hunter2"}\n{"input": "b", "label": "hunter2"}',
    b'{"input": "a", "label": " hunter2"}',
    b'{"messages": [{"role": "hunter2", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b"hunter2: [secret",
    b'{"input": "a", "output": hunter2}',
    b'{"input": "a", "output": -Infinity, "hunter2": 1}',
    b'{"input": "hunter2", "input": "hunter2"}',
    b'{"input": "a", "output": ["hunter2"]}',
    b'"hunter2',
    b'{"input": "hunter2 \xff", "output": "b"}',
    b'{"input": "hunter2", "output": " "}',
    b'{"input": "a", "output": "b"}\n{"input": "a", "label": "hunter2"}',
]


async def test_errors_about_a_file_say_where_and_never_what(trainer: RunningTrainer, tmp_path: Path) -> None:
    source = pb.DatasetSource(uri=f"file://{tmp_path}/roots/all/secret")
    wishes: tuple[dict[str, Any], ...] = (
        {"dataset": source},
        {"validation_dataset": source},
        {"dataset": source, "labels": ["a", "b"]},
    )
    for data, fields in itertools.product(LEAKY, wishes):
        (tmp_path / "roots/all/secret").write_bytes(data + b"\n")
        error = await refused(create(trainer, "rival", **fields))
        assert isinstance(error, InvalidInput), data
        assert SECRET not in f"{error.message} {error.violations} {error.metadata} {status(error)}"
        assert "Infinity" not in error.message
        assert all("line " in violation.field or violation.field == "spec.labels" for violation in error.violations)


async def test_what_a_caller_sends_itself_is_quoted(trainer: RunningTrainer) -> None:
    for data, quoted in (
        (LEAKY[0], "'hunter2'"),
        (LEAKY[1], "'hunter2'"),
        (LEAKY[2], "' hunter2'"),
        (LEAKY[3], "'hunter2'"),
    ):
        assert quoted in (await refused(upload(trainer, "rival", data))).message
    labels = inline([pb.Example(input="a", label="x"), pb.Example(input="b", label="hunter2")])
    assert (
        "'hunter2' is not in the label set"
        in (await refused(create(trainer, "rival", dataset=labels, labels=["x", "y"]))).message
    )


async def test_disk_and_database_sizes_are_scraped_from_the_service(trainer: RunningTrainer) -> None:
    await upload(trainer, "rival", json_lines())
    port = json.loads(Path(trainer.settings.ready_file).read_bytes())["metrics_port"]

    async def samples() -> dict[tuple[str, str], float]:
        found = await asyncio.to_thread(scraped, port)
        return {(sample.name, "".join(sample.labels.values())): sample.value for sample in found}

    async def measured() -> bool:
        return ("softprompt_trainer_stored_bytes", "database") in await samples()

    await until(measured)
    found = await samples()
    assert found["softprompt_trainer_disk_bytes", "total"] > found["softprompt_trainer_disk_bytes", "free"] > 0
    assert found["softprompt_trainer_stored_bytes", "database"] > 4096
    assert found["softprompt_trainer_stored_bytes", "checkpoints"] == 0
    assert found["softprompt_trainer_stored_bytes", "datasets"] in (0, len(json_lines()))
