"""The asynchronous client."""

from __future__ import annotations

from typing import Self

from softprompt.client.arguments import checks_arguments
from softprompt.client.connection import Connection
from softprompt.client.generation import GenerationMethods
from softprompt.client.retraining import RetrainingMethods
from softprompt.client.security import ClientSecurity


@checks_arguments
class AsyncClient(RetrainingMethods, GenerationMethods):
    """Both services behind one object. Use it in one event loop, with `async with`.

    `trainer` and `inference` are addresses such as `host:port`, or `dns:///name:port` for calls to all addresses of a
    name in turn. `inference` may also be `store:URL`: calls go to the replicas that serve their prompt, by the records
    in that prompt store (docs/routing.md). Both default to SOFTPROMPT_TRAINER and SOFTPROMPT_INFERENCE, else to this
    machine. `timeout_seconds` is the deadline of each call, `generation_timeout_seconds` that of each answer.
    `security` defaults to the SOFTPROMPT_TLS and SOFTPROMPT_TOKEN variables. Calls that are safe to repeat are retried,
    those that a limit refused only if `retry_overloaded`. A failed call raises an exception of `softprompt.errors`.
    """

    def __init__(
        self,
        trainer: str | None = None,
        inference: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        generation_timeout_seconds: float = 300.0,
        security: ClientSecurity | None = None,
        retry_overloaded: bool = True,
    ) -> None:
        security = security or ClientSecurity.from_environment()
        self._connection = Connection(trainer, inference, timeout_seconds, security, retry_overloaded)
        self._generation_timeout_seconds = generation_timeout_seconds

    @property
    def trainer(self) -> str:
        """Address of the trainer service."""
        return self._connection.trainer.endpoint

    @property
    def inference(self) -> str:
        """Address of the inference service."""
        return self._connection.inference.endpoint

    async def close(self) -> None:
        """Close both connections. Calls that still run are cancelled."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
