"""The stored part of job reports, and the curves from a job's events. The job's removal removes both."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from pydantic import ValidationError
from sqlalchemy import func, select

from shared.values.report import HeldOutAnswers
from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, job_reports
from trainer_service.jobs.model import JobEvent, JobEventKind
from trainer_service.jobs.store import event_log
from trainer_service.jobs.store.event_compaction import MAX_CURVE_EVENTS, is_best, thinned
from trainer_service.jobs.stored_json import from_json, to_json
from trainer_service.training.events import TrainingResult

log = logging.getLogger(__name__)

_MAX_STORED_BYTES = 16 << 20
"""A larger record is not read."""


@dataclass(frozen=True)
class StoredReport:
    """What is kept of a trained job for its report."""

    answers: HeldOutAnswers
    num_tokens: int
    """Tokens that its steps computed."""
    software_version: str
    """The release that trained it."""

    def encode(self) -> bytes:
        """Compressed JSON."""
        return zlib.compress(to_json(self).encode())

    @classmethod
    def decode(cls, data: bytes) -> StoredReport:
        """The inverse of `encode`. Raises ValueError."""
        try:
            stream = zlib.decompressobj()
            text = stream.decompress(data, _MAX_STORED_BYTES)
            if not stream.eof:
                raise ValueError("the record is too large or incomplete")
            return from_json(cls, text)
        except (zlib.error, ValidationError) as error:
            raise ValueError(str(error)) from error


def report_of(trained: TrainingResult) -> StoredReport:
    """What is kept of a training result. Workers run the trainer's own release."""
    return StoredReport(trained.answers, trained.num_tokens, _release())


@cache
def _release() -> str:
    """This release; to read it from the installed package takes milliseconds."""
    return version("softprompt")


def save_report(database: Database, job_id: str, attempt: int, report: StoredReport) -> None:
    """Replaces the report, but keeps that of a later attempt."""
    values = {"attempt": attempt, "data": report.encode()}
    with database.write() as connection:
        database.put(connection, job_reports, {"job_id": job_id}, values, newest="attempt")


def load_report(database: Database, job_id: str) -> StoredReport | None:
    """None if there is none, as for jobs of earlier releases, or if it can't be read."""
    data = database.scalar(select(job_reports.c.data).where(job_reports.c.job_id == job_id))
    if data is None:
        return None
    try:
        return StoredReport.decode(bytes(data))
    except ValueError:
        log.error("a job's report can't be read; ignoring it", extra={"fields": {"job": job_id}})
        return None


def load_curve(database: Database, job_id: str, kind: JobEventKind) -> list[JobEvent]:
    """The PROGRESS or EVALUATION events of a job, in order: at most MAX_CURVE_EVENTS, evenly spread, with the last best
    evaluation.
    """
    of_kind = (job_events.c.job_id == job_id) & (job_events.c.kind == kind.value)
    with database.read() as connection:
        numbers = list(connection.scalars(select(job_events.c.number).where(of_kind).order_by(job_events.c.number)))
        best = connection.scalar(select(func.max(job_events.c.number)).where(of_kind, is_best()))
        kept = {*thinned(numbers, MAX_CURVE_EVENTS - 1), *(() if best is None else (best,))}
        return event_log.read_numbers(connection, job_id, sorted(kept))
