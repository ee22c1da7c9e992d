"""Compares the answers that clients got during a life with what is stored at its end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise, permutations

from sqlalchemy import select

from shared.store.layout import blob_key
from shared.values.results import TuningProgress
from tests.simulation.machine import QUANTUM_SECONDS
from tests.simulation.serving_checks import Log, check_answers
from tests.simulation.spans import Span, both, largest_lead, most_at_once
from tests.simulation.world import CONFIG, World
from trainer_service.database.schema import job_events
from trainer_service.jobs.model import Checkpoint, Job, JobEvent, JobEventKind, JobFilter, Note
from trainer_service.jobs.states import LEASED_STATES, LEGAL_MOVES, JobState
from trainer_service.jobs.store.job_store import JobStore

_ALONE = "beside or after other jobs; continues alone"
"""In the note of a job that ran out of memory on a worker with other jobs."""
ENDS = {"plain": JobState.SUCCEEDED, "oom": JobState.SUCCEEDED, "nan": JobState.FAILED}
"""The final states of a job that no client cancels."""


def check(world: World) -> list[str]:
    """Every promise that was broken, in words; empty if none was."""
    store = JobStore(world.database)
    log = Log(world)
    return [
        *(f"{event.server} ended by itself: {event.why}" for event in world.history.of("died")),
        *(f"the invariant {event.invariant} was broken {event.times} times" for event in world.history.of("broken")),
        *_jobs_end_once_and_as_they_should(world, store, log),
        *_requests_make_one_job(world, store),
        *_events_have_no_gaps(world, store),
        *_attempts_follow_each_other(world, store),
        *_shares_are_fair(world, store),
        *log.problems(),
        *check_answers(world, log),
        *_jobs_leave_aliases_moved_by_hand(store, log),
        *_imports_are_published_once(world, log),
        *_tenants_are_apart(world),
        *_served_versions_exist(world, log),
    ]


def edges(world: World) -> Counter[tuple[str, str]]:
    """The moves of all jobs from state to state."""
    states, found = defaultdict[str, list[str]](list), Counter[tuple[str, str]]()
    query = select(job_events.c.job_id, job_events.c.payload).where(
        job_events.c.kind == JobEventKind.STATE_CHANGED.value
    )
    with world.database.read() as connection:
        for job, payload in connection.execute(query.order_by(job_events.c.job_id, job_events.c.number)):
            states[job].append(json.loads(payload)["state"])
    for moves in states.values():
        found.update((before, after) for before, after in pairwise(moves) if before != after)
    return found


@lru_cache
def _events(store: JobStore, job_id: str) -> list[JobEvent]:
    return store.events(job_id, 0)


def _jobs_end_once_and_as_they_should(world: World, store: JobStore, log: Log) -> Iterator[str]:
    cancelled = {event.job for event in world.history.of("asking") if event.verb == "cancel"}
    for event in world.history.of("created"):
        job = store.get(event.job)
        versions = log.by_job.get(job.name, [])
        if not job.state.is_final:
            yield f"job {job.id} is {job.state} at the end (attempt {job.attempt}, pausing {job.pausing})"
            continue
        allowed = {ENDS[event.wish]} | ({JobState.CANCELLED} if job.id in cancelled else set())
        if event.has_deadline and job.error is not None and job.error.code == "DEADLINE_EXCEEDED":
            allowed.add(JobState.FAILED)
        left = [version for version in versions if version not in log.deleted]
        if versions and not left:  # deleted before a trainer could say that it was published
            allowed.add(JobState.FAILED)
        if job.state not in allowed:
            yield f"job {job.id} ({event.wish}) ended {job.state}: {job.error and job.error.message}"
        if not versions if job.state is JobState.SUCCEEDED else left:
            yield f"job {job.id} is {job.state} and published {versions}"
        if versions and job.result and job.result.version != f"prompts/{versions[0][0]}/versions/{versions[0][1]}":
            yield f"job {job.id} says {job.result.version}, the store {versions}"


def _requests_make_one_job(world: World, store: JobStore) -> Iterator[str]:
    jobs, page = list[Job](), store.page(JobFilter(), 1000)
    jobs.extend(page.jobs)
    while page.next_after:
        page = store.page(JobFilter(), 1000, page.next_after)
        jobs.extend(page.jobs)
    by_request = Counter(job.request_id for job in jobs)
    yield from (f"request {request} made {number} jobs" for request, number in by_request.items() if number > 1)
    known = {event.job for event in world.history.of("created")}
    lost = known - {job.id for job in jobs}
    yield from (f"the accepted job {job} is gone" for job in sorted(lost))


def _events_have_no_gaps(world: World, store: JobStore) -> Iterator[str]:
    finals: dict[str, list[str]] = {}
    for created in world.history.of("created"):
        events = _events(store, created.job)
        numbers = [event.number for event in events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"job {created.job} has the events {numbers}"
        states = [event.payload.state for event in events if isinstance(event.payload, Job)]
        for before, after in pairwise(states):
            if after not in LEGAL_MOVES[before]:
                yield f"job {created.job} went from {before} to {after}"
        finals[created.job] = [state.value for state in states]
    for seen in world.history.of("watched"):
        if seen.numbers != list(range(1, len(seen.numbers) + 1)) or seen.states != finals[seen.job]:
            yield f"a watcher of job {seen.job} saw {seen.numbers} {seen.states}, stored are {finals[seen.job]}"
    watched = {seen.job for seen in world.history.of("watched")}
    for job in finals.keys() - watched:
        yield f"the watcher of job {job} never saw its end"


def _attempts_follow_each_other(world: World, store: JobStore) -> Iterator[str]:
    """Only the attempt that has the job makes progress; each has a larger number than the one before."""
    for created in world.history.of("created"):
        state, attempt, is_alone = JobState.QUEUED, 0, False
        for event in _events(store, created.job):
            match event.payload:
                case Job() as job:
                    if job.state is JobState.RUNNING and job.attempt <= attempt:
                        yield f"job {job.id} has the attempt {job.attempt} after the attempt {attempt}"
                    state, attempt = job.state, max(attempt, job.attempt)
                case Note() as note if _ALONE in note.text:
                    if is_alone:
                        yield f"job {created.job} was to continue alone, and did not"
                    is_alone = True
                case TuningProgress() | Checkpoint() as made if state not in LEASED_STATES:
                    yield f"job {created.job} made step {made.step} while it was {state}"


def _shares_are_fair(world: World, store: JobStore) -> Iterator[str]:
    """While two tenants have jobs that wait, their seconds on workers differ in any window by no more than the jobs on
    workers at its ends can cause. This is the bound of start-time fair queueing, for as many servers as jobs that run
    at once.
    """
    if not world.is_crowded:  # the clocks that measure shares may be wrong
        return
    waits, stays = defaultdict[str, list[Span]](list), defaultdict[str, list[Span]](list)
    for created in world.history.of("created"):
        tenant = created.prompt.partition("-")[0]
        moves = [(event.time.timestamp(), job) for event in _events(store, created.job) if (job := _job_in(event))]
        if len(moves) > 1:
            waits[tenant].append((moves[0][0], moves[1][0]))  # a job that comes back may have to wait for a while
        for (begun, before), (_, after) in pairwise(moves):
            if before.state is JobState.RUNNING and after.runtime_seconds > before.runtime_seconds:
                stays[tenant].append((begun, begun + after.runtime_seconds - before.runtime_seconds))
    slack = 2 * QUANTUM_SECONDS * (CONFIG.max_workers * CONFIG.max_jobs_per_worker + 1)
    for one, other in permutations(sorted(waits), 2):
        most = slack + most_at_once(stays[one]) + most_at_once(stays[other])
        for window in both(waits[one], waits[other]):
            if (ahead := largest_lead(stays[one], stays[other], window)) > most:
                yield f"tenant {one} had {ahead:.0f} s more on workers than {other}, which waited; {most:.0f} may be"


def _job_in(event: JobEvent) -> Job | None:
    return event.payload if isinstance(event.payload, Job) else None


def _jobs_leave_aliases_moved_by_hand(store: JobStore, log: Log) -> Iterator[str]:
    for (prompt, alias), moves in log.aliases.items():
        for (before, *_), (after, *_) in pairwise(moves):
            name = log.publishing_job.get(after, "")
            if not name.startswith("tuningJobs/") or before in log.publishing_job:
                continue
            recorded = store.get(name.removeprefix("tuningJobs/")).effective.alias_revision
            if recorded is not None and before > recorded:
                yield f"{name} moved {prompt}@{alias}, which was moved by hand after the job was created"


def _imports_are_published_once(world: World, log: Log) -> Iterator[str]:
    for event in world.history.of("imported"):
        if (found := log.by_job.get(f"imports/{event.request}")) != [(event.prompt, event.version)]:
            yield f"the import {event.request} returned {event.prompt}@{event.version}, the log has {found}"


def _tenants_are_apart(world: World) -> Iterator[str]:
    for event in world.history.of("listed"):
        yield from (
            f"tenant {event.tenant} saw {name}" for name in event.prompts if not name.startswith(f"{event.tenant}-")
        )
    yield from (
        f"tenant {event.tenant} reached {event.prompt} of another: {event.what}" for event in world.history.of("peeked")
    )


def _served_versions_exist(world: World, log: Log) -> Iterator[str]:
    for event in world.history.of("gone"):
        yield f"the blob of {event.prompt}@{event.version} was gone before the version was deleted"
    for (prompt, version), digest in log.digests.items():
        if (prompt, version) not in log.deleted and world.storage.objects.head(blob_key(digest)) is None:
            yield f"the blob of {prompt}@{version} is gone"
