"""Watching one job's events through lost connections, gateway time-outs and restarts of the trainer.

Events are numbered, so a new call asks for the events after the last one: none is missed or repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import grpc
from prompttuning.v1 import tuning_pb2

from shared.wire.mirror import fill, read
from softprompt.client.connection import Connection
from softprompt.client.resuming import Contact, Interrupted, Silence, interruption_of, messages
from softprompt.types.events import JobEvent, StateChanged
from softprompt.types.jobs import TuningJob


async def watch(connection: Connection, name: str, after: int, reconnect_seconds: float) -> AsyncIterator[JobEvent]:
    """Events after number `after` until the job has ended. Raises the error of the last call after `reconnect_seconds`
    without contact.
    """
    last, contact = after, Contact(reconnect_seconds)
    while True:
        interruption: Interrupted | None = None
        ended = False
        try:
            request = fill(tuning_pb2.WatchTuningJobRequest(), name=name, after=last)
            call = connection.tuning.WatchTuningJob(request)
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
        except Silence as error:  # a trainer without heartbeats is silent while its job waits
            interruption = error
            with suppress(Interrupted):
                if await _is_over(connection, name, last, contact):
                    return
        except Interrupted as error:
            interruption = error
        await contact.pause(interruption)


async def _is_over(connection: Connection, name: str, last: int, contact: Contact) -> bool:
    """Whether the job has ended and has no event after `last`."""
    trainer = connection.trainer
    try:
        response = await connection.tuning.GetTuningJob(
            tuning_pb2.GetTuningJobRequest(name=name), timeout=trainer.timeout_seconds
        )
    except grpc.aio.AioRpcError as error:
        if (interruption := interruption_of(trainer, error)) is not None:
            raise interruption from error
        raise await trainer.explained(error) from error
    contact.heard()
    job = read(TuningJob, response.job)
    return job.state.is_final and job.last_event <= last
