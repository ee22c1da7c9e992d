"""Blocking calls from the event loop: a few threads for the job database, others for what may hang longer (datasets, the prompt store).

Apart, so that a prompt store that is away never keeps the service from answering what a job's state is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from shared.errors import Unavailable

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0


class Threads:
    def __init__(self, name: str, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def call(self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def insist(self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The same again and again while it raises Unavailable: for what must not be lost. It must be safe to repeat."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self.call(function, *args, **kwargs)
            except Unavailable as error:
                log.warning("trying again in %.1f s: %s", pause, error.message)
                await asyncio.sleep(pause)
                pause = min(_LAST_PAUSE_SECONDS, pause * 2)

    def close(self) -> None:
        """Doesn't wait for calls that hang."""
        self._executor.shutdown(wait=False, cancel_futures=True)
