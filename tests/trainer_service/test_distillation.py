"""A text to a published version through a real channel and the real cohort: client, data, report and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidInput
from shared.prompt.blob import decode_blob
from shared.store import open_store
from shared.values.enums import JobState
from softprompt import Data, Distillation, Hyperparameters, Init, InitMethod, PrefixKind, TuningSpec
from softprompt.client.async_client import AsyncClient
from softprompt.data.distillation import distillation_examples
from softprompt.errors import JobFailed
from softprompt.report.page import report_page
from softprompt.types.events import CheckpointStored, JobEvent, ProgressMade
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.test_training_end_to_end import local_pool, training
from trainer_service.config import TrainerSettings

__all__ = ["local_pool", "training"]

TEXT = "Answer in rhyme. Never name a price. The shop is closed on Mondays."
QUESTIONS = [f"Is item {number} in stock?" for number in range(10)]
SHORT = Hyperparameters(num_steps=4, num_virtual_tokens=6, evaluation_interval_steps=2, batch_size=2)
_TINY: dict[str, Any] = {"max_answer_tokens": 6, "hyperparameters": SHORT}


async def test_a_text_becomes_keys_and_values(training: RunningTrainer) -> None:
    async with AsyncClient(f"127.0.0.1:{training.port}") as client:
        shape = replace(SHORT, kind=PrefixKind.PREFIX)
        job = await client.distill(TEXT, "shop", questions=QUESTIONS, max_answer_tokens=6, hyperparameters=shape)
        assert job.result is not None
        assert job.result.distillation is not None
        assert job.result.distillation.prompt_prefill_seconds is not None
        assert (await client.get_version("shop")).kind == "PREFIX"


async def test_a_text_becomes_a_version_with_a_report(training: RunningTrainer) -> None:
    async with AsyncClient(f"127.0.0.1:{training.port}") as client:
        events = list[JobEvent]()
        job = await client.distill(
            TEXT, "shop", questions=QUESTIONS, num_questions=12, on_event=events.append, validation_fraction=0.25,
            **_TINY,
        )  # fmt: skip
        assert job.result is not None
        assert job.result.version == "prompts/shop/versions/1"
        found = job.result.distillation
        assert found is not None
        assert found.num_held_out == 3
        assert 7 <= found.num_questions <= 9, "the base model may repeat itself"
        assert found.document_tokens >= len(TEXT)
        assert (found.kl, found.bare_kl) == (job.result.metrics["loss"], job.result.bare_metrics["loss"])
        assert [one.rival for one in job.result.comparisons] == ["bare_model"]
        assert job.dataset_statistics is not None
        assert (job.dataset_statistics.num_train, job.dataset_statistics.num_validation) == (found.num_questions, 3)
        assert job.effective_spec is not None
        assert job.effective_spec.distillation == Distillation(12, 6)
        assert job.effective_spec.validation_fraction == 0.25
        assert job.effective_spec.hyperparameters.init == Init(InitMethod.TEXT, TEXT)
        prepared = [event.progress for event in events if isinstance(event, ProgressMade)]
        assert any(progress.num_examples == 12 for progress in prepared)

        report = await client.job_report(job.name)
        assert len(report.answers) == 3
        assert report.answers[0].tuned is not None
        assert "tokens in each request" in report_page(report)
        blob = decode_blob(open_store(training.settings.resolved_store_url).fetch(job.result.digest))
        assert blob.manifest.golden
        studied: Any = blob.manifest.recipe["distillation"]
        assert studied["num_questions"] == 12
        [stored] = await client.list_datasets()
        assert stored.num_examples == 11

        again = await client.clone_job(job.name, prompt="again")
        second = await client.wait_for_job(again.name)
        assert second.result is not None
        assert second.result.metrics == job.result.metrics, "the same seed studies and trains the same"


async def test_a_check_says_what_would_be_studied_and_refusals_name_their_field(
    training: RunningTrainer, tmp_path: Path
) -> None:
    path = tmp_path / "shop.txt"
    path.write_text(TEXT)
    async with AsyncClient(f"127.0.0.1:{training.port}") as client:

        def spec(document: str = TEXT, questions: int = 4, **fields: object) -> TuningSpec:
            made = {"distillation": Distillation(max_answer_tokens=6), "hyperparameters": SHORT, **fields}
            return TuningSpec("shop", distillation_examples(document, QUESTIONS[:questions]), **made)  # type: ignore[arg-type]

        found = await client.validate_job(
            TuningSpec("shop", distillation_examples(path), distillation=Distillation(), hyperparameters=SHORT)
        )
        assert found.job.effective_spec is not None
        assert found.job.effective_spec.distillation == Distillation(256, 128)
        assert found.job.dataset_statistics is not None
        assert (found.job.dataset_statistics.num_train, found.job.dataset_statistics.num_validation) == (224, 32)

        ordinary = [{"input": f"n {number}", "output": "yes"} for number in range(4)]
        for wrong, field in (
            (spec("word " * 120), "dataset[0].input"),
            (spec(hyperparameters=Hyperparameters(search=True)), "spec.hyperparameters.search"),
            (spec(hyperparameters=Hyperparameters(label_smoothing=0.1)), "spec.hyperparameters.label_smoothing"),
            (spec(validation_dataset=ordinary), "spec.validation_dataset"),
            (spec(distillation=Distillation(2)), "spec.distillation.num_questions"),
            (spec(distillation=Distillation(4096, 1024)), "spec.distillation.max_answer_tokens"),
            (spec(distillation=Distillation(None, 480)), "dataset[0].input"),
            (TuningSpec("shop", ordinary, distillation=Distillation()), "dataset[0].output"),
            (
                TuningSpec(
                    "shop",
                    Data([{"input": "a", "label": "b"}, {"input": "c", "label": "d"}]),
                    distillation=Distillation(),
                ),
                "spec.dataset",
            ),
        ):
            with pytest.raises(InvalidInput) as caught:
                await client.create_job(wrong)
            assert caught.value.violations[0].field == field, caught.value.message
        assert await client.list_jobs() == []
        with pytest.raises(InvalidInput, match="document"):
            await client.distill("  ", "shop")


LONG = TuningSpec(
    "shop",
    distillation_examples(TEXT, [f"question {number}?" for number in range(600)]),
    distillation=Distillation(600, 16),
    hyperparameters=SHORT,
)
"""Its study takes seconds, and what a test does meanwhile takes milliseconds."""


@pytest.fixture
def quick(settings: TrainerSettings) -> TrainerSettings:
    """A trainer that stores a checkpoint after almost each batch of a study."""
    return settings.model_copy(update={"checkpoint_seconds": 0.1})


async def _begun(client: AsyncClient) -> str:
    """A job whose study has a checkpoint."""
    job = await client.create_job(LONG)
    async for event in client.watch_job(job.name):
        if isinstance(event, CheckpointStored):
            assert event.step == 0
            break
    return job.name


async def test_a_study_goes_on_after_a_restart(quick: TrainerSettings) -> None:
    async with running_trainer(quick, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        name = await _begun(client)
    async with running_trainer(quick, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        job = await client.wait_for_job(name)
        prepared = [
            event.progress.num_prepared
            async for event in client.watch_job(name)
            if isinstance(event, ProgressMade) and event.progress.step == 0 and event.progress.num_prepared
        ]
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert sorted(prepared) == prepared, "nothing is asked again"


async def test_a_job_that_is_cancelled_in_its_study_keeps_no_prompt(quick: TrainerSettings) -> None:
    async with running_trainer(quick, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        name = await _begun(client)
        await client.cancel_job(name)
        with pytest.raises(JobFailed):
            await client.wait_for_job(name)
        job = await client.get_job(name)
    assert job.state is JobState.CANCELLED
    assert not job.best_prompt_kept, "there is no prompt before the first step"
