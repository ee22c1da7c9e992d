"""Bugs put into the product, to prove that the simulation finds them. Each is a small patch of one promise's guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.watcher import PromptWatcher
from shared.caller import EVERY_PROMPT
from shared.store import store as prompt_store
from shared.store.commit import encode_commit
from shared.store.garbage import BlobCollector
from shared.store.layout import log_key
from shared.store.log import Appended, CommitLog
from trainer_service.dispatch.jobs_on_worker import JobsOnWorker
from trainer_service.dispatch.leases import Leases
from trainer_service.dispatch.manager import JobManager
from trainer_service.dispatch.supervisor import WorkerSupervisor
from trainer_service.jobs import transitions
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.prompts import Prompts
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
    async def change(context: JobsContext, job_id: str, move: Any, *, attempt: Any = None, payloads: Any = ()) -> Any:
        after = await context.database.call(context.store.change, job_id, move, attempt=attempt, payloads=payloads)
        context.notify(after.job)
        return after

    return change


def _skipping(original: Any) -> Any:
    def event_page(store: JobStore, job_id: str, after: int, limit: int) -> Any:
        found, more = original(store, job_id, after, limit)
        return (found[1:] if after and len(found) > 1 else found), more

    return event_page


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
}


@contextmanager
def bug(name: str) -> Iterator[None]:
    """Inside the block, the product has this bug; an empty name is none."""
    if not name:
        yield
        return
    with BUGS[name]():
        yield
