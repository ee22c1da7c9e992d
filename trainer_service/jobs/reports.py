"""Reports of jobs: the job, its curves, and what was kept when it was trained."""

from __future__ import annotations

import time
from collections.abc import Iterator

from shared.caller import current_caller
from shared.errors import PermissionDenied
from shared.text.counted import counted
from shared.values.report import HeldOutAnswers, JobCost, JobLineage, JobReport, TrainingPoint
from shared.values.results import TuningProgress
from trainer_service.jobs.model import Evaluation, Job, JobEventKind
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.store.report_store import StoredReport, load_curve, load_report
from trainer_service.jobs.view import effective_spec, shown_job, shown_source
from trainer_service.pools import TrainerPools
from trainer_service.training.spec import TaskKind


class JobReports:
    """Reads reports for the current caller."""

    def __init__(self, store: JobStore, pools: TrainerPools) -> None:
        self._store, self._pools = store, pools

    async def read(self, job_id: str, *, omit_answers: bool = False) -> JobReport:
        """The report of one job. Raises NotFound for a job that the caller may not see, PermissionDenied for answers of
        another tenant's job.
        """
        return await self._pools.job_database.call(self._read, job_id, omit_answers)

    def _read(self, job_id: str, omit_answers: bool) -> JobReport:
        job = self._store.get(job_id, current_caller().prompts)
        if not omit_answers:
            _check_tenant(job)
        stored = load_report(self._store.database, job_id)
        answers = HeldOutAnswers() if stored is None else stored.answers
        if omit_answers:
            answers = HeldOutAnswers(confusion=answers.confusion)
        effective, parent = job.effective, shown_source(job.effective.source_version)
        return JobReport(
            job=shown_job(job),
            training=self._training_curve(job_id),
            evaluations=self._evaluations(job_id),
            answers=answers.answers,
            num_answers_left_out=answers.num_left_out,
            confusion=answers.confusion,
            lineage=JobLineage(
                dataset=job.spec.dataset,
                validation_dataset=job.spec.validation_dataset,
                init=effective_spec(job).hyperparameters.init,
                parent_version=parent,
                parent_digest=effective.source_digest if parent else "",
                base_model=effective.base_model,
                software_version="" if stored is None else stored.software_version,
            ),
            cost=JobCost(
                worker_time_seconds=self._store.record(job_id).runtime_seconds(time.time()),
                num_steps=job.progress.step,
                num_tokens=None if stored is None else stored.num_tokens,
            ),
            missing=tuple(_missing(job, stored, omit_answers)),
            other_held_out_lines=answers.other_lines,
        )

    def _training_curve(self, job_id: str) -> tuple[TrainingPoint, ...]:
        points: dict[int, TrainingPoint] = {}
        for event in load_curve(self._store.database, job_id, JobEventKind.PROGRESS):
            done = event.payload
            if isinstance(done, TuningProgress) and done.step:
                point = TrainingPoint(done.step, done.train_loss, done.learning_rate, done.grad_norm, event.time)
                points[done.step] = point  # after a lost worker some steps were repeated: the later ones count
        return tuple(points[step] for step in sorted(points))

    def _evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        events = load_curve(self._store.database, job_id, JobEventKind.EVALUATION)
        found = {event.payload.step: event.payload for event in events if isinstance(event.payload, Evaluation)}
        return tuple(found[step] for step in sorted(found))


def _check_tenant(job: Job) -> None:
    caller = current_caller()
    if caller.tenant.name != job.tenant:
        raise PermissionDenied(
            "the answers in a job's report are shown only to callers of the job's tenant; "
            "set omit_answers to get the report without them",
            caller=caller.name,
        )


def _missing(job: Job, stored: StoredReport | None, omit_answers: bool) -> Iterator[str]:
    """What the report lacks, and why."""
    if not job.state.is_final:
        yield f"the job is {job.state.value.lower()}: metrics, answers and nearest tokens follow when it has succeeded"
    elif job.state is not JobState.SUCCEEDED:
        ended = "failed" if job.state is JobState.FAILED else "was cancelled"
        yield f"the job {ended}, so it has no metrics, answers and nearest tokens"
    elif stored is None:
        yield (
            "answers, the confusion matrix, the number of tokens and the software version were not kept: "
            "the job was trained by an earlier release"
        )
    if job.dataset_statistics is None:
        yield "the examples were not counted yet"
    if job.effective.repetition is None:
        yield "repeated examples were not counted"
    if omit_answers:
        yield "the answers are left out, as requested"
    elif stored is not None:
        yield from _missing_answers(job, stored.answers)


def _missing_answers(job: Job, found: HeldOutAnswers) -> Iterator[str]:
    if not found.answers:
        yield "there are no answers, because no examples were held out"
        return
    if found.num_left_out:
        yield f"left out, because the report would be too large: {counted(found.num_left_out, 'example')}"
    num_texts = sum(answer.tuned is not None and answer.tuned.text is not None for answer in found.answers)
    if job.effective.training.task is not TaskKind.CLASSIFICATION and num_texts < len(found.answers):
        yield f"texts were generated for {num_texts} of {counted(len(found.answers), 'example')}, to limit the cost"
    unmeasured = "was not measured: its inputs can't be written or are too long"
    reasons = {
        "bare": f"the base model with the input alone {unmeasured}",
        "instructed": f"the base model with an instruction {unmeasured}",
        "few_shot": f"the base model with an instruction and examples {unmeasured}",
        "current": "there was no current version, or it can't be compared",
    }
    for name, reason in reasons.items():
        if all(getattr(answer, name) is None for answer in found.answers):
            yield reason
