"""Prompt patterns in the job store on both databases: they match as in Python, fill pages, and return no row of another
tenant.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text

from shared.caller import Caller
from shared.errors import NotFound
from tests.trainer_service.builders import record, spec
from trainer_service.database.schema import jobs
from trainer_service.database.service_keys import page_token_key
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job, JobFilter, JobOrder
from trainer_service.jobs.record import to_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.store.visibility import visible

LIMITS: Any = {"max_queued": 1000, "max_active_of_caller": 1000}
SUPPORT = ("support-*",)


def create(store: JobStore, prompt: str, **fields: Any) -> Job:
    return store.create(record(spec(prompt=prompt, **fields)), **LIMITS)


@contextmanager
def statements(store: JobStore) -> Iterator[list[tuple[str, Any]]]:
    """The statements that the store's connections execute in the block, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)


def test_patterns_mean_in_sql_what_they_mean_in_python(store: JobStore) -> None:
    pieces = ("", "a", "b", "-", "a-b", "ab", "ba-", "A", "_", "%", "\\")
    names = sorted(
        {"".join(parts) for parts in itertools.product(pieces, repeat=2)}
        | {"support-tone", "supporttone", "support.tone"}
    )
    base = to_row(record(spec(prompt="x")))
    with store.database.write() as connection:
        connection.execute(insert(jobs), [{**base, "id": f"{n:026d}", "prompt": name} for n, name in enumerate(names)])
    stars = (
        "*",
        "a*",
        "*a",
        "*a*",
        "a*b",
        "a-*",
        "a-**",
        "*-*",
        "b*a*",
        "support-*",
        "support-tone",
        "_*",
        "%",
        "a_",
        "*%",
        "A*",
        "\\*",
        "",
    )
    with store.database.read() as connection:
        for patterns in [(), *((pattern,) for pattern in stars), ("a*", "*b"), ("ab", "a"), ("support-*", "-*", "ba-")]:
            found = set(connection.scalars(select(jobs.c.prompt).where(visible(patterns, connection))))
            assert found == {name for name in names if Caller("c", frozenset(), patterns).may_use(name)}, patterns


def test_pages_are_full_pages_of_what_is_visible(store: JobStore) -> None:
    made = [
        create(store, f"{'support' if n % 5 == 0 else 'acme'}-{n % 2}", annotations={"n": str(n % 3)})
        for n in range(30)
    ]
    for job in made[:10]:
        store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    own = [job for job in made if job.spec.prompt.startswith("support-")]
    cases: list[tuple[JobFilter, Callable[[Job], bool]]] = [
        (JobFilter(visible_to=SUPPORT), lambda job: True),
        (JobFilter(visible_to=("*-1",)), lambda job: False),
        (JobFilter(visible_to=SUPPORT, prompt="support-1"), lambda job: job.spec.prompt == "support-1"),
        (JobFilter(visible_to=SUPPORT, annotations={"n": "1"}), lambda job: job.spec.annotations["n"] == "1"),
        (JobFilter(visible_to=SUPPORT, states=frozenset({JobState.CANCELLED})), lambda job: job in made[:10]),
        (
            JobFilter(visible_to=SUPPORT, states=frozenset({JobState.QUEUED, JobState.PAUSED})),
            lambda job: job not in made[:10],
        ),
    ]
    for (filter, wanted), order in itertools.product(cases, JobOrder):
        pool = (
            [job for job in made if job.spec.prompt.endswith("-1")]
            if filter.visible_to == ("*-1",)
            else list(filter_(own, wanted))
        )
        expected = sorted((job.id for job in pool), reverse=order is JobOrder.NEWEST_FIRST)
        found, after, sizes = list[str](), "", list[int]()
        while True:
            page = store.page(
                JobFilter(filter.states, filter.prompt, filter.annotations, order, filter.visible_to), 2, after
            )
            found += [job.id for job in page.jobs]
            sizes.append(len(page.jobs))
            if not (after := page.next_after):
                break
        assert found == expected
        assert all(size == 2 for size in sizes[:-1])


def filter_(made: list[Job], wanted: Callable[[Job], bool]) -> Iterator[Job]:
    return (job for job in made if wanted(job))


def test_positions_and_counts_are_of_what_is_visible(store: JobStore) -> None:
    create(store, "acme-a")
    first = create(store, "support-a")
    create(store, "acme-a")
    second = create(store, "support-b")
    store.change(create(store, "support-b").id, lambda old: transitions.cancel(old, time.time()))
    assert [store.get(job.id, SUPPORT).queue_position for job in (first, second)] == [0, 1]
    assert [store.get(job.id).queue_position for job in (first, second)] == [1, 3]
    for _ in range(2):
        assert [job.queue_position for job in store.page(JobFilter(visible_to=SUPPORT), 5).jobs] == [0, 1, 0]
        assert [job.queue_position for job in store.page(JobFilter(), 5).jobs] == [0, 3, 2, 1, 0]
    assert store.counts(SUPPORT) == {JobState.QUEUED: 2, JobState.CANCELLED: 1}
    assert store.counts() == {JobState.QUEUED: 4, JobState.CANCELLED: 1}
    running = store.claim("tiny", "me", time.time() + 60, time.time())
    assert running is not None
    assert running.job.spec.prompt == "acme-a"
    assert store.ids_on_workers(SUPPORT) == frozenset()
    assert store.ids_on_workers(("acme-*",)) == {running.job.id}


def test_a_foreign_job_takes_the_same_steps_as_one_that_does_not_exist(store: JobStore) -> None:
    foreign, missing = create(store, "acme-a").id, "z" * 26
    calls: list[Callable[[str], object]] = [
        lambda id: store.get(id, SUPPORT),
        lambda id: store.state(id, SUPPORT),
        lambda id: store.change(id, lambda old: transitions.cancel(old, time.time()), visible_to=SUPPORT),
        lambda id: store.delete(id, SUPPORT),
    ]
    for call in calls:
        seen = []
        for id in (foreign, missing):
            with statements(store) as executed, pytest.raises(NotFound) as caught:
                call(id)
            seen.append((str(executed).replace(id, "ID"), caught.value.message.replace(id, "ID")))
        assert seen[0] == seen[1]
    assert store.get(foreign).state is JobState.QUEUED


def test_a_list_reads_no_row_of_other_tenants(store: JobStore) -> None:
    if not store.database.is_sqlite:
        pytest.skip("PostgreSQL chooses plans by statistics")
    filters = [
        JobFilter(states=frozenset({JobState.QUEUED})),
        JobFilter(annotations={"a": "b"}),
        JobFilter(prompt="support-a"),
        JobFilter(),
    ]
    with statements(store) as executed:
        for filter in filters:
            store.page(JobFilter(filter.states, filter.prompt, filter.annotations, visible_to=SUPPORT), 5)
        store.counts(SUPPORT)
        store.ids_on_workers(SUPPORT)
    queries = [(statement, parameters) for statement, parameters in executed if statement.startswith("SELECT")]
    assert len(queries) == len(filters) + 2
    with store.database.read() as connection:
        for statement, parameters in queries:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            entered = [step for step in plan if "jobs USING" in step and "(id=?)" not in step]
            assert entered, plan
            assert all("(prompt" in step for step in entered), plan
            assert not any(step.startswith("SCAN jobs") for step in plan), plan


def test_the_key_of_page_tokens_is_made_once(store: JobStore) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(page_token_key(store.database))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_the_key_of_page_tokens_survives_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    first = JobStore.open(url)
    key = page_token_key(first.database)
    first.close()
    second = JobStore.open(url)
    assert page_token_key(second.database) == key
    with second.database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM service_keys")) == 1
    second.close()
