"""Reading and following one job, asynchronously, through lost connections, gateway time-outs and restarts of the
trainer. Events are numbered, so a new call asks for the events after the last one: none is missed or repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import cast

import grpc
from prompttuning.v1 import tuning_pb2

from shared.values.enums import JobState
from shared.wire.mirror import fill, read
from softprompt.client.connection import Connection
from softprompt.client.resuming import Contact, Interrupted, Silence, interruption_of, messages
from softprompt.display.notebook import notebook_progress
from softprompt.errors import JobFailed
from softprompt.types.events import JobEvent, StateChanged
from softprompt.types.history import JobHistory, history_of
from softprompt.types.jobs import TuningJob


async def watch(connection: Connection, name: str, after: int, reconnect_seconds: float) -> AsyncIterator[JobEvent]:
    """Events after number `after` to the job's end. Raises the last error after `reconnect_seconds` without contact."""
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


class JobFollowing:
    """The part of AsyncClient for one job's state and events."""

    _connection: Connection

    async def get_job(self, name: str) -> TuningJob:
        """One job. Raises NotFound."""
        return await self._connection.ask(TuningJob, tuning_pb2.GetTuningJobRequest(name=name), "job")

    def watch_job(self, name: str, *, after: int = 0, reconnect_seconds: float = 120.0) -> AsyncIterator[JobEvent]:
        """Events after number `after`, those of the past first, until the job's last one. Reconnects after the last
        event; raises Unavailable once that failed for `reconnect_seconds`.
        """
        return watch(self._connection, name, after, reconnect_seconds)

    async def wait_for_job(
        self,
        name: str,
        *,
        timeout_seconds: float | None = None,
        on_event: Callable[[JobEvent], object] | None = None,
        progress: bool | None = None,
    ) -> TuningJob:
        """The job once it has succeeded. `progress` as in `tune`. Raises TimeoutError; JobFailed, also if cancelled."""
        last: TuningJob | None = None
        async with asyncio.timeout(timeout_seconds):
            with notebook_progress(name.removeprefix("tuningJobs/"), progress) as show_event:
                last = await self._followed(name, show_event, on_event)
        if last is None or not last.state.is_final:
            last = await self.get_job(name)
        if last.state is not JobState.SUCCEEDED:
            raise JobFailed(last)
        return last

    async def _followed(
        self, name: str, show_event: Callable[[JobEvent], object], on_event: Callable[[JobEvent], object] | None
    ) -> TuningJob | None:
        """The job of the last event that has one."""
        last: TuningJob | None = None
        async for event in self.watch_job(name):
            show_event(event)
            if on_event is not None:
                on_event(event)
            if isinstance(event, StateChanged):
                last = event.job
        return last

    async def job_history(self, name: str) -> JobHistory:
        """Losses, held-out metrics and notes of a job until now. Raises NotFound."""
        last = (await self.get_job(name)).last_event
        events: list[JobEvent] = []
        if last:
            async with aclosing(cast("AsyncGenerator[JobEvent, None]", self.watch_job(name))) as watched:
                async for event in watched:
                    events.append(event)
                    if event.number >= last:
                        break
        return history_of(name, events)
