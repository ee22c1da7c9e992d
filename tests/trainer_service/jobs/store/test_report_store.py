"""Stored reports on each database: the latest attempt's is kept, and a damaged one counts as missing."""

from __future__ import annotations

import zlib

from sqlalchemy import update

from shared.values.report import ConfusionCell, HeldOutAnswer, HeldOutAnswers, ModelAnswer
from shared.values.results import TuningProgress
from tests.trainer_service.builders import record
from trainer_service.database.schema import job_reports
from trainer_service.jobs.model import Evaluation, EventPayload, JobEventKind
from trainer_service.jobs.store.event_compaction import MAX_CURVE_EVENTS
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.store.report_store import StoredReport, load_curve, load_report, save_report

ANSWER = HeldOutAnswer(3, "in\0put", "wanted", tuned=ModelAnswer("said", float("inf"), False), bare=ModelAnswer())


def report(num_tokens: int) -> StoredReport:
    answers = HeldOutAnswers((ANSWER,), 2, (ConfusionCell("a", "b", 1),))
    return StoredReport(answers, num_tokens, "0.1.0")


def created(store: JobStore) -> str:
    made = record()
    store.create(made, max_queued=10, max_active_of_caller=10)
    return made.job.id


def test_the_report_of_the_latest_attempt_is_kept_and_goes_with_its_job(store: JobStore) -> None:
    job = created(store)
    assert load_report(store.database, job) is None
    for attempt, num_tokens in ((2, 20), (1, 10)):
        save_report(store.database, job, attempt, report(num_tokens))
    assert load_report(store.database, job) == report(20)
    save_report(store.database, job, 2, report(21))
    assert load_report(store.database, job) == report(21)


def test_a_damaged_report_is_none(store: JobStore) -> None:
    job = created(store)
    save_report(store.database, job, 1, report(1))
    too_large = zlib.compress(b"x" * (17 << 20))
    for data in (b"", b"nonsense", zlib.compress(b"{}"), too_large, report(1).encode()[:-9]):
        with store.database.write() as connection:
            connection.execute(update(job_reports).values(data=data))
        assert load_report(store.database, job) is None


def test_a_long_curve_is_thinned_and_has_its_ends_and_the_best_evaluation(store: JobStore) -> None:
    job = created(store)
    count = 3 * MAX_CURVE_EVENTS
    steps: list[EventPayload] = [TuningProgress(step=step) for step in range(1, count + 1)]
    evaluations: list[EventPayload] = [
        Evaluation(step=step, metrics={"loss": 1.0}, is_best=step == 4) for step in range(1, count + 1)
    ]
    store.change(job, lambda before: before, payloads=[*steps, *evaluations])
    for kind, kept in ((JobEventKind.PROGRESS, {1, count}), (JobEventKind.EVALUATION, {1, 4, count})):
        found = [getattr(event.payload, "step", 0) for event in load_curve(store.database, job, kind)]
        assert found == sorted(found)
        assert kept <= set(found)
        assert len(found) <= MAX_CURVE_EVENTS
