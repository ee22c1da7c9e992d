"""Checking a job without creating it, and refusing before the upload what doesn't depend on the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput, NotFound, Overloaded, PermissionDenied
from shared.rpc.errors import error_from_rpc
from shared.security.tokens import hash_token, new_token
from softprompt import AsyncClient, Hyperparameters, PublishPolicy, TuningSpec
from softprompt.client.security import ClientSecurity
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.test_training_end_to_end import local_pool, training
from trainer_service.config import TrainerSettings

__all__ = ["local_pool", "training"]

EXAMPLES = [{"input": f"text {number % 12}", "label": "pn"[number % 2]} for number in range(24)]


async def test_a_check_answers_with_choices_statistics_and_time(training: RunningTrainer) -> None:
    async with AsyncClient(f"127.0.0.1:{training.port}") as client:
        spec = TuningSpec("tone", EXAMPLES, hyperparameters=Hyperparameters(num_steps=2, num_virtual_tokens=2))
        found = await client.validate_job(spec)
        assert (found.job.name, found.estimated_seconds) == ("", None)
        assert found.estimated_memory_bytes is not None
        assert 400 << 20 < found.estimated_memory_bytes < 1 << 30  # before the first job, mostly the process itself
        assert found.job.effective_spec is not None
        chosen = found.job.effective_spec.hyperparameters
        assert chosen is not None
        assert (chosen.num_steps, chosen.learning_rate is not None) == (2, True)
        assert found.job.dataset_statistics is not None
        assert found.job.dataset_statistics.num_duplicates == 12
        assert await client.list_jobs() == []
        await client.tune(spec)
        again = await client.validate_job(spec)
        assert again.estimated_seconds is not None
        assert 0 < again.estimated_seconds < 60
        assert again.estimated_memory_bytes == found.estimated_memory_bytes
        assert len(await client.list_jobs()) == 1


@pytest.mark.parametrize(("device", "as_set"), [("cpu", 8), ("cuda", 16)])
async def test_the_recipe_knows_which_base_models_are_trained_on_gpus(
    settings: TrainerSettings, tmp_path: Path, tiny_model_dir: Path, device: str, as_set: int
) -> None:
    workers: dict[str, dict[str, Any]] = {"on-gpu": {"num_gpus": 0.5}, "on-cpu": {"num_gpus": 0}, "as-set": {}}
    entries = [{"id": id, "source": str(tiny_model_dir), "workers": said} for id, said in workers.items()]
    (tmp_path / "models.json").write_text(json.dumps({"models": entries}))
    changes = {"models_file": tmp_path / "models.json", "device": device, "max_examples": 10_000}
    spec = TuningSpec("tone", lines(5_400), validation_fraction=0.05)
    async with (
        running_trainer(settings.model_copy(update=changes)) as trainer,
        AsyncClient(f"127.0.0.1:{trainer.port}") as client,
    ):
        chosen = {id: (await client.validate_job(replace(spec, base_model=id))).job.effective_spec for id in workers}
    sizes = {id: made.hyperparameters.batch_size for id, made in chosen.items() if made}
    assert sizes == {"on-gpu": 16, "on-cpu": 8, "as-set": as_set}


async def test_nothing_is_sent_for_a_job_that_no_data_could_make_valid(settings: TrainerSettings) -> None:
    async with (
        running_trainer(settings.model_copy(update={"max_queued_jobs": 1})) as trainer,
        AsyncClient(f"127.0.0.1:{trainer.port}") as client,
    ):
        wrong = TuningSpec(
            "No Name", EXAMPLES, base_model="other", hyperparameters=Hyperparameters(num_virtual_tokens=10_000)
        )
        with pytest.raises(InvalidInput) as caught:
            await client.create_job(wrong)
        fields = {violation.field for violation in caught.value.violations}
        assert fields
        assert fields <= {"spec.prompt", "spec.base_model", "spec.hyperparameters.num_virtual_tokens"}
        assert await client.list_datasets() == []
        stored = await client.upload_dataset(EXAMPLES[:6])
        created = await client.create_job(TuningSpec("tone", EXAMPLES[:6]), request_id="again")
        assert (await client.create_job(TuningSpec("tone", EXAMPLES[:6]), request_id="again")).name == created.name
        for job in (client.create_job, client.validate_job):
            with pytest.raises(Overloaded, match="the queue is full"):
                await job(TuningSpec("tone", EXAMPLES))
        with pytest.raises(Overloaded):
            await client.validate_job(TuningSpec("tone", stored.dataset))
        assert [dataset.name for dataset in await client.list_datasets()] == [stored.dataset]
        with pytest.raises(NotFound):
            await client.validate_job(TuningSpec("tone", "datasets/sha256-" + "0" * 64))


def lines(count: int, **more: str) -> list[dict[str, str]]:
    return [{"input": f"text {number}", "output": f"answer {number}", **more} for number in range(count)]


ODD: list[dict[str, Any]] = [
    {"dataset": lines(20)},
    {"dataset": lines(20), "validation_dataset": lines(3)},
    {"dataset": lines(20), "validation_dataset": EXAMPLES},
    {"dataset": EXAMPLES, "validation_dataset": [{"input": "a", "label": "other"}]},
    {"dataset": EXAMPLES, "labels": ["p", "n", "q"], "validation_dataset": EXAMPLES[:4]},
    {"dataset": EXAMPLES, "labels": ["p"]},
    {"dataset": lines(20), "labels": ["p", "n"]},
    {"dataset": lines(1)},
    {"dataset": lines(2) * 8},
    {"dataset": [*lines(3), {"input": " ", "output": ""}, {"input": "x"}]},
    {"dataset": [{"input": "long " * 500, "output": "x"}, *lines(5)]},
    {"dataset": lines(20), "validation_dataset": [{"input": "long " * 500, "output": "x"}]},
    {"dataset": lines(20), "base_model": "unknown", "max_runtime": 10**9, "priority": 7},
    {"dataset": lines(20), "init": {"source": "nothing@3"}},
    {"dataset": lines(20), "init": {"source": "tuningJobs/nothing"}},
    {"dataset": lines(20), "publish": {"gate": {"beat_bare_model": True}}},
    {"dataset": lines(20), "num_virtual_tokens": 10_000},
    {"dataset": lines(20), "template": {"text": "no place"}},
    {
        "dataset": [
            {"conversation": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}}
        ]
        * 3
    },
    {"dataset": "ROOT/good.jsonl"},
    {"dataset": "ROOT/good.jsonl", "validation_dataset": "ROOT/bad.jsonl"},
    {"dataset": "ROOT/bad.jsonl"},
    {"dataset": "file:///etc/hostname"},
    {"dataset": lines(20), "validation_dataset": "datasets/sha256-" + "0" * 64},
]


def request_of(fields: dict[str, Any], root: Path) -> tuning_pb2.CreateTuningJobRequest:
    spec = {"prompt": "tone", **fields}
    for name in ("dataset", "validation_dataset"):
        source = spec.get(name)
        if isinstance(source, list):
            spec[name] = {"inline": {"examples": source}}
        elif source is not None:
            source = source.replace("ROOT", root.as_uri())
            spec[name] = {"uri": source} if "://" in source else {"dataset": source}
    spec.setdefault("hyperparameters", {}).update(
        {name: spec.pop(name) for name in ("init", "num_virtual_tokens") if name in spec}
    )
    if "max_runtime" in spec:
        spec["max_runtime"] = f"{spec['max_runtime']}s"
    return ParseDict({"spec": spec}, tuning_pb2.CreateTuningJobRequest())


async def test_a_check_agrees_with_a_creation_and_stores_nothing(settings: TrainerSettings, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines(9)))
    (root / "bad.jsonl").write_text('{"input": "a"}\n{"input": 1, "output": "b"}\n')
    settings = settings.model_copy(update={"dataset_roots": str(root)})
    async with running_trainer(settings) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:

        async def outcome(request: tuning_pb2.CreateTuningJobRequest) -> Any:
            try:
                job = (await trainer.tuning.CreateTuningJob(request)).job
            except grpc.aio.AioRpcError as error:
                return str(error_from_rpc(error))
            if job.name:
                await client.cancel_job(job.name)
                await client.delete_job(job.name)
            return job.effective_spec, job.dataset_statistics, job.spec

        accepted = 0
        for fields in ODD:
            request = request_of(fields, root)
            request.validate_only, request.request_id = True, "same"
            checked = await outcome(request)
            assert (await client.list_jobs(), await client.list_datasets()) == ([], []), fields
            assert not list(Path(settings.data_dir).rglob("sha256-*")), fields
            request.validate_only, request.request_id = False, ""
            assert await outcome(request) == checked, fields
            accepted += not isinstance(checked, str)
            for dataset in await client.list_datasets():
                await client.delete_dataset(dataset.name)
        assert 5 <= accepted <= len(ODD) - 10


async def test_a_missing_role_is_reported_before_the_upload(settings: TrainerSettings, tmp_path: Path) -> None:
    token, callers = new_token(), tmp_path / "callers.json"
    caller = {"name": "support", "roles": ["tuner"], "prompts": ["support-*"], "token_sha256": [hash_token(token)]}
    callers.write_text(json.dumps({"callers": [caller]}))
    async with (
        running_trainer(settings.model_copy(update={"callers_file": str(callers)})) as trainer,
        AsyncClient(f"127.0.0.1:{trainer.port}", security=ClientSecurity(token=token)) as client,
    ):
        for prompt, publish in (("support-tone", PublishPolicy()), ("sales", PublishPolicy("-"))):
            with pytest.raises(PermissionDenied):
                await client.create_job(TuningSpec(prompt, EXAMPLES, publish=publish))
        assert await client.list_datasets() == []
        await client.create_job(TuningSpec("support-tone", EXAMPLES, publish=PublishPolicy("-")))
