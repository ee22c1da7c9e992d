"""One contract for the job store on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from shared.errors import Conflict, InvalidInput, NotFound, Overloaded, PreconditionFailed
from shared.values.results import TuningProgress
from shared.values.spec import MAX_ANNOTATION_KEY_CHARS, MAX_ANNOTATION_VALUE_CHARS
from tests.trainer_service.builders import record, spec
from tests.trainer_service.jobs.store.records import LIMITS, create
from trainer_service.database.schema import metadata
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job, JobFilter, Note
from trainer_service.jobs.record import Record
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.files import DatabaseFiles, FileKind
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.stored_json import to_json


def test_the_migrations_build_the_schema_that_the_code_uses(store: JobStore) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        names = {index["name"] for index in inspect(connection).get_indexes("jobs")}
        assert names == {index.name for index in metadata.tables["jobs"].indexes}


def test_a_job_comes_back_as_it_was_stored(store: JobStore) -> None:
    # PostgreSQL's index takes 2704 bytes: characters of four bytes that can't be compressed
    longest = "".join(chr(0x10000 + 7919 * number % 0x10000) for number in range(MAX_ANNOTATION_VALUE_CHARS))
    annotations = {"team": "search", "é": "ü\n'\";--", longest[:MAX_ANNOTATION_KEY_CHARS]: longest}
    made = record(spec(annotations=annotations), caller="ann", request_id="r")
    created = create(store, made)
    assert created == made.job.model_copy(update={"last_event": 1})
    assert store.get(created.id) == created
    [event] = store.events(created.id, 0)
    assert (event.number, event.payload) == (1, created)


def test_numbers_that_json_does_not_know_survive(store: JobStore) -> None:
    job = create(store)
    worse = TuningProgress(step=1, train_loss=float("inf"), metrics={"loss": float("-inf")})
    store.change(job.id, lambda old: old.with_job(progress=worse), payloads=[worse])
    assert store.get(job.id).progress == worse
    assert store.events(job.id, 1)[0].payload == worse


def test_a_change_and_its_events_are_one_transaction(store: JobStore) -> None:
    job = create(store)

    def explode(old: Record) -> Record:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        store.change(job.id, explode, payloads=[Note(text="never stored")])
    with pytest.raises(PreconditionFailed) as refused:
        store.change(job.id, lambda old: old.with_job(state=JobState.SUCCEEDED), payloads=[Note(text="never stored")])
    assert refused.value.metadata["state"] == "QUEUED"
    assert store.get(job.id) == job
    assert len(store.events(job.id, 0)) == 1

    after = store.change(
        job.id, lambda old: transitions.cancel(old, time.time()), payloads=[Note(text="one"), Note(text="two")]
    )
    events = store.events(job.id, 1)
    assert [event.number for event in events] == [2, 3, 4]
    assert events[-1].payload == after.job
    assert after.job.last_event == 4


def test_changing_nothing_stores_nothing(store: JobStore) -> None:
    job = create(store)
    store.change(job.id, lambda old: old)
    assert store.get(job.id).last_event == 1


def test_a_filter_that_no_text_matches(store: JobStore) -> None:
    """PostgreSQL holds no NUL, and refuses to look for one."""
    filter = JobFilter(annotations={"key": "a\0b"})
    if store.is_shared:
        with pytest.raises(InvalidInput, match="NUL"):
            store.page(filter, 10)
    else:
        assert store.page(filter, 10).jobs == ()


def test_unknown_jobs(store: JobStore) -> None:
    for call in (store.get, store.delete, lambda id: store.events(id, 0), lambda id: store.change(id, lambda old: old)):
        with pytest.raises(NotFound):
            call("01nothere")


def test_one_request_makes_one_job(store: JobStore) -> None:
    first = create(store, record(caller="ann", request_id="r"))
    assert create(store, record(caller="ann", request_id="r")).id == first.id
    assert create(store, record(caller="ann")).id != create(store, record(caller="ann")).id
    with pytest.raises(Conflict):
        create(store, record(spec(prompt="other"), caller="ann", request_id="r"))


def test_a_request_repeated_at_the_same_moment_makes_one_job(store: JobStore) -> None:
    barrier = threading.Barrier(4)

    def send(_: int) -> str:
        barrier.wait()
        return create(store, record(caller="ann", request_id="same")).id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(send, range(4)))) == 1


def test_callers_share_a_request_id_for_a_prompt(store: JobStore) -> None:
    first = store.create(record(caller="ann", request_id="r"), **LIMITS, is_shared=True)
    assert store.create(record(caller="bob", request_id="r"), **LIMITS, is_shared=True).id == first.id
    shared = (first.tenant, first.spec.prompt)
    assert store.find_request("bob", "r", shared=shared) == first
    assert store.find_request("bob", "r") is store.find_request("bob", "r", shared=(first.tenant, "other")) is None
    assert store.find_request("bob", "r", shared=("another tenant", first.spec.prompt)) is None
    own = create(store, record(caller="bob", request_id="r"))
    assert own.id != first.id, "callers that don't share it have request ids of their own"
    assert store.create(record(caller="eve", request_id="r"), **LIMITS, is_shared=True).id == first.id
    with pytest.raises(Conflict):
        store.create(record(spec(num_steps=7), caller="eve", request_id="r"), **LIMITS, is_shared=True)
    with pytest.raises(Conflict):  # bob's own request id, for another prompt
        store.create(record(spec(prompt="other"), caller="bob", request_id="r"), **LIMITS, is_shared=True)
    other = store.create(record(spec(prompt="other"), caller="eve", request_id="r"), **LIMITS, is_shared=True)
    assert other.id not in (first.id, own.id)


def test_callers_that_share_a_request_at_the_same_moment_make_one_job(store: JobStore) -> None:
    barrier = threading.Barrier(4)

    def send(caller: int) -> str:
        barrier.wait()
        made = record(caller=f"caller-{caller}", tenant="tenant", request_id="same")
        return store.create(made, **LIMITS, is_shared=True).id

    for _ in range(5):
        with ThreadPoolExecutor(4) as threads:
            found = set(threads.map(send, range(4)))
        assert len(found) == 1
        [job] = found
        store.change(job, lambda before: transitions.cancel(before, time.time()))
        store.delete(job)


def test_limits(store: JobStore) -> None:
    create(store, record(caller="ann"))
    with pytest.raises(Overloaded, match="queue is full"):
        store.create(record(caller="bob"), max_queued=1, max_active_of_caller=10)
    with pytest.raises(Overloaded, match="of your jobs"):
        store.create(record(caller="ann"), max_queued=10, max_active_of_caller=1)


def test_pages_are_newest_first_and_complete(store: JobStore) -> None:
    made = [create(store, record(spec(prompt=f"p-{n % 2}", annotations={"team": f"t-{n % 3}"}))) for n in range(12)]
    for job in made[:4]:
        store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    newest = [job.id for job in sorted(made, key=lambda job: job.id, reverse=True)]
    cancelled = {job.id for job in made[:4]}
    cases: list[tuple[JobFilter, Callable[[Job], bool]]] = [
        (JobFilter(), lambda job: True),
        (JobFilter(states=frozenset({JobState.CANCELLED})), lambda job: job.id in cancelled),
        (JobFilter(states=frozenset({JobState.CANCELLED, JobState.QUEUED})), lambda job: True),
        (JobFilter(prompt="p-1"), lambda job: job.spec.prompt == "p-1"),
        (JobFilter(annotations={"team": "t-1"}), lambda job: job.spec.annotations["team"] == "t-1"),
        (
            JobFilter(states=frozenset({JobState.QUEUED}), prompt="p-0", annotations={"team": "t-2"}),
            lambda job: job.id not in cancelled and job.spec.prompt == "p-0" and job.spec.annotations["team"] == "t-2",
        ),
        (JobFilter(annotations={"team": "none"}), lambda job: False),
    ]
    for filter, wanted in cases:
        found, token = list[str](), ""
        while True:
            page = store.page(filter, 3, token)
            assert len(page.jobs) <= 3
            found += [job.id for job in page.jobs]
            if not (token := page.next_after):
                break
        assert found == [id for id in newest if wanted(next(job for job in made if job.id == id))]


def test_pages_of_large_jobs_are_short_and_complete(store: JobStore) -> None:
    labels = tuple(f"{n:04}".ljust(200, "x") for n in range(1000))
    made = [create(store, record(spec(labels=labels))).id for _ in range(45)]
    pages, found, after = 0, list[str](), ""
    while pages == 0 or after:
        page = store.page(JobFilter(), 1000, after)
        assert sum(len(to_json(job.spec)) for job in page.jobs) <= 4 << 20
        found += [job.id for job in page.jobs]
        pages, after = pages + 1, page.next_after
    assert found == sorted(made, reverse=True)
    assert pages == 3


def test_large_events_are_read_a_few_at_a_time(store: JobStore) -> None:
    job = create(store)
    for _ in range(6):
        store.change(
            job.id, lambda old: old.with_job(attempt=old.job.attempt + 1), payloads=[Note(text="x" * (1 << 20))]
        )
    everything = [event.number for event in store.events(job.id, 0, limit=1)]
    while everything[-1] < store.get(job.id).last_event:
        some, more, _ = store.event_page(job.id, everything[-1], 500)
        assert sum(len(to_json(event.payload)) for event in some) <= 5 << 20
        everything += [event.number for event in some]
        assert more == (everything[-1] < store.get(job.id).last_event)
    assert everything == sorted(set(everything))


def test_only_ended_jobs_are_deleted_and_their_events_with_them(store: JobStore) -> None:
    job = create(store, record(spec(annotations={"a": "b"})))
    with pytest.raises(PreconditionFailed):
        store.delete(job.id)
    store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    store.delete(job.id)
    with pytest.raises(NotFound):
        store.events(job.id, 0)
    assert store.page(JobFilter(annotations={"a": "b"}), 10).jobs == ()


def test_files_in_the_database(store: JobStore) -> None:
    files = DatabaseFiles(store.database)
    files.save("01a", FileKind.CHECKPOINT, 2, b"second")
    files.save("01a", FileKind.CHECKPOINT, 1, b"late words of the first attempt")
    files.save("01b", FileKind.OUTCOME, 1, b"outcome")
    assert files.load("01a", FileKind.CHECKPOINT) == b"second"
    assert files.load("01a", FileKind.OUTCOME) is None
    files.save("01a", FileKind.CHECKPOINT, 2, b"third")
    files.remove_ended(lambda: {"01a"})
    assert files.load("01a", FileKind.CHECKPOINT) == b"third"
    assert files.load("01b", FileKind.OUTCOME) is None
    files.remove("01a")
    assert files.load("01a", FileKind.CHECKPOINT) is None


def test_files_of_a_job_that_another_trainer_is_creating_are_kept(store: JobStore) -> None:
    """The prompt that a job starts from is kept before the job's row is written; a trainer may start in between."""
    files, made = DatabaseFiles(store.database), record(spec())
    files.save(made.job.id, FileKind.SOURCE, 0, b"prompt")
    files.remove_ended(store.ids_with_files)
    create(store, made)
    assert files.load(made.job.id, FileKind.SOURCE) == b"prompt"
