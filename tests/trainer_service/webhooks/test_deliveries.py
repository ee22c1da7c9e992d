"""Webhooks end to end: from a change in the real databases and stores to a real HTTP receiver, also across kills."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from shared.prompt.manifest import utc_now
from shared.store.local import LocalBackend
from shared.store.replicas import RefusedVersion, ReplicaDirectory, ReplicaRecord
from shared.store.store import PromptStore
from shared.values.results import TuningError, TuningResult
from tests.shared.prompt.blobs import make_blob
from tests.trainer_service.builders import record, spec
from tests.trainer_service.webhooks.receiver import SECRET, Received, Receiver, receiver
from tests.waiting import until
from trainer_service.database.schema import webhook_deliveries
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.pools import TrainerPools
from trainer_service.webhooks import deliveries
from trainer_service.webhooks.deliveries import Deliveries
from trainer_service.webhooks.endpoints import Endpoints
from trainer_service.webhooks.outbox import Outbox


class Observed:
    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.dead = 0

    def webhook_sent(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def set_webhooks(self, pending: int, dead: int) -> None:
        self.dead = dead


class Place:
    """A job database, a prompt store and a webhooks file."""

    def __init__(self, store: JobStore, directory: Path, file: Path) -> None:
        self.store, self.file = store, file
        self.prompts = PromptStore(LocalBackend(directory / "prompts"))
        self.endpoints = Endpoints(file)
        self.outbox = Outbox(store.database, lambda: self.endpoints.current)
        self.observed = Observed()
        store.on_move.append(self.outbox.job_moved)

    def end(self, result: TuningResult | None = None, prompt: str = "tone") -> Job:
        """A job that ran and ended: with this result, or failed."""
        made = record(spec(prompt=prompt), caller="me", tenant="me")
        job = self.store.create(made, max_queued=1000, max_active_of_caller=1000)
        taken = self.store.claim("tiny", "me", time.time() + 60, time.time())
        assert taken is not None
        assert taken.job.id == job.id
        error, now = TuningError(code="BAD_DATA", message="line 3 is empty"), time.time()
        return self.store.change(
            job.id,
            lambda old: transitions.succeeded(old, result, now) if result else transitions.failed(old, error, now),
            attempt=1,
        ).job

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Deliveries]:
        pools = TrainerPools()
        made = Deliveries(self.outbox, self.endpoints, self.prompts, pools, self.observed, **options)
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.wait({task})
            pools.close()
            if not task.cancelled():
                task.result()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(deliveries, "REPLICAS_SECONDS", 0.05)


@pytest.fixture
def heard() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def place(store: JobStore, tmp_path: Path, heard: Receiver) -> Place:
    return Place(store, tmp_path, heard.write_file(tmp_path / "webhooks.json"))


async def test_a_gate_that_fails_and_the_jobs_end_arrive_in_order(place: Place, heard: Receiver) -> None:
    gated = place.end(TuningResult(gate_decision="loss 2.1 is above 2"))
    failed = place.end()
    async with place.running():
        await until(lambda: len(heard.events) == 3)
    of_gated = [event for event in heard.events if event.data["job"] == gated.name]
    assert [event.type for event in of_gated] == ["gate.failed", "job.ended"]
    assert of_gated[0].data["decision"] == "loss 2.1 is above 2"
    [end] = [event for event in heard.events if event.data["job"] == failed.name]
    assert end.data["error"] == {"code": "BAD_DATA", "message": "line 3 is empty"}
    assert "me" not in end.data.values()


async def test_a_failed_delivery_is_repeated_with_its_id_before_the_next_one_of_the_job(
    place: Place, heard: Receiver
) -> None:
    statuses = iter([500, 302])  # a redirect is a failure, too: it is not followed
    gated = place.end(TuningResult(gate_decision="no"))
    heard.answer = lambda event: next(statuses, 200) if event.data.get("job") == gated.name else 200
    async with place.running(first_retry_seconds=0.05):
        await until(lambda: heard.types.count("job.ended") == 1)
    assert heard.types == ["gate.failed", "gate.failed", "gate.failed", "job.ended"]
    assert len({event.id for event in heard.events[:3]}) == 1


async def test_dead_letters_are_shown_and_can_be_sent_again(place: Place, heard: Receiver) -> None:
    heard.answer = lambda event: 503
    job = place.end()
    async with place.running(first_retry_seconds=0.01, max_attempts=2) as running:
        await until(lambda: place.observed.dead == 1)
        [shown] = await running.list()
        [letter] = shown.dead_letters
        assert (shown.num_pending, shown.num_delivered, shown.num_dead) == (0, 0, 1)
        assert (letter.subject, letter.error, letter.attempts, letter.is_dead) == (job.name, "HTTP status 503", 2, True)
        assert "secret-path" not in shown.url
        heard.answer = lambda event: 200
        assert await running.retry("here") == 1
        await until(lambda: "delivered" in place.observed.outcomes)
    assert len({event.id for event in heard.events}) == 1
    assert place.observed.outcomes == ["failed", "dead", "delivered"]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_clock_that_was_set_back_holds_up_no_delivery(
    is_killed: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.end()
    with monkeypatch.context() as patched:
        patched.setattr(place.store.database, "now", lambda: time.time() + 1e8)
        delivery = place.outbox.claim("here", 60.0)
        assert delivery is not None
        if not is_killed:
            place.outbox.failed(delivery, "HTTP status 500", 6 * 3600.0)
    again = place.outbox.claim("here", 60.0)
    assert again is not None
    assert (again.event_id, again.attempt) == (delivery.event_id, 2)
    assert place.outbox.claim("here", 60.0) is None


async def test_deliveries_that_wait_are_signed_with_the_secrets_of_their_next_attempt(
    place: Place, heard: Receiver
) -> None:
    heard.answer = lambda event: 503
    place.end()
    async with place.running(first_retry_seconds=0.05):
        await until(lambda: bool(heard.events))
        heard.write_file(place.file, secrets=[SECRET])  # the operator takes the other one away
        await until(lambda: heard.events[-1].num_signatures == 1)
        heard.answer = lambda event: 204
        await until(lambda: "delivered" in place.observed.outcomes)
    assert heard.events[0].num_signatures == 2
    assert len({event.id for event in heard.events}) == 1


async def test_a_receiver_that_is_gone_gets_each_event_once_and_a_removed_one_is_not_counted(
    place: Place, heard: Receiver, tmp_path: Path
) -> None:
    heard.answer = lambda event: 410
    place.end(TuningResult(gate_decision="no"))
    async with place.running(first_retry_seconds=0.01) as running:
        await until(lambda: place.observed.dead == 2)
        assert heard.types == ["gate.failed", "job.ended"]
        heard.write_file(tmp_path / "webhooks.json", name="other")
        await until(lambda: place.observed.dead == 0)
        assert [(shown.name, shown.num_dead) for shown in await running.list()] == [("other", 0)]


@pytest.mark.parametrize(
    ("retry_after", "least"), [("3600", 3599), ("Fri, 31 Dec 2100 23:59:59 GMT", 6 * 3600), ("soon", 60)]
)
async def test_a_receiver_chooses_a_longer_pause(retry_after: str, least: float, place: Place, heard: Receiver) -> None:
    heard.answer, heard.headers = lambda event: 429, {"retry-after": retry_after}
    place.end()
    began = time.time()
    async with place.running(first_retry_seconds=60):
        await until(lambda: place.observed.outcomes == ["failed"])
    with place.store.database.read() as connection:
        [due] = connection.scalars(select(webhook_deliveries.c.not_before))
    assert began + least <= due <= time.time() + 6 * 3600


async def test_versions_aliases_and_refusals_are_delivered_once_also_after_a_restart(
    place: Place, heard: Receiver
) -> None:
    place.prompts.publish("before", make_blob("before"), job="tuningJobs/before")
    async with place.running():
        await until(lambda: place.outbox.cursor(place.prompts.id) == 1)
        version = place.prompts.publish("tone", make_blob("tone"), job="tuningJobs/x", alias="default")
        await until(lambda: place.observed.outcomes.count("delivered") == 2)  # no lease is left
    # While no trainer runs, and the events of the first run are not sent again.
    place.prompts.set_alias("tone", "canary", 1)
    refusal = RefusedVersion(prompt="tone", version=1, digest=version.digest, reason="not finite")
    beat = ReplicaRecord(id="r-1", started_at=utc_now(), refused=(refusal,), heartbeat_seconds=3600)
    ReplicaDirectory(place.prompts.backend).put(beat)
    # A replica of another base model refuses every version of this one, which is no news.
    other = beat.model_copy(update={"id": "r-0", "base_model_fingerprint": "sha256:" + "0" * 64})
    ReplicaDirectory(place.prompts.backend).put(other)
    # The job's own transaction names the same version: its event is stored already.
    place.end(TuningResult(published=True, version=version.name, digest=version.digest))
    async with place.running():
        await until(lambda: len(heard.distinct) == 5)
    received = [(event.type, event.data.get("alias") or event.data.get("version")) for event in heard.distinct]
    assert received[:2] == [("version.published", version.name), ("alias.moved", "default")]
    ended = ("job.ended", version.name)
    assert sorted(received[2:]) == sorted([("alias.moved", "canary"), ("replica.refused", version.name), ended])


async def test_an_endpoint_gets_only_events_of_its_prompts(store: JobStore, tmp_path: Path, heard: Receiver) -> None:
    file = heard.write_file(tmp_path / "webhooks.json", prompts=["support-*"], events=["job.ended"])
    place = Place(store, tmp_path, file)
    place.end(prompt="shop-tone")
    place.end(TuningResult(gate_decision="no"), prompt="support-tone")
    async with place.running() as running:
        test = await running.test("here")
        await until(lambda: len(heard.events) == 2)
    assert {(event.type, event.data.get("prompt")) for event in heard.events} == {
        ("job.ended", "support-tone"),
        ("test", None),
    }
    assert test in {event.id for event in heard.events}


_TRAINER = """
import asyncio, sys
from pathlib import Path
from shared.prompt.manifest import utc_now
from shared.store.local import LocalBackend
from shared.store.store import PromptStore
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.pools import TrainerPools
from trainer_service.webhooks.deliveries import Deliveries
from trainer_service.webhooks.endpoints import Endpoints
from trainer_service.webhooks.outbox import Outbox

class Nothing:
    def webhook_sent(self, outcome): ...
    def set_webhooks(self, pending, dead): ...

url, prompts, file = sys.argv[1:]
store, endpoints = JobStore.open(url), Endpoints(Path(file))
outbox = Outbox(store.database, lambda: endpoints.current)
prompt_store = PromptStore(LocalBackend(Path(prompts)))
asyncio.run(Deliveries(outbox, endpoints, prompt_store, TrainerPools(), Nothing(), lease_seconds=1).run())
"""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_trainer_killed_between_delivery_and_mark_repeats_the_same_id(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, heard: Receiver
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").create_database(f"webhooks_{os.getpid()}_{time.time_ns()}")
    file = heard.write_file(tmp_path / "webhooks.json")
    store = JobStore.open(url)
    place = Place(store, tmp_path, file)
    jobs = [place.end() for _ in range(3)]
    store.close()

    command = [sys.executable, "-c", _TRAINER, url, str(tmp_path / "prompts"), str(file)]
    child = await asyncio.to_thread(subprocess.Popen, command)

    def kill_once(event: Received) -> int:
        if len(heard.events) == 1:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        return 200

    heard.answer = kill_once
    try:
        await until(lambda: child.poll() is not None)
    finally:
        child.kill()
        child.wait()
    assert len(heard.events) == 1

    store = JobStore.open(url)
    try:
        again = Place(store, tmp_path, file)
        async with again.running():
            await until(lambda: again.observed.outcomes == ["delivered"] * 3)
    finally:
        store.close()
    ids = [event.id for event in heard.events]
    assert len(ids) == 4
    assert ids.count(ids[0]) == 2
    assert {event.data["job"] for event in heard.events} == {job.name for job in jobs}


async def test_two_trainers_on_one_database_deliver_each_event_once(
    postgres: Any, tmp_path: Path, heard: Receiver
) -> None:
    url, file = postgres.create_database(f"webhooks_{time.time_ns()}"), heard.write_file(tmp_path / "webhooks.json")
    stores = [JobStore.open(url) for _ in range(2)]
    try:
        one, two = (Place(store, tmp_path, file) for store in stores)
        for _ in range(10):
            one.end(TuningResult(gate_decision="no"))
        async with one.running(), two.running():
            await until(lambda: len(one.observed.outcomes) + len(two.observed.outcomes) == 20)
    finally:
        for store in stores:
            store.close()
    assert len({event.id for event in heard.events}) == len(heard.events) == 20
    for job in {event.data["job"] for event in heard.events}:
        assert [event.type for event in heard.events if event.data["job"] == job] == ["gate.failed", "job.ended"]
