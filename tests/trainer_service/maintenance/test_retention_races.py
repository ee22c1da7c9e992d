"""Retention with concurrent creations and uploads, with several trainers, on a volume that hangs, and killed at any
point.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from shared.errors import NotFound, PreconditionFailed
from shared.security import audit
from tests.forks import Forks
from tests.log_lines import log_lines
from tests.trainer_service.maintenance.retention_place import ACME, RIVAL, Place, place
from tests.trainer_service.postgres import Postgres
from trainer_service.database.schema import datasets as dataset_rows
from trainer_service.database.schema import jobs
from trainer_service.datasets.store import StoredDataset
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.files import FileKind
from trainer_service.training.spec import TaskKind

__all__ = ["place"]


def test_a_job_and_the_deletion_of_its_dataset_race(place: Place) -> None:
    """Either the job is made and the dataset stays, or the dataset goes and the job is refused: never a job without its
    dataset.
    """
    outcomes = set()
    with ThreadPoolExecutor(2) as threads:
        for attempt in range(25):
            name, gate = place.add_dataset(ACME, f"race {attempt}"), threading.Barrier(2)

            def make(name: str = name, gate: threading.Barrier = gate) -> str:
                gate.wait()
                try:
                    place.add_job(ACME, name)
                except NotFound:
                    return "refused"
                return "made"

            def delete(name: str = name, gate: threading.Barrier = gate) -> str:
                gate.wait()
                try:
                    place.datasets.delete(ACME, name, lambda prompt: True)
                except PreconditionFailed:
                    return "kept"
                return "deleted"

            made, deleted = threads.submit(make), threads.submit(delete)
            outcome = made.result(), deleted.result()
            assert outcome in {("made", "kept"), ("refused", "deleted")}
            assert place.has_bytes(name) is (outcome == ("made", "kept"))
            outcomes.add(outcome)


def test_an_upload_and_the_removal_of_the_same_bytes_race(place: Place) -> None:
    """A tenant that has a dataset has its bytes, whatever another tenant removes meanwhile."""
    with ThreadPoolExecutor(2) as threads:
        for attempt in range(25):
            name, gate = place.add_dataset(ACME, f"race {attempt}"), threading.Barrier(2)

            def add(attempt: int = attempt, gate: threading.Barrier = gate) -> str:
                gate.wait()
                return place.add_dataset(RIVAL, f"race {attempt}")

            def delete(name: str = name, gate: threading.Barrier = gate) -> None:
                gate.wait()
                place.datasets.delete(ACME, name, lambda prompt: True)

            added, deleted = threads.submit(add), threads.submit(delete)
            deleted.result()
            assert added.result() == name
            assert place.has_bytes(name)
            assert len(place.bytes.read(name)) == 2


def test_a_volume_that_hangs_takes_no_more_than_one_connection_to_the_database(
    postgres: Postgres, tmp_path: Path
) -> None:
    place = Place(postgres.create_database(f"test_{uuid.uuid4().hex}"), tmp_path)
    job, hangs, released = place.add_job(ACME, place.add_dataset(ACME, "a")), threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        released.wait()

    def add(number: int) -> None:
        stored = StoredDataset(f"datasets/sha256-{number:064}", 1, TaskKind.GENERATION, (), 1)
        place.ledger.add("rival", stored, 0, hang)

    with ThreadPoolExecutor(20) as threads:
        adding = [threads.submit(add, number) for number in range(20)]
        try:
            hangs.wait()
            assert place.jobs.get(job.id).state is JobState.QUEUED
            assert place.add_job(ACME, job.spec.dataset).state is JobState.QUEUED
            assert len(place.ledger.page("acme", "", 10)) == 1
        finally:
            released.set()
        for done in adding:
            done.result()
    assert len(place.ledger.page("rival", "", 100)) == 20
    place.jobs.close()


def test_several_trainers_do_rounds_at_once(place: Place) -> None:
    """Each thing is removed, and audited, once."""
    dataset = place.add_dataset(ACME, "a")
    old = [place.add_job(ACME, dataset, ended_days=100) for _ in range(30)]
    unused = [place.add_dataset(ACME, f"unused {number}", unused_days=40) for number in range(20)]
    with log_lines(audit.LOGGER) as lines, ThreadPoolExecutor(3) as threads:
        reports = [done.result() for done in [threads.submit(place.round) for _ in range(3)]]
    assert not any(report.failures for report in reports)
    assert sum(report.jobs_removed for report in reports) == 30
    assert sum(report.datasets_removed for report in reports) == 20
    assert sorted(line["job"] for line in lines if "job" in line) == sorted(job.id for job in old)
    assert not any(place.has_bytes(name) for name in unused)


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from tests.trainer_service.maintenance.retention_place import Place

place = Place(sys.argv[1], Path(sys.argv[2]))  # opened by the fork, like everything that the round uses
left = [int(sys.argv[3])]

def die(*_):
    left[0] -= 1
    if left[0] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(place.database.engine, "commit", die)
os.unlink_before, os.unlink = os.unlink, lambda *a, **k: (die(), os.unlink_before(*a, **k))
place.round()
"""


@pytest.fixture
def forks() -> Iterator[Forks]:
    with Forks("tests.trainer_service.maintenance.retention_place") as made:
        yield made


def test_a_round_that_is_killed_anywhere_leaves_nothing_half(forks: Forks, tmp_path: Path) -> None:
    """SIGKILL before the n-th commit or removal of a file: the rest is consistent, and later rounds finish."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    place = Place(url, tmp_path)
    kept = place.add_job(ACME, place.add_dataset(ACME, "kept"))
    dataset = place.add_dataset(ACME, "old")
    old = [place.add_job(ACME, dataset, ended_days=100) for _ in range(4)]
    for job in old:
        place.files.save(job.id, FileKind.CHECKPOINT, 1, b"best")
    place.age_dataset(ACME, dataset, 40)
    unused = [place.add_dataset(tenant, text, unused_days=40) for text in "abc" for tenant in (ACME, RIVAL)]
    place.jobs.close()
    deaths = 0
    for commits in (3, 5, 8, 13, 21, 34, 60):
        ended = forks.run(KILLED, tmp_path / "output.txt", (url, str(tmp_path), str(commits)))
        assert ended.code in (0, -9), ended.output
        deaths += ended.code == -9
        place = Place(url, tmp_path)
        with place.database.read() as connection:
            owned = list(connection.scalars(select(dataset_rows.c.dataset)))
            unended = list(connection.scalars(select(jobs.c.id).where(jobs.c.end_time.is_(None))))
        assert all(place.has_bytes(name) for name in owned)
        assert unended == [kept.id]
        place.jobs.close()
    assert deaths >= 3
    place = Place(url, tmp_path)
    assert not place.round().failures
    assert not any(place.exists(job) or place.files.load(job.id, FileKind.CHECKPOINT) for job in old)
    with place.database.read() as connection:
        assert list(connection.scalars(select(dataset_rows.c.dataset))) == [kept.spec.dataset]
    for path in (tmp_path / "datasets").iterdir():  # what a death between row and file left goes with a later round
        os.utime(path, (0, 0))
    place.round()
    assert not any(place.has_bytes(name) for name in [*unused, dataset])
    assert place.has_bytes(kept.spec.dataset)
    place.jobs.close()
