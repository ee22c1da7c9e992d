"""Tenants in the job store on each database: order of claims, queue limits, positions, charges."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from shared.errors import Overloaded
from shared.values.results import TuningError
from tests.trainer_service.builders import record, spec
from trainer_service.database.schema import jobs, tenant_shares
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job, JobFilter, new_job_id
from trainer_service.jobs.record import Record, to_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore

NOW = 1_000_000.0


def create(
    store: JobStore, tenant: str, priority: int = 0, weight: float = 1.0, max_queued: int = 1000, **job: object
) -> Job:
    made = record(spec(priority=priority), queued_at=NOW, tenant=tenant, caller=tenant, **job)  # type: ignore[arg-type]
    return store.create(made, max_queued=max_queued, max_active_of_caller=1000, weight=weight)


def claim(store: JobStore, now: float = NOW, owner: str = "me") -> Record:
    taken = store.claim("tiny", owner, now + 60, now)
    assert taken is not None
    return taken


def end(store: JobStore, taken: Record, now: float) -> None:
    error = TuningError(code="INTERNAL", message="over")
    store.change(taken.job.id, lambda old: transitions.failed(old, error, now), attempt=taken.job.attempt)


def test_one_job_behind_another_tenants_many_goes_next_whatever_their_priority(store: JobStore) -> None:
    for _ in range(30):
        create(store, "many", priority=100)
    for _ in range(8):
        claim(store)
    one = create(store, "one", priority=-100)
    assert store.get(one.id).queue_position == 0
    [listed] = [job for job in store.page(JobFilter(), 100).jobs if job.id == one.id]
    assert listed.queue_position == 0
    assert claim(store, NOW + 5).job.id == one.id
    assert claim(store, NOW + 5).job.tenant == "many"


def test_within_a_tenant_priority_and_age_decide(store: JobStore) -> None:
    plain, urgent = create(store, "a"), create(store, "a", priority=1)
    assert [claim(store).job.id for _ in range(2)] == [urgent.id, plain.id]


def test_time_on_workers_is_shared_by_weight(store: JobStore) -> None:
    """One place; each job takes a hundred seconds."""
    for _ in range(20):
        create(store, "light")
        create(store, "heavy", weight=3.0)
    served, now = [], NOW
    for _ in range(20):
        taken = claim(store, now)
        assert taken.weight == (3.0 if taken.job.tenant == "heavy" else 1.0)
        served.append(taken.job.tenant)
        now += 100
        end(store, taken, now)
    assert served.count("heavy") == 15
    assert "light" in served[:4]


def test_a_new_weight_holds_from_the_next_claim_on(store: JobStore) -> None:
    for _ in range(20):
        create(store, "a")
        create(store, "b")
    store.set_weights({"a": 4.0, "b": 1.0, "never seen": 7.0})
    served = [claim(store).job.tenant for _ in range(10)]
    assert served.count("a") == 8


def test_replicas_that_claim_at_once_keep_the_order(store: JobStore) -> None:
    for tenant in ("a", "b", "c", "d"):
        for _ in range(10):
            create(store, tenant)
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda number: claim(store, owner=f"replica-{number % 4}"), range(20)))
    assert len({found.job.id for found in taken}) == 20
    assert {tenant: sum(found.job.tenant == tenant for found in taken) for tenant in "abcd"} == dict.fromkeys("abcd", 5)


def test_a_full_queue_locks_no_tenant_out_that_has_little_in_it(store: JobStore) -> None:
    for tenant in ("first", "second"):
        for _ in range(6):
            create(store, tenant, max_queued=12)
    with pytest.raises(Overloaded, match="6 of your tenant's do"):
        create(store, "first", max_queued=12)
    for _ in range(4):
        create(store, "third", max_queued=12)
    with pytest.raises(Overloaded, match="4 of your tenant's do"):
        create(store, "third", max_queued=12)


def test_positions_take_turns_and_say_nothing_of_how_many_others_wait(store: JobStore) -> None:
    mine = [create(store, "mine", priority=-number) for number in range(3)]
    for _ in range(2):
        create(store, "other")
    assert [store.get(job.id).queue_position for job in mine] == [0, 2, 4]
    for _ in range(50):
        create(store, "other")
    assert [store.get(job.id).queue_position for job in mine] == [0, 2, 4]


def test_waiting_jobs_of_a_broken_base_model_fail_unless_another_replica_can_run_it(store: JobStore) -> None:
    ids = [create(store, "a").id for _ in range(5)]
    other = create(store, "a", base_model="fine")
    move = partial(transitions.failed, error=TuningError(code="BASE_MODEL_FAILED", message="no weights"), now=NOW)
    taken = claim(store)
    assert store.fail_waiting("tiny", move, 10) == []
    end(store, taken, NOW)
    assert len(store.fail_waiting("tiny", move, 3)) == 3
    assert len(store.fail_waiting("tiny", move, 3)) == 1
    assert {store.get(id).state for id in ids} == {JobState.FAILED}
    assert store.get(other.id).state is JobState.QUEUED


def test_a_claim_looks_into_an_index_and_reads_no_queue(store: JobStore) -> None:
    """Two tenants, 5,000 and 1 waiting jobs; neither database scans or sorts them."""
    create(store, "one")
    create(store, "many")
    row = to_row(record(queued_at=NOW, tenant="many"))
    with store.database.write() as connection:
        connection.execute(
            insert(jobs), [{**row, "id": new_job_id(), "queue_key": NOW + number} for number in range(5000)]
        )
    if not store.is_shared:
        statements: list[tuple[str, object]] = []
        engine = store.database.engine

        def listener(connection: Any, cursor: Any, statement: Any, parameters: Any, context: Any, many: Any) -> None:
            statements.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", listener)
        claim(store)
        event.remove(engine, "before_cursor_execute", listener)
        with store.database.read() as connection:
            plans = [
                row[-1]
                for statement, parameters in statements
                if statement.split()[0] in ("SELECT", "UPDATE")
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
            ]
        assert plans
        assert not [step for step in plans if step.startswith("SCAN") and "tenant_shares" not in step], plans
        assert not [step for step in plans if "TEMP B-TREE FOR ORDER BY" in step], plans
    else:
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE jobs"))
        for _ in range(10):
            claim(store)
    with store.database.read() as connection:
        assert {share.tenant for share in connection.execute(tenant_shares.select())} == {"one", "many"}
