"""Following one job's events through lost connections, impatient gateways and restarts of the trainer.

Events are numbered, so a new call asks for those after the last one seen: none is missed, none comes twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import grpc
from prompttuning.v1 import tuning_pb2

from softprompt.client.connection import Connection
from softprompt.client.mirror import read
from softprompt.client.resuming import Contact, Interrupted, Silence, interruption_of, messages
from softprompt.types.tuning import JobEvent, StateChanged, TuningJob


async def watch(connection: Connection, name: str, after: int, reconnect_seconds: float) -> AsyncIterator[JobEvent]:
    """Events until the stream ends of a job that has ended. Raises what ended the last call after `reconnect_seconds` without contact."""
    last, contact = after, Contact(reconnect_seconds)
    while True:
        interruption: Interrupted | None = None
        ended = False
        try:
            call = connection.tuning.WatchTuningJob(tuning_pb2.WatchTuningJobRequest(name=name, after=last))
            async with aclosing(messages(connection.trainer, call, contact)) as responses:
                async for response in responses:
                    if response.event.HasField("heartbeat"):
                        contact.promised(response.event.heartbeat)
                        continue
                    event = read(JobEvent, response.event)
                    if event.number <= last:
                        continue
                    last = event.number
                    ended = isinstance(event, StateChanged) and event.job.state.is_final
                    yield event
            if ended or await _is_over(connection, name, last, contact):
                return
        except Silence as error:  # a trainer without heartbeats has nothing to say while its job waits
            interruption = error
            with suppress(Interrupted):
                if await _is_over(connection, name, last, contact):
                    return
        except Interrupted as error:
            interruption = error
        await contact.pause(interruption)


async def _is_over(connection: Connection, name: str, last: int, contact: Contact) -> bool:
    """Whether the job has ended and nothing is left to tell, for a watch that began after its last event."""
    trainer = connection.trainer
    try:
        response = await connection.tuning.GetTuningJob(tuning_pb2.GetTuningJobRequest(name=name), timeout=trainer.timeout_seconds)
    except grpc.aio.AioRpcError as error:
        if (interruption := interruption_of(trainer, error)) is not None:
            raise interruption from error
        raise trainer.domain_error(error) from error
    contact.heard()
    job = read(TuningJob, response.job)
    return job.state.is_final and job.last_event <= last
