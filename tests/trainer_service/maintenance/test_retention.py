"""Retention on SQLite and PostgreSQL: events are thinned, old jobs and datasets removed, unused pages returned."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from shared.errors import NotFound
from shared.security import audit
from shared.values.results import TuningProgress
from tests.log_lines import log_lines
from tests.trainer_service.builders import record, spec
from tests.trainer_service.maintenance.retention_place import ACME, POLICY, RIVAL, Place, place
from trainer_service.database.schema import datasets as dataset_rows
from trainer_service.database.schema import job_events
from trainer_service.datasets.store import DatasetStore
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Checkpoint, Evaluation, EventPayload, Job, JobEvent, JobEventKind, Note
from trainer_service.jobs.store.event_compaction import COMPACT_AFTER_SECONDS, MAX_CURVE_EVENTS, thinned
from trainer_service.jobs.store.files import FileKind
from trainer_service.maintenance.retention import DAY_SECONDS, RetentionPolicy
from trainer_service.training.spec import Example

__all__ = ["place"]


def add_events(place: Place, job: Job, num_progress: int, num_evaluations: int = 0, num_checkpoints: int = 0) -> int:
    """Events as a long training leaves them, before the job's last one; the number of the last one."""
    payloads: list[EventPayload] = [
        *[TuningProgress(step=step, num_steps=num_progress, train_loss=1.0) for step in range(num_progress)],
        *[
            Evaluation(step=step, metrics={"loss": 1.0}, is_best=step == num_evaluations // 3)
            for step in range(num_evaluations)
        ],
        *[Checkpoint(step=step) for step in range(num_checkpoints)],
        Note(text="one"),
        Note(text="two"),
    ]
    changed = place.jobs.change(
        job.id, lambda before: replace(before, queue_key=before.queue_key + 1), payloads=payloads
    )
    return changed.job.last_event


def events_of(place: Place, job: Job, after: int = 0) -> list[JobEvent]:
    return place.jobs.events(job.id, after, limit=100_000)


def end(place: Place, job: Job, seconds: float) -> None:
    place.jobs.change(job.id, lambda before: transitions.cancel(before, time.time() - seconds))


def test_a_curve_keeps_its_ends_and_its_points_are_spread() -> None:
    assert thinned(range(10), 20) == list(range(10))
    kept = thinned(range(100_000), 250)
    assert (kept[0], kept[-1], len(set(kept))) == (0, 99_999, 250)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


def test_events_of_an_ended_job_are_thinned_to_a_curve(place: Place) -> None:
    dataset = place.add_dataset(ACME, "a")
    job, running, fresh = (place.add_job(ACME, dataset) for _ in range(3))
    for each in (job, running, fresh):
        last = add_events(place, each, 3000, 900, 400)
    end(place, job, COMPACT_AFTER_SECONDS + 60)
    end(place, fresh, 0)
    report = place.round()
    assert not report.failures
    kept = events_of(place, job)
    by_kind = {kind: [event for event in kept if event.kind is kind] for kind in JobEventKind}
    curve = len(by_kind[JobEventKind.PROGRESS]) + len(by_kind[JobEventKind.EVALUATION])
    assert MAX_CURVE_EVENTS - 5 < curve <= MAX_CURVE_EVENTS
    assert [event.payload for event in by_kind[JobEventKind.NOTE]] == [Note(text="one"), Note(text="two")]
    assert [event.payload for event in by_kind[JobEventKind.CHECKPOINT]] == [Checkpoint(step=399)]
    assert len(by_kind[JobEventKind.STATE_CHANGED]) == 2
    steps = [
        event.payload.step for event in by_kind[JobEventKind.PROGRESS] if isinstance(event.payload, TuningProgress)
    ]
    assert (steps[0], steps[-1]) == (0, 2999)
    assert any(isinstance(event.payload, Evaluation) and event.payload.is_best for event in kept)
    assert kept[-1].number == last + 1 == place.jobs.get(job.id).last_event
    assert report.events_removed == 4300 - curve - 1
    assert len(events_of(place, running)) == last
    assert len(events_of(place, fresh)) == last + 1, "a new watcher sees every event"
    assert not place.round().did_something

    resumed = events_of(place, job, after=1500)  # number 1500 itself is gone, or not
    assert [event.number for event in resumed] == [event.number for event in kept if event.number > 1500]


def test_ended_jobs_go_after_their_days_with_everything_that_they_kept(place: Place) -> None:
    dataset = place.add_dataset(ACME, "a")
    old, young = place.add_job(ACME, dataset, ended_days=91), place.add_job(ACME, dataset, ended_days=89)
    waiting = place.add_job(ACME, dataset)
    for job in (old, young, waiting):
        place.files.save(job.id, FileKind.CHECKPOINT, 1, b"best prompt")
    with place.database.write() as connection:  # more than one transaction may remove
        row = {"job_id": old.id, "time": 0.0, "kind": "note", "payload": '{"text":"x"}'}
        connection.execute(insert(job_events), [{**row, "number": number} for number in range(100, 1700)])
    with log_lines(audit.LOGGER) as lines:
        report = place.round()
    assert (report.failures, report.jobs_removed) == ({}, 1)
    assert [(line["action"], line["caller"], line["tenant"], line["job"]) for line in lines] == [
        ("tidying", "retention", "acme", old.id)
    ]
    assert [place.exists(job) for job in (old, young, waiting)] == [False, True, True]
    assert [place.files.load(job.id, FileKind.CHECKPOINT) is None for job in (old, young, waiting)] == [
        True,
        False,
        False,
    ]
    with place.database.read() as connection:
        assert connection.scalar(select(func.count()).where(job_events.c.job_id == old.id)) == 0


def test_a_tenant_may_have_days_of_its_own(place: Place) -> None:
    long, short = (
        replace(ACME, ended_job_days=0, unused_dataset_days=0),
        replace(RIVAL, ended_job_days=1, unused_dataset_days=2),
    )
    kept, gone = (place.add_job(tenant, place.add_dataset(tenant, "x"), ended_days=1000) for tenant in (ACME, RIVAL))
    for tenant in (ACME, RIVAL):
        place.age_dataset(tenant, kept.spec.dataset, 1000)
    place.round(POLICY, long, short)
    assert [place.exists(job) for job in (kept, gone)] == [True, False]
    assert place.ledger.get("acme", kept.spec.dataset).size_bytes > 0
    with pytest.raises(NotFound):
        place.ledger.get("rival", kept.spec.dataset)
    assert place.has_bytes(kept.spec.dataset)
    place.round(RetentionPolicy(ended_job_days=0, unused_dataset_days=0))
    assert place.exists(kept)


def test_datasets_go_when_no_unended_job_needs_them_and_they_were_not_used_for_days(place: Place) -> None:
    names = {text: place.add_dataset(ACME, text) for text in ("unused", "fresh", "needed", "ended", "lately", "shared")}
    place.add_job(ACME, names["needed"])
    place.add_job(ACME, names["ended"], ended_days=31)
    place.add_job(ACME, names["lately"], ended_days=3)
    place.add_dataset(RIVAL, "shared")
    for text, name in names.items():
        place.age_dataset(ACME, name, 1 if text == "fresh" else 31)
    with log_lines(audit.LOGGER) as lines:
        report = place.round()
    assert not report.failures
    removed = {line["dataset"] for line in lines if "dataset" in line}
    assert removed == {names[text] for text in ("unused", "ended", "shared")}
    assert {text for text, name in names.items() if place.has_bytes(name)} == {"fresh", "needed", "lately", "shared"}
    assert len(place.bytes.read(names["needed"])) == 2
    place.ledger.require("rival", (names["shared"],))


def test_bytes_that_no_tenant_has_go_after_a_day_unless_a_job_still_reads_them(place: Place) -> None:

    orphan, young, read = (place.add_bytes([Example(line=1, input=text, output="x")]) for text in "abc")
    place.jobs.create(record(replace(spec(), dataset=read)), max_queued=10, max_active_of_caller=10)
    for name in (orphan, read):
        os.utime(place.directory / "datasets" / f"{name.removeprefix('datasets/')}.jsonl", (0, 0))
    assert place.round().files_removed == 1
    assert [place.has_bytes(name) for name in (orphan, young, read)] == [False, True, True]


def test_sqlite_gives_pages_back_also_of_a_file_from_before(tmp_path: Path) -> None:

    path = tmp_path / "jobs.sqlite3"
    place = Place(f"sqlite:///{path}", tmp_path)
    job = place.add_job(ACME, place.add_dataset(ACME, "a"))
    place.jobs.close()
    with sqlite3.connect(path) as connection:  # as an older build made it
        connection.execute("PRAGMA auto_vacuum=NONE")
    connection.execute("VACUUM")
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    connection.close()

    place = Place(f"sqlite:///{path}", tmp_path)
    with place.database.write() as writing:
        row = {"job_id": job.id, "time": 0.0, "kind": "note", "payload": "x" * 20_000}
        writing.execute(insert(job_events), [{**row, "number": number} for number in range(100, 1100)])
    end(place, job, 100 * DAY_SECONDS)
    before = place.database.size_bytes()
    assert place.round().failures == {}
    place.jobs.close()
    assert path.stat().st_size < 0.5 * before
    assert path.stat().st_size < 8 << 20


def test_datasets_of_an_older_build_belong_to_their_jobs_tenants_and_are_measured(place: Place) -> None:
    examples = [Example(line=n, input=f"{n}", label=label) for n, label in ((1, "x"), (2, "y"))]
    name = place.add_bytes(examples)
    with place.database.write() as connection:
        row = {"dataset": name, "size_bytes": 0, "num_examples": 0, "task": "", "num_labels": 0, "create_time": 0.0}
        connection.execute(
            insert(dataset_rows),
            [{**row, "tenant": tenant, "last_use_time": time.time()} for tenant in ("acme", "rival")],
        )
    assert not place.round().failures
    for tenant in ("acme", "rival"):
        found = place.ledger.get(tenant, name)
        assert (found.num_examples, found.task, found.num_labels) == (2, "CLASSIFICATION", 2)
        assert (
            found.size_bytes
            == (place.directory / "datasets" / f"{name.removeprefix('datasets/')}.jsonl").stat().st_size
        )


def test_what_is_away_is_reported_and_other_steps_go_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    job = place.add_job(ACME, place.add_dataset(ACME, "a"), ended_days=100)

    class Broken(DatasetStore):
        def unused(self, seconds: float) -> Iterator[str]:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(place.bytes, "__class__", Broken)
    report = place.round()
    assert list(report.failures) == ["remove_orphans"]
    assert not place.exists(job)
