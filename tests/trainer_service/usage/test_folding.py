"""Segments are added exactly once, whatever dies between the steps, and bad ones stop nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from shared.caller import Budget, Tenant
from shared.errors import Overloaded, Unavailable
from shared.process.call_pool import CallPool
from shared.store.base import ObjectInfo
from shared.store.layout import USAGE, USAGE_REFUSED
from shared.store.memory import MemoryBackend
from shared.store.usage import (
    HOUR_SECONDS,
    SegmentId,
    UsageRecord,
    UsageSegments,
    encode_segment,
    read_used_up,
    write_used_up,
)
from shared.values.usage import BudgetStatus, UsageDimension, UsageFilter, UsageRow
from tests.trainer_service.builders import record as job_record
from trainer_service.database.database import Database
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.usage.budgets import Budgets, used_up
from trainer_service.usage.ledger import UsageLedger
from trainer_service.usage.rounds import Folded, UsageFolding, UsageRounds

HOUR = int(time.time()) // HOUR_SECONDS * HOUR_SECONDS
LIFE = "0" * 31 + "1"


class Killed(BaseException):
    """The process ends here."""


class DyingSegments(UsageSegments):
    """Dies instead of removing a folded segment."""

    def remove(self, segment: SegmentId) -> None:
        raise Killed


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database) -> UsageLedger:
    return UsageLedger(database)


def record(**changes: Any) -> UsageRecord:
    values = {"hour": HOUR, "tenant": "shop", "caller": "app", "prompt": "tone", "version": 1, "base_model": "tiny"}
    counts = {"requests": 1, "input_tokens": 10, "virtual_tokens": 4, "cached_tokens": 3, "generated_tokens": 5}
    return UsageRecord(**{**values, **counts, **changes})


def rows_of(ledger: UsageLedger, *by: UsageDimension, **filter: Any) -> list[UsageRow]:
    return ledger.list(UsageFilter(HOUR, HOUR + HOUR_SECONDS, by, **filter), 100)


def publish(backend: MemoryBackend, number: int, *records: UsageRecord, life: str = LIFE) -> SegmentId:
    segment = SegmentId(life, number)
    UsageSegments(backend).publish(segment, encode_segment(records))
    return segment


def test_a_segment_counts_once_whatever_dies(ledger: UsageLedger) -> None:
    backend = MemoryBackend()
    folding = UsageFolding(ledger, UsageSegments(backend))
    publish(backend, 1, record(), record(), record(caller="other"))
    dying = UsageFolding(ledger, DyingSegments(backend))
    with pytest.raises(Killed):  # after the transaction, before the removal
        dying.fold()
    assert len(backend.list(USAGE)) == 1
    assert folding.fold() == Folded(0, 0)
    assert backend.list(USAGE) == []
    publish(backend, 1, record(), record(), record(caller="other"))  # its replica died before it removed its file
    publish(backend, 2, record())
    assert folding.fold() == Folded(1, 0)
    (total,) = rows_of(ledger)
    assert (total.requests, total.input_tokens, total.generated_tokens) == (4, 40, 20)
    by_caller = rows_of(ledger, UsageDimension.CALLER)
    assert [(row.caller, row.requests) for row in by_caller] == [("app", 3), ("other", 1)]
    assert not ledger.fold(SegmentId(LIFE, 1), [record()])


def test_a_list_that_was_read_during_a_publication_loses_no_segment(ledger: UsageLedger) -> None:
    backend = MemoryBackend()
    listed = publish(backend, 2, record())
    publish(backend, 1, record())

    class Partial(UsageSegments):
        def all(self) -> list[SegmentId]:
            return [listed]

    assert UsageFolding(ledger, Partial(backend)).fold() == Folded(0, 0)
    assert UsageFolding(ledger, UsageSegments(backend)).fold() == Folded(2, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b'{"hour": 1}',
        record().model_dump_json().replace('"requests":1', '"requests":-1').encode(),
        record().model_dump_json().replace('"requests":1', f'"requests":{2**63}').encode(),
        record().model_dump_json().replace('"requests":1', '"requests":NaN').encode(),
        record().model_dump_json().replace('"shop"', '"a\\u0000b"').encode(),
        record().model_dump_json().replace('"shop"', '"\\ud800"').encode(),
        record().model_dump_json().replace('"app"', f'"{"x" * 201}"').encode(),
        record().model_dump_json().replace(str(HOUR), str(HOUR + 10 * 86_400)).encode(),
        record().model_dump_json().replace(str(HOUR), str(HOUR + 1)).encode(),
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_bad_line_is_set_aside_and_stops_nothing(line: bytes, tmp_path: Any) -> None:
    database, backend = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}"), MemoryBackend()
    folding = UsageFolding(UsageLedger(database), UsageSegments(backend))
    backend.create(SegmentId(LIFE, 1).key, line + b"\n" + encode_segment([record()]))
    publish(backend, 1, record(), life="f" * 32)
    assert folding.fold() == Folded(2, 1)
    assert [row.requests for row in rows_of(UsageLedger(database))] == [2]
    refused = f"{USAGE_REFUSED}{LIFE}-000000001.jsonl"
    assert backend.get(refused, 1 << 20) == line + b"\n"
    assert [info.key for info in backend.list(USAGE_REFUSED)] == [refused]
    assert folding.fold() == Folded(0, 0)
    backend.create(SegmentId("a" * 32, 1).key, encode_segment([record()]))  # the way that docs/usage.md describes
    assert folding.fold() == Folded(1, 0)
    database.close()


class Broken(MemoryBackend):
    """Can't read, remove or list what is named."""

    def __init__(self, unreadable: str = "-", unremovable: str = "-", unlisted: str = "-") -> None:
        super().__init__()
        self.unreadable, self.unremovable, self.unlisted = unreadable, unremovable, unlisted

    def get(self, key: str, max_bytes: int) -> bytes | None:
        if self.unreadable in key:
            raise Unavailable("Permission denied")
        return super().get(key, max_bytes)

    def delete(self, key: str) -> None:
        if self.unremovable in key:
            raise Unavailable("Permission denied")
        super().delete(key)

    def list(self, folder: str) -> list[ObjectInfo]:
        if folder.startswith(self.unlisted):
            raise Unavailable("Permission denied")
        return super().list(folder)


def test_an_unreadable_segment_delays_only_its_own_journal(ledger: UsageLedger) -> None:
    backend = Broken(unreadable=f"{LIFE}/000000001")
    folding = UsageFolding(ledger, UsageSegments(backend))
    for life in (LIFE, "f" * 32):
        publish(backend, 1, record(), life=life)
        publish(backend, 2, record(), life=life)
    folded = folding.fold()
    assert (folded.added, folded.refused, folded.failed) == (2, 0, 1)
    assert folded.problem == f"usage/{LIFE}/000000001.jsonl: Permission denied"
    backend.unreadable = "-"
    assert folding.fold() == Folded(2)
    assert rows_of(ledger)[0].requests == 4


def test_a_segment_that_can_not_be_removed_counts_once_and_delays_nothing(ledger: UsageLedger) -> None:
    backend = Broken(unremovable=f"{LIFE}/000000001")
    folding = UsageFolding(ledger, UsageSegments(backend))
    publish(backend, 1, record())
    publish(backend, 2, record())
    assert [folding.fold().failed for _ in range(2)] == [1, 1]
    assert rows_of(ledger)[0].requests == 2
    assert len(backend.list(USAGE)) == 1


def test_a_long_backlog_takes_several_rounds(ledger: UsageLedger) -> None:
    backend = MemoryBackend()
    folding = UsageFolding(ledger, UsageSegments(backend))
    for number in (1, 2, 3):
        publish(backend, number, record())
    assert [folding.fold(seconds=0).added for _ in range(4)] == [1, 1, 1, 0]


@pytest.mark.parametrize("broken", [{"unreadable": LIFE}, {"unlisted": USAGE}])
async def test_budgets_are_judged_while_segments_can_not_be_added(tmp_path: Any, broken: dict[str, str]) -> None:
    class Observer:
        failed = 0
        statuses: Sequence[BudgetStatus] = ()

        def usage_folded(self, folded: int, refused: int, failed: int) -> None:
            self.failed += failed

        def set_budgets(self, statuses: Sequence[BudgetStatus]) -> None:
            self.statuses = statuses

    database, backend, observer = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}"), Broken(**broken), Observer()
    ledger, pool = UsageLedger(database), CallPool("usage")
    publish(backend, 1, record())
    ledger.fold(SegmentId("f" * 32, 1), [record()])
    tenant = Tenant("shop", budgets=(Budget("hard", "requests", 1, hard=True),))
    rounds = UsageRounds(ledger, Budgets(ledger), backend, pool, lambda: {"shop": tenant}, observer, 1.0, 0.0)
    assert (await rounds.round()).endswith("Permission denied")
    assert observer.failed == ("unreadable" in broken)
    assert [status.is_used_up for status in observer.statuses] == [True]
    assert read_used_up(backend).keys() == {"shop"}
    pool.close()
    database.close()


def test_an_oversized_segment_is_set_aside(ledger: UsageLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store.usage.MAX_USAGE_BYTES", 100)
    backend = MemoryBackend()
    publish(backend, 1, record())
    assert UsageFolding(ledger, UsageSegments(backend)).fold() == Folded(0, 1)
    assert len(backend.list(USAGE_REFUSED)) == 1


def test_callers_see_only_prompts_that_they_may_use(ledger: UsageLedger) -> None:
    ledger.fold(SegmentId(LIFE, 1), [record(), record(prompt="secret"), record(prompt=""), record(tenant="bank")])
    assert [row.prompt for row in rows_of(ledger, UsageDimension.PROMPT, tenant="shop", visible_to=("to*",))] == [
        "tone"
    ]
    assert [row.tenant for row in rows_of(ledger, UsageDimension.TENANT)] == ["bank", "shop"]
    by = (UsageDimension.PROMPT, UsageDimension.HOUR)
    filter = UsageFilter(HOUR, HOUR + 1, by)
    (first,) = ledger.list(filter, 1)
    rest = ledger.list(filter, 10, [first.prompt, HOUR])
    assert [first.prompt, *(row.prompt for row in rest)] == ["", "secret", "tone"]


def test_a_hard_budget_is_used_up_until_it_resets(ledger: UsageLedger) -> None:
    soft, hard = Budget("soft", "requests", 1), Budget("hard", "tokens", 15, "day", hard=True)
    tenant, budgets, backend = Tenant("shop", budgets=(soft, hard)), Budgets(ledger), MemoryBackend()
    ledger.fold(SegmentId(LIFE, 1), [record(generated_tokens=4)])
    budgets.check(tenant)
    ledger.fold(SegmentId(LIFE, 2), [record(requests=0, input_tokens=0, generated_tokens=1)])
    with pytest.raises(Overloaded, match="'hard' is used up; it resets at") as raised:
        budgets.check(tenant)
    assert 0 < raised.value.retry_after_seconds <= 86_400
    write_used_up(backend, used_up(budgets.statuses([tenant, Tenant("bank", budgets=(hard,))])))
    assert {name: found.budget for name, found in read_used_up(backend).items()} == {"shop": "hard"}
    budgets_tomorrow = Budgets(ledger, lambda: time.time() + 86_400)
    budgets_tomorrow.check(tenant)


def test_parallel_creations_do_not_exceed_a_budget_of_jobs(database: Database) -> None:
    budgets, store = Budgets(UsageLedger(database)), JobStore(database)
    tenant = Tenant("shop", budgets=(Budget("few", "jobs", 3, hard=True),))
    barrier = threading.Barrier(8)

    def create(_: int) -> bool:
        budgets.check(tenant)
        barrier.wait()
        try:
            store.create(
                job_record(tenant="shop"),
                max_queued=100,
                max_active_of_caller=100,
                check_budgets=lambda connection: budgets.check(tenant, connection),
            )
        except Overloaded:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 3
    (status,) = budgets.statuses([tenant])
    assert (status.used, status.is_used_up) == (3, True)


def test_the_seconds_of_running_jobs_count(database: Database) -> None:
    budgets, store = Budgets(UsageLedger(database)), JobStore(database)
    tenant = Tenant("shop", budgets=(Budget("hour", "worker_seconds", 3600, hard=True),))
    set_back = time.time() + 1e6  # claimed before a clock was set back; it must not reduce what the others use
    for began in (None, set_back, time.time() - 2000, time.time() - 2000):
        budgets.check(tenant)
        job = store.create(job_record(tenant="shop"), max_queued=100, max_active_of_caller=100)
        store.change(job.id, partial(replace, claimed_at=began))
    with pytest.raises(Overloaded, match="'hour' is used up"):
        budgets.check(tenant)
    store.change(job.id, partial(replace, claimed_at=None))  # paused
    budgets.check(tenant)
