"""Bugs put into the product, to prove that the simulation finds them. Each is a small patch of one promise's guard."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import grpc
from sqlalchemy import update

from inference_service.prompts import registry
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.watcher import PromptWatcher
from shared.caller import EVERY_PROMPT
from shared.errors import DamagedBlob, Unavailable
from shared.store import index, log
from shared.store import store as prompt_store
from shared.store.commit import encode_commit
from shared.store.follower import LogFollower
from shared.store.garbage import BlobCollector
from shared.store.index import PromptRecord
from shared.store.layout import log_key
from shared.store.log import Appended, CommitLog
from softprompt.router.servicer import RouterServicer
from softprompt.routing import choice
from softprompt.routing.links import Link
from softprompt.routing.routing import Routing
from softprompt.routing.store import StoreDirectory
from tests.simulation import disk, world
from trainer_service.database.schema import jobs
from trainer_service.dispatch.allowance import Allowance
from trainer_service.dispatch.dispatcher import Dispatcher
from trainer_service.dispatch.jobs_on_worker import JobsOnWorker
from trainer_service.dispatch.leases import Leases
from trainer_service.dispatch.manager import JobManager
from trainer_service.dispatch.supervisor import WorkerSupervisor
from trainer_service.jobs import record, transitions
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.jobs.store import job_store
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.prompts import Prompts
from trainer_service.publish import publisher
from trainer_service.publish.publisher import Publisher

Patch = Callable[[], AbstractContextManager[Any]]


def _instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """`make` gets the original function and returns the one with the bug."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def _nothing(owner: Any, name: str, result: Any = None) -> Patch:
    """The function does nothing."""
    return _instead(owner, name, lambda _: lambda *args, **kwargs: result)


def _no_await(owner: Any, name: str) -> Patch:
    async def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    return _instead(owner, name, lambda _: nothing)


def _without_attempt(original: Any) -> Any:
    return lambda *args, attempt=None, **kwargs: original(*args, attempt=None, **kwargs)


def _overwriting(_: Any) -> Any:
    def append(log: CommitLog, commit: Any) -> Appended:
        log._backend.put(log_key(commit.revision), encode_commit(commit))
        return Appended.MINE

    return append


def _impatient(original: Any) -> Any:
    async def prepare(supervisor: WorkerSupervisor, job: Any) -> Any:
        return await supervisor._context.preparation.make_task(job)

    return prepare


def _unrepeated(original: Any) -> Any:
    async def change(
        context: JobsContext,
        job_id: str,
        move: Any,
        *,
        attempt: Any = None,
        payloads: Any = (),
        is_progress: bool = False,
    ) -> Any:
        after = await context.database.call(context.store.change, job_id, move, attempt=attempt, payloads=payloads)
        context.notify(after.job)
        return after

    return change


def _skipping(original: Any) -> Any:
    def event_page(store: JobStore, job_id: str, after: int, limit: int) -> Any:
        found, *rest = original(store, job_id, after, limit)
        return (found[1:] if after and len(found) > 1 else found), *rest

    return event_page


def _both(*patches: Patch) -> Patch:
    @contextmanager
    def all_of_them() -> Iterator[None]:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            yield

    return all_of_them


def _blob_last(_: Any) -> Any:
    def commit(store: Any, actor: str, build: Any, blob: Any = None) -> int:
        revision: int = store._append(actor, build)
        if blob is not None:
            store.put_blob(*blob)
        return revision

    return commit


class _Untruncated:
    """A log whose reader sees no truncation."""

    def __init__(self, log: CommitLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return (lambda: 0) if name == "horizon" else getattr(self._log, name)


def _numbers_free(original: Any) -> Any:
    def delete(prompt: PromptRecord, *args: Any) -> PromptRecord:
        after: PromptRecord = original(prompt, *args)
        return replace(after, latest_version=max(after.versions, default=0))

    return delete


def _same_attempt(original: Any) -> Any:
    def claim_first(connection: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(connection, *args, **kwargs)
        if found is None or found.job.attempt == 1:
            return found
        connection.execute(update(jobs).where(jobs.c.id == found.job.id).values(attempt=1))
        return found.with_job(attempt=1)

    return claim_first


def _stopping_launches(original: Any) -> Any:
    """Each of two trainers that lack workers stops a worker that still loads."""

    async def plan(allowance: Allowance, plan_for: Any, views: Any, *args: Any) -> Any:
        made = await original(allowance, plan_for, views, *args)
        idle = [view.id for view in views if view.num_jobs == 0 and not view.ready]
        return replace(made, stops=(*made.stops, *idle[:1])) if allowance._others_lack.seconds else made

    return plan


def _impatient_start(original: Any) -> Any:
    async def start(leases: Leases) -> None:
        database: Any = leases._context.database  # not the class: a killed trainer never ends a patch
        database.retry = database.call
        await original(leases)
        del database.retry

    return start


def _unguarded(_: Any) -> Any:
    async def recently_used(watcher: PromptWatcher) -> Any:
        await watcher._pool.call(watcher._store.list_replicas)
        return []

    return recently_used


def _with_checksums(original: Any) -> Any:
    def decode(data: bytes, revision: int) -> Any:
        if b'"checksum"' not in data:
            raise DamagedBlob(f"log entry {revision} has no checksum", revision=revision)
        return original(data, revision)

    return decode


def _without_defaults(original: Any) -> Any:
    def frozen(kind: type[Any], text: str) -> Any:
        if kind is EffectiveSpec and "alias_revision" not in text:
            raise ValueError("alias_revision is missing")
        return original(kind, text)

    return frozen


def _continued(original: Any) -> Any:
    """An answer that breaks begins again at another replica."""

    async def stream(routing: Routing, given: Any, ask: Any = None) -> Any:
        for is_last in (False, True):
            try:
                async with aclosing(original(routing, given, ask)) as responses:
                    async for response in responses:
                        yield response
                return
            except (Unavailable, grpc.aio.AioRpcError):
                if is_last:
                    raise

    return stream


def _same_token(original: Any) -> Any:
    """A connection that callers share keeps the credentials of the first one."""

    def call_of(servicer: Any, *args: Any) -> Any:
        call = original(servicer, *args)
        servicer.first_metadata = getattr(servicer, "first_metadata", call.metadata)
        return replace(call, metadata=servicer.first_metadata)

    return call_of


async def _listed_once(directory: StoreDirectory) -> None:
    await directory.find_replicas()
    await asyncio.Event().wait()


@contextmanager
def _uncounted_ends(link: Link) -> Iterator[None]:
    link.in_flight += 1
    yield
    link.in_flight -= 1


BUGS: dict[str, Patch] = {
    "alias-without-compare": _nothing(prompt_store, "check_expected"),
    "append-overwrites": _instead(CommitLog, "append", _overwriting),
    "attempts-not-fenced": _instead(JobStore, "change", _without_attempt),
    "publish-without-permit": _nothing(Publisher, "_permit"),
    "leases-never-end": _no_await(Leases, "_take_back"),
    "request-id-ignored": _nothing(JobStore, "_find_request"),
    "aliased-versions-expire": _instead(
        prompt_store, "expired_versions", lambda _: lambda prompt, keep: sorted(prompt.versions)[:-1]
    ),
    "blobs-without-grace": _instead(
        BlobCollector,
        "__init__",
        lambda original: lambda collector, backend, read, _: original(collector, backend, read, -1),
    ),
    "failed-load-not-repeated": _nothing(PromptWatcher, "_retry"),
    "aliases-not-followed": _nothing(PromptRegistry, "_settle"),
    "watch-skips-events": _instead(JobStore, "event_page", _skipping),
    "all-jobs-listed": _instead(
        JobStore,
        "page",
        lambda original: lambda store, filter, *rest: original(store, replace(filter, visible_to=EVERY_PROMPT), *rest),
    ),
    "all-prompts-listed": _instead(Prompts, "_seen", lambda _: lambda prompts, index: index),
    "trained-not-claimed": _nothing(JobStore, "claim_trained"),
    "preparation-not-repeated": _instead(WorkerSupervisor, "_prepare", _impatient),
    "change-not-repeated": _instead(JobsContext, "change", _unrepeated),
    "out-of-memory-not-separated": _instead(transitions, "separated", lambda _: transitions.left_worker),
    "resume-does-nothing": _instead(JobManager, "resume", lambda _: lambda manager, job_id: manager.get(job_id)),
    "stopped-job-forgotten": _no_await(JobsOnWorker, "_stopped"),
    "pause-without-end": _instead(
        transitions, "pause", lambda original: lambda record: original(record).with_job(pausing=True)
    ),
    "publication-not-recognised": _nothing(PromptRecord, "version_of_job"),
    "own-commit-not-recognised": _both(_nothing(CommitLog, "_is_written", False), _nothing(LogFollower, "find")),
    "blob-after-commit": _instead(prompt_store.PromptStore, "commit", _blob_last),
    "truncation-not-noticed": _instead(
        LogFollower,
        "__init__",
        lambda original: lambda follower, log, identity: original(follower, _Untruncated(log), identity),
    ),
    "numbers-used-again": _instead(index, "_delete", _numbers_free),
    "alias-claim-ignored": _nothing(publisher, "check_claim"),
    "hung-worker-kept": _instead(world, "CONFIG", lambda config: config.model_copy(update={"heartbeat_seconds": 1e6})),
    "claim-without-worker-kept": _no_await(Dispatcher, "_lose"),
    "attempts-share-a-number": _instead(job_store, "claim_first", _same_attempt),
    "launches-end-each-other": _instead(Allowance, "plan", _stopping_launches),
    "shares-ignored": _instead(job_store, "in_order", lambda _: lambda shares, tenants: sorted(tenants)),
    "old-entries-refused": _instead(log, "decode_commit", _with_checksums),
    "old-jobs-refused": _instead(record, "_frozen", _without_defaults),
    "answers-continue-elsewhere": _instead(Routing, "stream", _continued),
    "one-replica-tried": _nothing(Routing, "_may_go_on", False),
    "first-callers-token": _instead(RouterServicer, "_call", _same_token),
    "replicas-listed-once": _instead(StoreDirectory, "_list", lambda _: _listed_once),
    "broken-calls-counted": _instead(Link, "used", lambda _: _uncounted_ends),
    "broken-links-kept": _instead(Link, "rank", lambda _: property(lambda link: 0)),
    "replica-by-chance": _instead(choice, "score", lambda _: lambda key, replica: random.random()),
    "file-not-synced": _nothing(disk._File, "sync"),
    "folder-not-synced": _nothing(disk.SimulatedDisk, "sync_folder"),
    "start-needs-the-database": _instead(Leases, "start", _impatient_start),
    "start-needs-the-fleets-records": _instead(PromptWatcher, "_recently_used", _unguarded),
    "every-prompt-resolves": _instead(registry, "visible_index", lambda _: lambda index, caller: index),
    "every-job-is-readable": _instead(
        JobStore, "get", lambda original: lambda store, job_id, visible_to=EVERY_PROMPT: original(store, job_id)
    ),
}


@contextmanager
def bug(name: str) -> Iterator[None]:
    """Inside the block, the product has this bug; an empty name is none."""
    if not name:
        yield
        return
    with BUGS[name]():
        yield
