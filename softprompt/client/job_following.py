"""Reading and following one job, asynchronously."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from prompttuning.v1 import tuning_pb2

from shared.wire.mirror import read
from softprompt.client.connection import Connection
from softprompt.client.watch import watch
from softprompt.display.notebook import notebook_progress
from softprompt.errors import JobFailed
from softprompt.types.events import JobEvent, StateChanged
from softprompt.types.history import JobHistory, history_of
from softprompt.types.jobs import JobState, TuningJob


class JobFollowing:
    """The part of AsyncClient for one job's state and events."""

    _connection: Connection

    async def get_job(self, name: str) -> TuningJob:
        """One job. Raises NotFound."""
        request = tuning_pb2.GetTuningJobRequest(name=name)
        return read(TuningJob, (await self._connection.trainer.call(self._connection.tuning.GetTuningJob, request)).job)

    def watch_job(self, name: str, *, after: int = 0, reconnect_seconds: float = 120.0) -> AsyncIterator[JobEvent]:
        """Events after number `after`, those of the past first, until the job's last one.

        A lost connection is taken up again after the last seen event; Unavailable once that failed for
        `reconnect_seconds`.
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
        """The job once it has succeeded. `progress` is that of `tune`. Raises JobFailed, also for a cancelled job, or
        TimeoutError.
        """
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
