"""Checking a job without creating it, and refusing before the upload what doesn't depend on the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput, NotFound, Overloaded, PermissionDenied
from shared.security.tokens import hash_token, new_token
from softprompt import AsyncClient, Hyperparameters, PublishPolicy, TuningSpec
from softprompt.client.security import ClientSecurity
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
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
        await client.create_job(TuningSpec("tone", stored.dataset))
        for job in (client.create_job, client.validate_job):
            with pytest.raises(Overloaded, match="the queue is full"):
                await job(TuningSpec("tone", EXAMPLES))
        with pytest.raises(Overloaded):
            await client.validate_job(TuningSpec("tone", stored.dataset))
        assert [dataset.name for dataset in await client.list_datasets()] == [stored.dataset]
        with pytest.raises(NotFound):
            await client.validate_job(TuningSpec("tone", "datasets/sha256-" + "0" * 64))


async def test_inline_examples_are_not_stored_by_a_check(trainer: RunningTrainer) -> None:
    source = tuning_pb2.DatasetSource(uri="file:///x.jsonl")
    request = tuning_pb2.CreateTuningJobRequest(
        spec=tuning_pb2.TuningSpec(prompt="tone", dataset=source), validate_only=True
    )
    assert isinstance(await refused(trainer.tuning.CreateTuningJob(request)), InvalidInput)
    request.spec.dataset.inline.examples.add(input="a", output="b")
    error = await refused(trainer.tuning.CreateTuningJob(request))
    assert "spec.dataset.inline.examples: is not stored yet" in str(error)
    request.validate_only = False
    request.spec.ClearField("dataset")
    assert "spec.dataset: is missing" in str(await refused(trainer.tuning.CreateTuningJob(request)))


async def test_a_missing_role_is_told_before_the_upload(settings: TrainerSettings, tmp_path: Path) -> None:
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
