"""The events that webhooks send, and their bodies. Pure functions.

An event's id depends only on what happened, so two trainers that see the same event store it once. Bodies contain no
caller's name and no store-wide revision: an endpoint learns of its own prompts only (docs/security.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.names import version_name
from shared.prompt.manifest import utc_now
from shared.store.commit import AliasMoved, Commit, VersionDeleted, VersionPublished
from shared.store.index import StoreIndex
from shared.store.replicas import ReplicaRecord
from shared.values.usage import BudgetStatus
from trainer_service.jobs.model import JOB_PREFIX
from trainer_service.jobs.record import Record
from trainer_service.jobs.states import JobState

_MAX_TEXT = 2000


class EventType(StrEnum):
    """Types of events."""

    JOB_ENDED = "job.ended"
    GATE_FAILED = "gate.failed"
    VERSION_PUBLISHED = "version.published"
    ALIAS_MOVED = "alias.moved"
    REPLICA_REFUSED = "replica.refused"
    BUDGET_USED_UP = "budget.used_up"
    TEST = "test"


@dataclass(frozen=True)
class WebhookEvent:
    """One event. Events of one `subject` (a job, or a prompt) are delivered in order."""

    id: str
    type: EventType
    subject: str
    prompt: str
    body: str
    """The request's body, JSON."""

    @classmethod
    def of(
        cls, type: EventType, key: Iterable[object], subject: str, prompt: str, time: str, data: Mapping[str, Any]
    ) -> WebhookEvent:
        """`key`: what makes the event unique among those of its type. `time`: RFC 3339."""
        digest = hashlib.sha256(json.dumps([type, *key]).encode()).hexdigest()
        body = json.dumps({"type": type, "timestamp": time, "data": data}, separators=(",", ":"))
        return cls(f"evt_{digest[:32]}", type, subject, prompt, body)


def events_of_move(before: Record, after: Record) -> Iterator[WebhookEvent]:
    """The events of a change of a job, in order: none unless the job has ended."""
    job, result = after.job, after.job.result
    if before.job.state.is_final or not job.state.is_final:
        return
    time = job.end_time.isoformat().replace("+00:00", "Z") if job.end_time else utc_now()
    about: dict[str, Any] = {"job": job.name, "prompt": job.spec.prompt}
    if job.state is JobState.SUCCEEDED and result is not None:
        if result.published:
            yield _published(job.spec.prompt, result.version, result.digest, job.name, time)
        else:
            data = {**about, "decision": result.gate_decision[:_MAX_TEXT]}
            yield WebhookEvent.of(EventType.GATE_FAILED, [job.id], job.name, job.spec.prompt, time, data)
    data = {**about, "base_model": job.effective.base_model.id, "state": job.state.value}
    if job.error is not None:
        data["error"] = {"code": job.error.code, "message": job.error.message[:_MAX_TEXT]}
    if result is not None:
        data |= {"version": result.version, "alias_moved": result.alias_moved}
    yield WebhookEvent.of(EventType.JOB_ENDED, [job.id], job.name, job.spec.prompt, time, data)


def events_of_commit(store_id: str, commit: Commit) -> Iterator[WebhookEvent]:
    """The events of one commit of the prompt store, in order. A version that the same commit deletes is none: a copy of
    a store takes the numbers of deleted versions so.
    """
    deleted = {(op.prompt, op.version) for op in commit.ops if isinstance(op, VersionDeleted)}
    for number, operation in enumerate(commit.ops):
        match operation:
            case VersionPublished() if (operation.prompt, operation.version) not in deleted:
                name = version_name(operation.prompt, operation.version)
                yield _published(operation.prompt, name, operation.digest, operation.job, commit.time)
            case AliasMoved():
                targets = [{"version": target.version, "weight": target.weight} for target in operation.targets]
                data = {"prompt": operation.prompt, "alias": operation.alias, "targets": targets}
                key = (store_id, commit.revision, number)
                yield WebhookEvent.of(
                    EventType.ALIAS_MOVED, key, _subject(operation.prompt), operation.prompt, commit.time, data
                )
            case _:
                pass


def events_of_replica(record: ReplicaRecord, index: StoreIndex) -> Iterator[WebhookEvent]:
    """One event for each version that the replica refuses. A version of another base model than the replica's is none:
    every replica of a store with several base models refuses the others' versions.
    """
    for refused in record.refused:
        prompt = index.prompts.get(refused.prompt)
        version = prompt.versions.get(refused.version) if prompt is not None else None
        if version is not None and record.base_model_fingerprint not in ("", version.summary.base_model_fingerprint):
            continue
        name = version_name(refused.prompt, refused.version)
        data = {
            "prompt": refused.prompt,
            "version": name,
            "digest": refused.digest,
            "replica": record.id,
            "base_model": record.base_model,
            "reason": refused.reason,
        }
        key = (record.id, record.started_at, name, refused.digest, refused.reason)
        yield WebhookEvent.of(EventType.REPLICA_REFUSED, key, _subject(refused.prompt), refused.prompt, utc_now(), data)


def event_of_budget(status: BudgetStatus) -> WebhookEvent:
    """One event for each period in which a budget is used up."""
    data = {
        "tenant": status.tenant,
        "budget": status.name,
        "of": status.of,
        "limit": status.limit,
        "per": status.per,
        "hard": status.is_hard,
        "resets_at": status.reset_time.isoformat().replace("+00:00", "Z") if status.reset_time else "",
    }
    key = (status.tenant, status.name, status.limit, data["resets_at"])
    return WebhookEvent.of(EventType.BUDGET_USED_UP, key, f"tenants/{status.tenant}", "", utc_now(), data)


def event_of_test(endpoint: str) -> WebhookEvent:
    """A test event for one endpoint."""
    now = utc_now()
    return WebhookEvent.of(EventType.TEST, [endpoint, now], endpoint, "", now, {"endpoint": endpoint})


def _published(prompt: str, version: str, digest: str, job: str, time: str) -> WebhookEvent:
    """Its subject is the job, if a job made the version: the job's end follows it, also if the store's log is read
    later than the job's end is stored.
    """
    data = {"prompt": prompt, "version": version, "digest": digest, "job": job}
    subject = job if job.startswith(JOB_PREFIX) else _subject(prompt)
    return WebhookEvent.of(EventType.VERSION_PUBLISHED, [version, digest], subject, prompt, time, data)


def _subject(prompt: str) -> str:
    return f"prompts/{prompt}"
