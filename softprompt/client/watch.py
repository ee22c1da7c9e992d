"""Following one job's events through lost connections and restarts of the trainer.

Events are numbered, so whoever lost the stream asks for those after the last one seen: none is missed, none comes twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from prompttuning.v1 import tuning_pb2

from shared.errors import Unavailable
from softprompt.client.connection import Connection
from softprompt.client.mirror import read
from softprompt.types.tuning import JobEvent, StateChanged, TuningJob

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 5.0


async def watch(connection: Connection, name: str, after: int, reconnect_seconds: float) -> AsyncIterator[JobEvent]:
    """Events until the stream ends of a job that has ended. Unavailable after `reconnect_seconds` without any contact."""
    last, pause, contact = after, FIRST_PAUSE_SECONDS, time.monotonic()
    while True:
        try:
            ended = False
            async for event in _stream(connection, name, last):
                last, pause, contact = event.number, FIRST_PAUSE_SECONDS, time.monotonic()
                ended = isinstance(event, StateChanged) and event.job.state.is_final
                yield event
            if ended or await _is_over(connection, name, last):
                return
            contact = time.monotonic()  # a trainer that drains ends its watches in good order
        except Unavailable:
            if time.monotonic() - contact > reconnect_seconds:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


async def _stream(connection: Connection, name: str, after: int) -> AsyncIterator[JobEvent]:
    call = connection.tuning.WatchTuningJob(tuning_pb2.WatchTuningJobRequest(name=name, after=after))
    try:
        with connection.trainer.errors():
            async for response in call:
                yield read(JobEvent, response.event)
    finally:
        call.cancel()


async def _is_over(connection: Connection, name: str, last: int) -> bool:
    """Whether the job has ended and nothing is left to tell, for a watch that began after its last event."""
    response = await connection.trainer.call(connection.tuning.GetTuningJob, tuning_pb2.GetTuningJobRequest(name=name))
    job = read(TuningJob, response.job)
    return job.state.is_final and job.last_event <= last
