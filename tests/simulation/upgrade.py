"""What builds before this one have left: a database of an earlier schema with jobs in it, and a store with a version.

There is no release yet, so the builds are those of the earlier migrations. Their records lack what was added later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, insert, text

from shared.prompt.blob import decode_blob, encode_blob
from shared.prompt.digest import digest_of
from shared.store.commit import AliasMoved, AliasTarget, Commit, VersionPublished, encode_commit
from shared.store.layout import blob_key, log_key
from shared.store.store import summary_of
from tests.shared.prompt.blobs import make_blob, manifest
from tests.simulation.machine import EPOCH
from tests.trainer_service.builders import BASE_MODEL, record, spec
from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, jobs
from trainer_service.jobs.model import Job, JobEventKind
from trainer_service.jobs.record import Record, to_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.stored_json import to_json

SCHEMAS = ("0001", "0006", "0013")
"""The first schema, the one before jobs had an age in the queue, and the last one."""
PROMPT = "a-mood"
"""Has version 1, which its alias `default` names."""
_HOUR_AGO = EPOCH - 3600
_LATER = ("repetition", "traceparent", "alias_revision", "lengths", "source_job")
"""Fields of an effective spec that the first builds did not write."""


@dataclass(frozen=True)
class OldJob:
    """A job of an earlier build, which tenant a created."""

    id: str
    prompt: str


def _jobs() -> list[Record]:
    """One that waits, one whose trainer was killed, and one whose spec names no alias, in the words of early builds."""
    made = []
    for number in range(3):
        asked = replace(spec("plain", "a-tone", 5), publish=replace(spec().publish, alias="-" if number == 2 else ""))
        old = record(asked if number == 2 else spec("plain", "a-tone", 5), queued_at=_HOUR_AGO + number)
        old = old.with_job(id=f"{number:026d}", last_event=1, caller="caller-a", tenant="tenant-a")
        made.append(replace(old.with_job(request_id=f"old-{number}"), queued_at=_HOUR_AGO))
    started = made[1].job.create_time
    running = made[1].with_job(state=JobState.RUNNING, attempt=1, last_event=2, start_time=started)
    made[1] = replace(running, owner="a trainer that is gone", lease_until=EPOCH - 240, claimed_at=EPOCH - 300)
    return made


def make_old_database(url: str, schema: str) -> list[OldJob]:
    """A database of this schema, opened and so migrated by this build."""
    engine, old = create_engine(url, poolclass=NullPool), _jobs()
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "trainer_service.database:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        columns = set(connection.scalars(text("SELECT name FROM pragma_table_info('jobs')")))
        for each in old:
            row = {name: value for name, value in to_row(each).items() if name in columns}
            row |= {"spec": _old_spec(row["spec"]), "effective": _without(row["effective"], *_LATER)}
            connection.execute(insert(jobs).values(**row))
            first = each.job.model_copy(update={"state": JobState.QUEUED, "attempt": 0, "last_event": 1})
            for number, job in enumerate([first, each.job][: each.job.last_event], 1):
                connection.execute(insert(job_events).values(**_event(number, job)))
    engine.dispose()
    Database(url).close()
    return [OldJob(each.job.id, each.job.spec.prompt) for each in old]


def _event(number: int, job: Job) -> Mapping[str, Any]:
    payload = json.loads(_without(to_json(job), "tenant", "checkpointed", "estimated_start_time"))
    payload["effective"] = json.loads(_without(json.dumps(payload["effective"]), *_LATER))
    payload["spec"] = json.loads(_old_spec(json.dumps(payload["spec"])))
    kind = JobEventKind.STATE_CHANGED.value
    values = {"job_id": job.id, "number": number, "time": _HOUR_AGO}
    return {**values, "kind": kind, "payload": json.dumps(payload)}


def _old_spec(stored: str) -> str:
    """No alias was an empty text."""
    found = json.loads(stored)
    if found["publish"].get("alias") == "-":
        found["publish"]["alias"] = ""
    return json.dumps(found)


def _without(stored: str, *names: str) -> str:
    return json.dumps({name: value for name, value in json.loads(stored).items() if name not in names})


def old_store() -> dict[str, bytes]:
    """Objects of a store with one version, by key: a log entry without checksum, store and kind of the version."""
    made = decode_blob(make_blob(PROMPT))
    data = encode_blob(made.prefix, manifest(PROMPT, base_model=BASE_MODEL))
    blob = decode_blob(data)
    published = VersionPublished(PROMPT, 1, digest_of(data), len(data), "tuningJobs/old", summary_of(blob.manifest))
    ops = (published, AliasMoved(PROMPT, "default", (AliasTarget(1),)))
    entry = json.loads(encode_commit(Commit(1, "old", "2023-11-14T21:13:20.000000Z", "caller-a", ops)))
    del entry["checksum"], entry["store"], entry["ops"][0]["summary"]["kind"]
    return {blob_key(digest_of(data)): data, log_key(1): json.dumps(entry).encode()}
