"""The asynchronous client."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from softprompt.client.connection import Connection
from softprompt.client.generation import GenerationMethods
from softprompt.client.prompts import PromptMethods
from softprompt.client.security import ClientSecurity
from softprompt.client.tuning import TuningMethods


class AsyncClient(TuningMethods, PromptMethods, GenerationMethods):
    """Both services behind one object; use it in one event loop, with `async with`.

    Endpoints are `host:port` or `dns:///name:port` (then calls go round all its addresses); left out, they come from
    SOFTPROMPT_TRAINER and SOFTPROMPT_INFERENCE, else this machine. Every call has a deadline: `timeout_seconds`, for answers
    `generation_timeout_seconds`. `security` says how to prove who calls and whom to trust; left out, the SOFTPROMPT_TLS and
    SOFTPROMPT_TOKEN variables do. Failed calls raise the exceptions of `softprompt.errors`; those that can be repeated safely are.
    """

    def __init__(
        self,
        trainer: str | None = None,
        inference: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        generation_timeout_seconds: float = 300.0,
        security: ClientSecurity | None = None,
    ) -> None:
        self._connection = Connection(trainer, inference, timeout_seconds, security or ClientSecurity.from_environment())
        self._generation_timeout_seconds = generation_timeout_seconds

    @property
    def trainer(self) -> str:
        return self._connection.trainer.endpoint

    @property
    def inference(self) -> str:
        return self._connection.inference.endpoint

    async def close(self) -> None:
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
