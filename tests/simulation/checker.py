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
    log = _Log(world)
    return [
        *(f"{event.server} ended by itself: {event.why}" for event in world.history.of("died")),
        *(f"the invariant {event.invariant} was broken {event.times} times" for event in world.history.of("broken")),
        *_jobs_end_once_and_as_they_should(world, store, log),
        *_requests_make_one_job(world, store),
        *_events_have_no_gaps(world, store),
        *_attempts_follow_each_other(world, store),
        *_shares_are_fair(world, store),
        *log.problems(),
        *_jobs_leave_aliases_moved_by_hand(store, log),
        *_aliases_are_compare_and_set(world, log),
        *_streams_use_resolvable_versions(world, log),
        *_a_version_answers_alike(world),
        *_imports_are_published_once(world, log),
        *_replicas_agree_at_the_end(world, log),
        *_tenants_are_apart(world),
        *_served_versions_exist(world, log),
    ]


class _Log:
    """The prompt store's commits replayed: versions by prompt and by job, and the history of each alias."""

    def __init__(self, world: World) -> None:
        self.commits = [world.storage.commits[number] for number in sorted(world.storage.commits)]
        self.by_job: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.published: dict[tuple[str, int], int] = {}
        self.deleted: dict[tuple[str, int], int] = {}
        self.aliases: defaultdict[tuple[str, str], list[tuple[int, str, list[int]]]] = defaultdict(list)
        """(revision, actor, versions) of each move."""
        self.publishing_job: dict[int, str] = {}
        """The job that a commit published, by revision."""
        self.digests: dict[tuple[str, int], str] = {}
        self._problems: list[str] = []
        latest: defaultdict[str, int] = defaultdict(int)
        for number, commit in enumerate(self.commits, 1):
            if commit.revision != number:
                self._problems.append(f"the log has no revision {number}")
                break
            for op in commit.ops:
                match op.op:
                    case "publish":
                        self.by_job[op.job].append((op.prompt, op.version))
                        self.publishing_job[number] = op.job
                        self.published[op.prompt, op.version] = number
                        self.digests[op.prompt, op.version] = op.digest
                        if op.version != latest[op.prompt] + 1:
                            self._problems.append(f"{op.prompt}@{op.version} follows {latest[op.prompt]}")
                        latest[op.prompt] = op.version
                    case "alias":
                        versions = [part.version for part in op.targets]
                        self.aliases[op.prompt, op.alias].append((number, commit.actor, versions))
                    case "delete":
                        self.deleted[op.prompt, op.version] = number

    def problems(self) -> list[str]:
        """Gaps, and jobs that published twice."""
        twice = [f"{job} published {versions}" for job, versions in self.by_job.items() if len(versions) > 1]
        return self._problems + twice

    def alias_before(self, key: tuple[str, str], revision: int) -> list[int]:
        """What the alias named just before this revision."""
        before = [versions for number, _, versions in self.aliases[key] if number < revision]
        return before[-1] if before else []


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


def _jobs_end_once_and_as_they_should(world: World, store: JobStore, log: _Log) -> Iterator[str]:
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


def _jobs_leave_aliases_moved_by_hand(store: JobStore, log: _Log) -> Iterator[str]:
    for (prompt, alias), moves in log.aliases.items():
        for (before, *_), (after, *_) in pairwise(moves):
            name = log.publishing_job.get(after, "")
            if not name.startswith("tuningJobs/") or before in log.publishing_job:
                continue
            recorded = store.get(name.removeprefix("tuningJobs/")).effective.alias_revision
            if recorded is not None and before > recorded:
                yield f"{name} moved {prompt}@{alias}, which was moved by hand after the job was created"


def _aliases_are_compare_and_set(world: World, log: _Log) -> Iterator[str]:
    """The log is the order of all moves, so linearizability is: each move found what it expected, each answer is true,
    and no move is before one that had ended when it began.
    """
    revisions = {
        actor: (revision, key) for key, moves in log.aliases.items() for revision, actor, _ in moves if "/" in actor
    }
    asked = {event.actor: event for event in world.history.of("moving")}
    answered = {event.actor: event for event in world.history.of("moved")}
    for actor, (revision, key) in revisions.items():
        if (found := log.alias_before(key, revision)) != asked[actor].expected:
            yield f"{actor} moved {key} from {found}, expected {asked[actor].expected}"
    for actor, event in answered.items():
        wanted = asked[actor]
        is_change = [wanted.target] != wanted.expected
        if event.outcome == "done" and is_change and actor not in revisions:
            yield f"{actor} got the answer that it moved {wanted.prompt}@{wanted.alias}; the log has no such move"
        if event.outcome not in ("done", "unknown") and actor in revisions:
            yield f"{actor} got {event.outcome}, and the log has its move"
    ended = sorted((event.time, revisions[actor][0]) for actor, event in answered.items() if actor in revisions)
    for actor, event in asked.items():
        before = [revision for time, revision in ended if time < event.time]
        if actor in revisions and before and revisions[actor][0] < max(before):
            yield f"{actor} is in the log before a move that had ended"


def _streams_use_resolvable_versions(world: World, log: _Log) -> Iterator[str]:
    seen: dict[tuple[str, int], int] = {}
    cuts = world.history.of("power cut")
    for event in world.history.of("streamed"):
        if any(event.time <= cut.time and event.revision > cut.newest for cut in cuts):
            continue  # the version was not acknowledged, and is lost
        key = (event.prompt, event.alias)
        named = {
            version for number, _, versions in log.aliases[key] if number <= event.revision for version in versions
        }
        if event.version not in named:
            yield f"{event.replica} streamed {event.prompt}@{event.version} for {event.alias}, which never named it"
        life = (event.replica, event.life)
        if event.life is None:  # `revision` is then that of the store, because a real replica doesn't report its own
            continue
        if log.deleted.get((event.prompt, event.version), event.revision + 1) <= event.revision:
            yield f"{event.replica} streamed {event.prompt}@{event.version}, which it knew to be deleted"
        if event.revision < seen.get(life, 0):
            yield f"{event.replica} went back from revision {seen[life]} to {event.revision}"
        seen[life] = event.revision


def _a_version_answers_alike(world: World) -> Iterator[str]:
    texts: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for event in world.history.of("streamed"):
        if "text" in event.facts:  # a simulated replica has none
            texts[event.prompt, event.version, event.form].add(event.text)
    for (prompt, version, _), found in texts.items():
        if len(found) > 1:
            yield f"{prompt}@{version} answered one input with {sorted(found)}"


def _imports_are_published_once(world: World, log: _Log) -> Iterator[str]:
    for event in world.history.of("imported"):
        if (found := log.by_job.get(f"imports/{event.request}")) != [(event.prompt, event.version)]:
            yield f"the import {event.request} returned {event.prompt}@{event.version}, the log has {found}"


def _replicas_agree_at_the_end(world: World, log: _Log) -> Iterator[str]:
    quiet = world.history.of("quiet")[-1].time
    answers = {
        (event.replica, event.prompt, event.alias): event.version
        for event in world.history.of("streamed")
        if event.begun >= quiet
    }
    for (prompt, alias), moves in log.aliases.items():
        for replica in world.replicas:
            answer = answers.get((replica.name, prompt, alias))
            if moves[-1][2] and answer not in moves[-1][2]:
                yield f"{replica.name} serves {prompt}@{alias} with version {answer}, not {moves[-1][2]}"


def _tenants_are_apart(world: World) -> Iterator[str]:
    for event in world.history.of("listed"):
        yield from (
            f"tenant {event.tenant} saw {name}" for name in event.prompts if not name.startswith(f"{event.tenant}-")
        )
    yield from (
        f"tenant {event.tenant} reached {event.prompt} of another: {event.what}" for event in world.history.of("peeked")
    )


def _served_versions_exist(world: World, log: _Log) -> Iterator[str]:
    for event in world.history.of("gone"):
        yield f"the blob of {event.prompt}@{event.version} was gone before the version was deleted"
    for (prompt, version), digest in log.digests.items():
        if (prompt, version) not in log.deleted and world.storage.objects.head(blob_key(digest)) is None:
            yield f"the blob of {prompt}@{version} is gone"
