"""Blocking forms of the asynchronous client's methods, derived from them: parameters, types, docstrings.

A generator such as unasync would make a second implementation over gRPC's synchronous calls instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from softprompt.client.chat import AsyncChat, Chat
from softprompt.client.examples import EXAMPLES
from softprompt.client.loop_thread import LoopThread
from softprompt.client.stream import GenerationStream, SyncGenerationStream
from softprompt.types.jobs import TuningJob

if TYPE_CHECKING:
    from softprompt.client.async_client import AsyncClient

P = ParamSpec("P")
T = TypeVar("T")
_BLOCKING_FORMS: dict[str, type] = {
    "AsyncChat": Chat,
    "AsyncGenerator": Iterator,
    "AsyncIterator": Iterator,
    "GenerationStream": SyncGenerationStream,
}
"""By the name of the asynchronous form in annotations."""


class SyncMethods:
    """An asynchronous client and the thread whose event loop runs it."""

    _client: AsyncClient
    _loop: LoopThread


@overload
def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncMethods, P], T]: ...
@overload
def blocking(
    method: Callable[Concatenate[Any, P], GenerationStream],
) -> Callable[Concatenate[SyncMethods, P], SyncGenerationStream]: ...
@overload
def blocking(method: Callable[Concatenate[Any, P], AsyncChat]) -> Callable[Concatenate[SyncMethods, P], Chat]: ...
@overload
def blocking(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]],
) -> Callable[Concatenate[SyncMethods, P], Iterator[T]]: ...
def blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that calls `method` of the client and waits for the result. Adds the example of EXAMPLES."""

    @functools.wraps(method)
    def call(self: SyncMethods, *given: Any, **named: Any) -> Any:
        return _result(self, getattr(self._client, method.__name__)(*given, **named))

    signature = inspect.signature(method)
    name, bracket, elements = signature.return_annotation.partition("[")
    if form := _BLOCKING_FORMS.get(name):
        annotation = form.__name__ + bracket + elements
        call.__signature__ = signature.replace(return_annotation=annotation)  # type: ignore[attr-defined]
        result = eval(annotation, {**method.__globals__, form.__name__: form})
        call.__annotations__ = {**method.__annotations__, "return": result}
    call.__doc__ = f"{method.__doc__}{EXAMPLES.get(method.__name__, '')}"
    return call


def _result(client: SyncMethods, made: Any) -> Any:
    if isinstance(made, GenerationStream):
        return SyncGenerationStream(made, client._loop)
    if isinstance(made, AsyncChat):
        return Chat(made, client._loop)
    if isinstance(made, AsyncIterator):
        return client._loop.iterate(made)
    result = client._loop.run(made)
    for item in result if isinstance(result, list) else [result]:
        if isinstance(item, TuningJob):
            _let_read(client, item)
    return result


def _let_read(client: Any, job: TuningJob) -> None:
    """Lets `job.report()` and `job.history()` call the client."""
    object.__setattr__(job, "_read_report", lambda **options: client.job_report(job.name, **options))
    object.__setattr__(job, "_read_history", lambda: client.job_history(job.name))
