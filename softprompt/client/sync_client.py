"""The synchronous client: AsyncClient in a thread with an event loop. All logic is in AsyncClient."""

from __future__ import annotations

from typing import Self

from softprompt.client.async_client import AsyncClient
from softprompt.client.generation import SyncGenerationMethods
from softprompt.client.loop_thread import LoopThread
from softprompt.client.retraining import SyncRetrainingMethods
from softprompt.client.security import ClientSecurity


class Client(SyncRetrainingMethods, SyncGenerationMethods):
    """AsyncClient with blocking methods, which have its docstrings. May be used from several threads."""

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
        self._client = AsyncClient(
            trainer,
            inference,
            timeout_seconds=timeout_seconds,
            generation_timeout_seconds=generation_timeout_seconds,
            security=security,
            retry_overloaded=retry_overloaded,
        )
        self._loop = LoopThread("softprompt-client")

    @property
    def trainer(self) -> str:
        """Address of the trainer service."""
        return self._client.trainer

    @property
    def inference(self) -> str:
        """Address of the inference service."""
        return self._client.inference

    def close(self) -> None:
        """Cancel running calls and close both connections. May be called twice."""
        if not self._loop.stopped:
            self._loop.run(self._client.close())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
