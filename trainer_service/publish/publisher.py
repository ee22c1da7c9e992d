"""Publishes trained prompts exactly once, with retries; then waits for the fleet if the job requires it.

The prompt store records which job made a version, so a repeated publication finds the first one. While the store is
unavailable, the trained result stays among the job's files, also across restarts. Before each commit the publisher
checks the database, so a replica that has lost the job publishes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from functools import partial

from shared.errors import Conflict, NotFound, SoftPromptError, Unavailable
from shared.log import bind
from shared.security import audit
from shared.store.alias import ANYTHING, Expected
from shared.store.store import PromptStore, PublishedVersion
from shared.values.results import TuningError
from trainer_service.jobs import transitions
from trainer_service.jobs.config import retry_delay_seconds
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Job, Note
from trainer_service.jobs.record import Record
from trainer_service.jobs.states import LEASED_STATES, JobState
from trainer_service.jobs.store.files import FileKind
from trainer_service.jobs.store.job_store import StaleAttempt
from trainer_service.publish.alias_claim import check_claim
from trainer_service.publish.publication import Publication, notes_of
from trainer_service.publish.rollout import wait_until_served

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.25, 30.0


class _NotPermitted(Exception):
    """The job is being cancelled or the database is unavailable; the caller reads the job again to decide."""


@dataclass(frozen=True)
class _Attempt:
    attempt: int
    task: asyncio.Task[None]


class Publisher:
    """Runs one task for each trained job. `begin` returns at once; `job_ids` has the jobs that are being published."""

    def __init__(self, context: JobsContext, prompt_store: PromptStore) -> None:
        self._context, self._prompt_store = context, prompt_store
        self._publications: dict[str, _Attempt] = {}
        self._putting: set[str] = set()
        self._closing = False

    @property
    def job_ids(self) -> frozenset[str]:
        """Ids of the jobs that are being published."""
        return frozenset(self._publications)

    def begin(self, record: Record, outcome: Publication | None = None) -> None:
        """Starts publishing a job and replaces an earlier attempt. Does nothing if this attempt or a later one runs.

        `outcome`: the job's publication; None: it is read from the job's files.
        """
        job = record.job
        if (earlier := self._publications.get(job.id)) is not None:
            if earlier.attempt >= job.attempt:
                return
            earlier.task.cancel()
        task = asyncio.create_task(self._run(job, outcome), name=f"publish {job.id}")
        self._publications[job.id] = publication = _Attempt(job.attempt, task)
        task.add_done_callback(lambda _: self._forget(job.id, publication))

    async def close(self, seconds: float) -> frozenset[str]:
        """Begins no further attempts to publish, and waits up to `seconds` for the running ones. Returns the jobs whose
        attempt is still running then, in a thread that can't be stopped: other replicas must not get them at once. The
        other jobs can be queued again; their results are kept.
        """
        self._closing = True
        tasks = {job_id: publication.task for job_id, publication in self._publications.items()}
        for job_id, task in tasks.items():
            if job_id not in self._putting:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=max(0.0, seconds))
        left = frozenset(job_id for job_id, task in tasks.items() if not task.done() and job_id in self._putting)
        for task in tasks.values():
            task.cancel()
        return left

    def abandon(self) -> list[asyncio.Task[None]]:
        """Cancels every attempt. Returns the tasks, which end soon."""
        tasks = [publication.task for publication in self._publications.values()]
        for task in tasks:
            task.cancel()
        return tasks

    def _forget(self, job_id: str, publication: _Attempt) -> None:
        if self._publications.get(job_id) is publication:
            del self._publications[job_id]

    async def _run(self, job: Job, outcome: Publication | None) -> None:
        with bind(job=job.id, prompt=job.spec.prompt):
            try:
                await self._publish(job, outcome)
            except StaleAttempt:
                log.info("publishing stopped: another replica has taken over the job")
            except Exception as error:
                log.exception("publishing failed with an unexpected error")
                await self._fail(job, "INTERNAL", f"publishing failed: {type(error).__name__}")

    async def _publish(self, job: Job, outcome: Publication | None) -> None:
        outcome = outcome or await self._load(job)
        if outcome is None:
            # The result is lost, but not the checkpoint, from which the job is trained to its end again.
            await self._train_again(job)
            return
        started, failures = time.monotonic(), 0
        while True:
            try:
                if await self._is_cancelling(job):
                    await self._cancel(job, outcome)
                    return
                if not outcome.blob:
                    await self._succeed(job, outcome, None)
                    return
                if self._closing:
                    return
                version, left_alone = await self._attempt(job, outcome)
            except _NotPermitted:
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
            except Unavailable as error:
                failures += 1
                self._context.observer.publish_failed(job)
                if failures == 1:
                    text = "the prompt store is unavailable; the trained prompt is kept and will be published later"
                    await self._context.note(job.id, text, attempt=job.attempt)
                if time.monotonic() - started > self._context.config.max_publish_seconds:
                    await self._fail(job, "PUBLISH_FAILED", error.message)
                    return
                log.warning("publishing failed, attempt %d: %s", failures, error.message)
                await asyncio.sleep(retry_delay_seconds(failures, _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS))
            except SoftPromptError as error:
                await self._fail(job, "PUBLISH_FAILED", error.message)
                return
            else:
                await self._succeed(job, outcome, version, left_alone)
                return

    async def _load(self, job: Job) -> Publication | None:
        def load() -> Publication | None:
            data = self._context.files.load(job.id, FileKind.OUTCOME)
            return Publication.decode(data) if data is not None else None

        return await self._context.pools.job_files.retry(load)

    async def _attempt(self, job: Job, outcome: Publication) -> tuple[PublishedVersion, str]:
        """Publishes once. Raises Unavailable if it takes too long; the call may then still run, and no other attempt
        begins before it has ended.
        """
        if job.id in self._putting:
            raise Unavailable("the prompt store has not answered the previous attempt")
        has_begun = False

        def put() -> tuple[PublishedVersion, str]:
            nonlocal has_begun
            has_begun = True
            self._putting.add(job.id)
            try:
                return self._put(job, outcome)
            finally:
                self._putting.discard(job.id)

        self._putting.add(job.id)
        try:
            return await self._context.pools.prompt_store.call(put)
        finally:
            if not has_begun:
                self._putting.discard(job.id)

    def _permit(self, job: Job) -> None:
        """Checks before each commit, in the publishing thread, that this attempt has the job, and renews its lease.

        Raises StaleAttempt if the attempt has lost the job. One race remains: between this check and the commit, the
        process is paused or a small write to the store hangs for longer than a lease that can't be renewed, and the job
        is cancelled in that time. The store's clients give up after about a minute, which bounds the delay; a second
        version is impossible, because the store records the job.
        """
        store, config = self._context.store, self._context.config
        try:
            state = store.hold(job.id, job.attempt, self._context.owner, store.now() + config.lease_seconds)
        except Unavailable as error:
            log.warning("not published yet: %s", error.message)
            raise _NotPermitted from error
        if state is JobState.CANCELLING:
            raise _NotPermitted

    def _put(self, job: Job, outcome: Publication) -> tuple[PublishedVersion, str]:
        """Publishes and returns the version, and the reason why the alias didn't move, or "".

        The alias moves only if `alias_claim` allows it. A job that had to beat the current version moves the alias only
        from that version: if another one has replaced it since the comparison, it is unknown which is better.
        """
        alias, actor, reason = job.spec.publish.moved_alias or None, job.caller[:200], ""
        publish = partial(
            self._prompt_store.publish,
            job.spec.prompt,
            outcome.blob,
            job=job.name,
            actor=actor,
            permit=partial(self._permit, job),
        )
        try:
            version = publish(alias=alias, expected=self._expected(job, outcome))
        except Conflict as error:
            log.warning("published without moving the alias: %s", error.message)
            version, reason = publish(alias=None), error.message
        return version, self._why_left_alone(job, version, reason)

    def _expected(self, job: Job, outcome: Publication) -> Expected:
        """What the alias must name when the version is committed. Raises Conflict if the alias must not move."""
        prompt, alias, gate = job.spec.prompt, job.spec.publish.moved_alias, job.spec.publish.gate
        to_beat = gate is not None and gate.beat_current
        if not alias or (job.effective.alias_revision is None and not to_beat) or self._find(job) is not None:
            return ANYTHING
        index = self._prompt_store.refresh()
        check_claim(index, job)
        current = index.current_version(prompt, alias)
        name = "" if current is None else current.name
        if to_beat and name != outcome.result.current_version:
            found, compared = name or "nothing", outcome.result.current_version or "nothing"
            raise Conflict(
                f"{prompt}@{alias} names {found}; the comparison was with {compared}", current=found, expected=compared
            )
        return None if current is None else index.prompt(prompt).aliases[alias].targets

    def _why_left_alone(self, job: Job, version: PublishedVersion, reason: str = "") -> str:
        """Why the alias didn't move; empty if it moved or the job names none. `reason` is empty if an earlier process
        published the version.
        """
        name = job.spec.publish.moved_alias
        alias = self._prompt_store.index().prompt(version.prompt).aliases.get(name) if name else None
        # The publication moved the alias if its last move is not older, because both are one commit.
        if not name or (alias is not None and alias.revision >= version.revision):
            return ""
        return reason or f"{job.spec.prompt}@{name} was moved after this job was created or compared with it"

    def _find(self, job: Job) -> PublishedVersion | None:
        prompt = self._prompt_store.refresh().prompts.get(job.spec.prompt)
        return prompt.version_of_job(job.name) if prompt else None

    async def _is_cancelling(self, job: Job) -> bool:
        """Raises StaleAttempt if this attempt no longer has the job."""
        try:
            found = (await self._context.database.retry(self._context.store.record, job.id)).job
        except NotFound:
            raise StaleAttempt from None
        if found.attempt != job.attempt or found.state not in LEASED_STATES:
            raise StaleAttempt
        return found.state is JobState.CANCELLING

    async def _cancel(self, job: Job, outcome: Publication) -> None:
        """Cancels the job, unless it is published already, by a call whose answer was lost or by an earlier process."""
        version = await self._context.pools.prompt_store.call(self._find, job)
        if version is not None:
            await self._succeed(job, outcome, version, self._why_left_alone(job, version))
            return
        after = await self._context.change(
            job.id, lambda record: transitions.cancelled(record, time.time()), attempt=job.attempt
        )
        await self._context.clean(after.job)

    async def _succeed(
        self, job: Job, outcome: Publication, version: PublishedVersion | None, left_alone: str = ""
    ) -> None:
        """Ends the job with its result. `left_alone`: why the version was published without moving the alias."""
        result, notes = outcome.result, notes_of(outcome.result)
        stored_bytes = 0 if version is None else version.size_bytes
        if version is not None:
            decision = result.gate_decision
            if left_alone:
                decision += f"; the alias was left alone: {left_alone}"
                notes.append(Note(text=f"published {version.name}; the alias was left alone: {left_alone}"))
            moved = bool(job.spec.publish.moved_alias) and not left_alone
            served_by_all, serving = await self._serving(job, version)
            result = replace(
                result,
                published=True,
                version=version.name,
                digest=version.digest,
                alias_moved=moved,
                gate_decision=decision,
                served_by_all=served_by_all,
                serving=serving,
            )
        after = await self._context.change(
            job.id,
            lambda record: replace(transitions.succeeded(record, result, time.time()), stored_bytes=stored_bytes),
            attempt=job.attempt,
            payloads=notes,
        )
        if version is not None:
            fields = {
                "job": job.id,
                "caller": job.caller,
                "prompt": job.spec.prompt,
                "version": version.name,
                "alias": job.spec.publish.moved_alias,
            }
            audit.record("publish", "OK", fields)
        log.info("job succeeded", extra={"fields": {"version": result.version, "gate": result.gate_decision}})
        await self._context.clean(after.job)

    async def _serving(self, job: Job, version: PublishedVersion) -> tuple[bool | None, str]:
        """Whether all replicas serve the version, and which do; (None, "") if the job doesn't wait for that."""
        seconds = job.spec.publish.wait_until_served_seconds
        if seconds is None:
            return None, ""
        text = f"published {version.name}; waiting until every live replica serves it"
        await self._context.note(job.id, text, attempt=job.attempt)
        pool = self._context.pools.prompt_store
        status = await wait_until_served(self._prompt_store, pool, version, seconds, lambda: self._is_cancelling(job))
        return status.by_all, str(status)

    async def _fail(self, job: Job, code: str, message: str) -> None:
        error = TuningError(code=code, message=message)
        after = await self._context.change(
            job.id, lambda record: transitions.failed(record, error, time.time()), attempt=job.attempt
        )
        await self._context.clean(after.job)

    async def _train_again(self, job: Job) -> None:
        note = Note(text="the trained prompt was lost before its publication; training again from the last checkpoint")
        await self._context.change(
            job.id, lambda record: transitions.result_lost(record, time.time()), attempt=job.attempt, payloads=[note]
        )
