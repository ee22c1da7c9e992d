"""Reports of jobs through a real channel: their content, their readers, and their removal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import tuning_pb2 as pb
from sqlalchemy import Engine, create_engine, delete, func, select

from shared.errors import NotFound, PermissionDenied
from shared.security import audit
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from tests.log_lines import log_lines
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import classification_examples, generation_examples, inline, tuning_spec
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.database.schema import job_reports

NAMES = {"acme": ["tuner", "publisher"], "dashboard": ["viewer"], "rival": ["tuner"], "stranger": ["tuner"]}
TOKENS = {name: new_token() for name in NAMES}


@dataclass
class Reports:
    trainer: RunningTrainer
    database: Engine

    async def finished(self, **fields: Any) -> pb.TuningJob:
        call = pb.CreateTuningJobRequest(spec=tuning_spec(**fields))
        job = (await self.trainer.tuning.CreateTuningJob(call, **by("acme"))).job

        async def has_ended() -> bool:
            nonlocal job
            job = (await self.trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name), **by("acme"))).job
            return bool(job.HasField("end_time"))

        await until(has_ended)
        assert job.state == pb.TuningJob.STATE_SUCCEEDED, job.error
        return job

    async def of(self, name: str, caller: str = "acme", *, omit_answers: bool = False) -> pb.JobReport:
        request = pb.GetJobReportRequest(name=name, omit_answers=omit_answers)
        report: pb.JobReport = (await self.trainer.tuning.GetJobReport(request, **by(caller))).report
        return report


def by(name: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {TOKENS[name]}"),)}


@pytest.fixture
async def reports(settings: TrainerSettings, tmp_path: Path) -> AsyncIterator[Reports]:
    callers = [
        {"name": name, "roles": roles, "token_sha256": [hash_token(TOKENS[name])]} for name, roles in NAMES.items()
    ]
    for caller in callers[:2]:
        caller["tenant"] = "acme-corp"
    callers[3]["prompts"] = ["other-*"]
    file = tmp_path / "callers.json"
    file.write_text(json.dumps({"callers": callers, "tenants": [{"name": "acme-corp"}]}))
    guarded = settings.model_copy(update={"callers_file": str(file)})
    async with running_trainer(guarded, local_pool) as trainer:
        engine = create_engine(guarded.resolved_database_url)
        yield Reports(trainer, engine)
        engine.dispose()


async def test_a_report_has_curves_answers_lineage_and_cost_and_only_its_tenant_reads_them(reports: Reports) -> None:
    few = pb.Hyperparameters(num_steps=4, num_virtual_tokens=4, evaluation_interval_steps=2)
    data = {"dataset": inline(generation_examples(30)), "validation_fraction": 0.5, "hyperparameters": few}
    first = await reports.finished(**data)
    source = pb.PromptInit(source="support-tone")
    data["hyperparameters"] = pb.Hyperparameters(num_steps=2, init=source)
    second = await reports.finished(**data)

    report = await reports.of(second.name)
    assert report.job == second
    assert [point.step for point in report.training] == sorted({point.step for point in report.training})
    assert report.training[-1].step == 2
    assert report.training[-1].loss > 0
    assert report.evaluations[-1].metrics["loss"] > 0
    assert len(report.answers) == second.result.num_judging == 15
    assert report.num_answers_left_out == 0
    answer = report.answers[0]
    assert answer.input.startswith("number ")
    assert answer.reference == answer.input.replace("number", "it is")
    for name in ("tuned", "current", "bare", "instructed", "few_shot"):
        assert answer.HasField(name), name
        assert getattr(answer, name).loss > 0
        written = [getattr(one, name) for one in report.answers if getattr(one, name).HasField("text")]
        assert written, name
        assert all(one.HasField("correct") for one in written)
    mean = sum(one.tuned.loss * len(one.reference) for one in report.answers)  # the tiny model's tokens are bytes
    assert mean == pytest.approx(
        second.result.metrics["loss"] * sum(len(one.reference) + 1 for one in report.answers), rel=0.2
    )
    assert not report.confusion
    assert report.lineage.dataset == second.spec.dataset.dataset
    assert report.lineage.parent_version == "prompts/support-tone/versions/1"
    assert report.lineage.parent_digest == first.result.digest
    assert report.lineage.base_model.fingerprint.startswith("sha256:")
    assert report.lineage.software_version
    assert report.cost.num_steps == 2
    assert report.cost.num_tokens > 2 * 8
    assert report.cost.worker_time.ToNanoseconds() > 0
    texts = [one.input.encode() for one in report.answers]
    blob = open_store(reports.trainer.settings.resolved_store_url).fetch(second.result.digest)
    assert not any(text in blob for text in texts)

    with log_lines(audit.LOGGER) as audited:
        assert isinstance(await refused(reports.of(second.name, "rival")), PermissionDenied)
        assert isinstance(await refused(reports.of(second.name, "stranger")), NotFound)
        assert isinstance(await refused(reports.of(second.name, "stranger", omit_answers=True)), NotFound)
        assert isinstance(await refused(reports.of(second.name, "dashboard")), PermissionDenied)
    assert [(line["caller"], line["action"]) for line in audited] == [
        (name, "TuningService/GetJobReport") for name in ("rival", "stranger", "stranger", "dashboard")
    ]
    for caller in ("dashboard", "rival"):
        without = await reports.of(second.name, caller, omit_answers=True)
        assert not without.answers
        assert "the answers are left out, as requested" in without.missing
        assert without.training == report.training

    with reports.database.begin() as connection:
        connection.execute(delete(job_reports).where(job_reports.c.job_id == first.name.removeprefix("tuningJobs/")))
    old = await reports.of(first.name)
    assert not old.answers
    assert not old.cost.HasField("num_tokens")
    assert any("trained by an earlier release" in sentence for sentence in old.missing)
    assert [point.step for point in old.training][-1] == 4

    await reports.trainer.tuning.DeleteTuningJob(pb.DeleteTuningJobRequest(name=second.name), **by("acme"))
    with reports.database.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(job_reports)) == 0


async def test_a_classification_has_labels_as_answers_and_a_confusion_matrix(reports: Reports) -> None:
    job = await reports.finished(
        dataset=inline(classification_examples(24)),
        validation_fraction=0.5,
        hyperparameters=pb.Hyperparameters(num_steps=2, num_virtual_tokens=2),
    )
    report = await reports.of(job.name)
    assert {answer.reference for answer in report.answers} == {"even", "odd"}
    assert all(answer.few_shot.text in ("even", "odd") for answer in report.answers)
    right = sum(answer.tuned.correct for answer in report.answers)
    assert right / len(report.answers) == pytest.approx(job.result.metrics["accuracy"])
    assert sum(cell.count for cell in report.confusion) == len(report.answers)
    assert sum(cell.count for cell in report.confusion if cell.expected == cell.chosen) == right
    assert "there was no current version, or it can't be compared" in report.missing


async def test_a_job_without_a_result_has_a_report_that_says_so(reports: Reports) -> None:
    spec = tuning_spec(hyperparameters=pb.Hyperparameters(num_steps=100_000))
    created = await reports.trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec), **by("acme"))
    name = created.job.name
    assert any("follow when it has succeeded" in text for text in (await reports.of(name)).missing)

    async def has_progress() -> bool:
        return bool((await reports.of(name)).training)

    await until(has_progress)
    assert (await reports.of(name)).cost.worker_time.ToNanoseconds() > 0
    await reports.trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name), **by("acme"))

    async def has_ended() -> bool:
        return (await reports.of(name)).job.state == pb.TuningJob.STATE_CANCELLED

    await until(has_ended)
    report = await reports.of(name)
    assert "the job was cancelled, so it has no metrics, answers and nearest tokens" in report.missing
