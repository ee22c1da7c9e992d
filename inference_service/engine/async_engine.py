"""Runs the engine in its own thread and offers an asyncio interface.

Requests go through an inbox that is emptied between steps. The outputs of a step return in one `call_soon_threadsafe`,
whatever the number of streams. A slow reader never delays a step: its unread deltas are merged into one, whose size is
limited by the request's maximum of new tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from inference_service.engine.core.request import (
    Delta,
    FinishReason,
    GenerationRequest,
    PrefixLoad,
    Request,
    ScoreRequest,
    ScoreResult,
)
from inference_service.engine.core.stats import EngineObserver, EngineStats
from inference_service.engine.delta_stream import DeltaStream, Event
from inference_service.engine.engine import Engine, raise_if_not_loaded
from inference_service.engine.live_requests import Output
from inference_service.engine.run.bisect_failure import StepFailed
from inference_service.engine.text.text_stream import merge
from shared.errors import (
    AlreadyExists,
    Cancelled,
    DamagedBlob,
    DeadlineExceeded,
    PreconditionFailed,
    SoftPromptError,
    Unavailable,
)
from shared.process.compute_thread import compute_in_this_thread
from shared.process.daemon_thread import settle
from shared.process.threads import FollowedProcessors
from shared.prompt.prefix import Prefix
from shared.values.sampling import SamplingParams

log = logging.getLogger(__name__)
T = TypeVar("T")


class AsyncEngine:
    """Asyncio interface of one engine. Call `start` and all other methods on the same event loop."""

    def __init__(self, engine: Engine, observer: EngineObserver | None = None) -> None:
        self.engine = engine
        if observer is not None:
            engine.live.observer = observer
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._thread_started = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, DeltaStream] = {}
        self._commands: set[asyncio.Future[Any]] = set()
        self._draining = False
        self._stopping = False
        self._failure: str | None = None
        self._stats = engine.stats()
        self._idle = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether the step loop runs; False before `start`, after `stop` and after a failure of the loop."""
        return self._failure is None and self._thread is not None and self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Start the thread and wait until it runs."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._thread_started.wait()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Refuse new requests, give the running ones `grace_seconds` to finish, and stop the thread.

        Requests that remain after the grace time end as CANCELLED.
        """
        self._draining = True
        if self._streams and self.healthy:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
            except TimeoutError:
                log.warning("%d requests cancelled at the end of the grace time", len(self._streams))
        for request_id in list(self._streams):
            self._send(lambda request_id=request_id: self._cancel(request_id))  # type: ignore[misc]
        if self._thread is not None and self._thread.is_alive():
            self._send(self._quit)
            await asyncio.to_thread(self._thread.join)
        self.engine.close()
        self._stopping = True

    async def generate(self, *requests: GenerationRequest) -> AsyncIterator[Delta]:
        """Yield deltas until one of each request has a finish reason; `Delta.index` is the place of its request.

        Several requests are the completions of one input and are queued together. Closing the iterator early frees
        them within a step. Raises InvalidInput, NotFound, AlreadyExists or Overloaded before the first delta;
        Unavailable if the engine fails.
        """
        streams = self._open(*requests)
        ready, pending = streams[0].ready, dict(enumerate(streams))
        try:
            while pending:
                ready.clear()
                for index, stream in list(pending.items()):
                    delta = stream.taken()
                    if delta is not None:
                        if delta.finish_reason is not None:
                            del pending[index]
                        yield replace(delta, index=index) if index else delta
                if pending:
                    await ready.wait()
        finally:
            for request in requests:
                self._close(request.request_id)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Score the request's candidates.

        Raises the errors of `generate`; also DeadlineExceeded, Cancelled, PreconditionFailed (numbers that are not
        finite) and StepFailed, where a stream would end with that reason.
        """
        (stream,) = self._open(request)
        try:
            delta = await stream.take()
        finally:
            self._close(request.request_id)
        if stream.score is not None:
            return stream.score
        if delta.finish_reason is FinishReason.DEADLINE:
            raise DeadlineExceeded("the deadline passed before all candidates were scored")
        if delta.finish_reason is FinishReason.CANCELLED:
            raise Cancelled("the engine is stopping")
        if delta.finish_reason is FinishReason.INTERNAL:
            raise StepFailed(delta.error)
        raise PreconditionFailed(delta.error or "the score could not be computed")

    async def top_logprobs(
        self, prefix_id: str | None, input_ids: tuple[int, ...], k: int, priority: int = 0
    ) -> list[tuple[int, float]]:
        """The k most likely first tokens after the input, with natural log-probabilities; replays a golden record.

        A full queue does not refuse the request. Raises DamagedBlob if the model's numbers are not finite, StepFailed
        if the engine could not compute them, and Unavailable if the engine stopped first, which says nothing about the
        soft prompt.
        """
        sampling = SamplingParams(temperature=0.0, max_new_tokens=1, num_logprobs=k, ignore_eos=True)
        request = GenerationRequest(
            f"replay-{uuid4().hex}", tuple(input_ids), sampling, prefix_id, priority=priority, always_admitted=True
        )
        top: list[tuple[int, float]] = []
        async for delta in self.generate(request):
            if delta.finish_reason is FinishReason.ERROR:
                raise DamagedBlob(delta.error)
            if delta.finish_reason is FinishReason.INTERNAL:
                raise StepFailed(delta.error)
            for logprob in delta.logprobs:
                top = list(logprob.top)
        if not top:  # cancelled by `stop`
            raise Unavailable("the engine stopped before the replay was done")
        return top

    async def load_prefix(self, prefix_id: str, prefix: Prefix) -> None:
        """Compute the prefix KV, in chunks alongside running requests, and keep it. Idempotent.

        Raises PreconditionFailed, DamagedBlob, StepFailed or Unavailable, and then keeps nothing.
        """
        request = PrefixLoad(f"load-{uuid4().hex}", prefix_id, prefix)
        (stream,) = self._open(request)
        try:
            raise_if_not_loaded(await stream.take())
        finally:
            self._close(request.request_id)

    def prefix_kv_bytes(self, prefix_id: str) -> int:
        """Bytes of a soft prompt's keys and values; 0 while they are not in memory."""
        return self.engine.prefixes.kv_bytes(prefix_id)

    async def unload_prefix(self, prefix_id: str) -> bool:
        """Unload a soft prompt. Returns False if requests still use it; the last of them then causes the unload."""
        return await self._call(lambda: self.engine.unload_prefix(prefix_id))

    async def check_integrity(self) -> None:
        """Raise IntegrityError if the engine's bookkeeping is inconsistent."""
        await self._call(self.engine.check_integrity)

    def stats(self) -> EngineStats:
        """Statistics at the end of the last step."""
        return self._stats

    def _open(self, *requests: Request) -> list[DeltaStream]:
        """Send the requests to the engine, all or none, and return their streams."""
        if self._draining:
            raise Unavailable("the engine is stopping and takes no new requests")
        self._require_healthy()
        for request in requests:
            if request.request_id in self._streams:
                raise AlreadyExists(f"request {request.request_id} is running")
        ready = asyncio.Event()
        streams = [DeltaStream(ready) for _ in requests]
        self._streams |= {request.request_id: stream for request, stream in zip(requests, streams, strict=True)}
        self._send(lambda: self._submit(*requests))
        return streams

    def _close(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._send(lambda: self._cancel(request_id))
        if not self._streams:
            self._idle.set()

    async def _call(self, function: Callable[[], T]) -> T:
        """Run a function in the engine's thread, between two steps."""
        self._require_healthy()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(settle, future, None, error)
            else:
                loop.call_soon_threadsafe(settle, future, result, None)

        self._commands.add(future)
        future.add_done_callback(self._commands.discard)
        self._send(run)
        return await future

    def _require_healthy(self) -> None:
        if not self.healthy:
            raise Unavailable(self._failure or "the engine is not running")

    def _send(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        self._wake.set()

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            processors = FollowedProcessors(compute_in_this_thread())
            self._thread_started.set()
            while not self._stopping:
                if not self._inbox and not self.engine.has_work:
                    self.engine.check_integrity()
                    self._wake.wait()
                self._wake.clear()
                if (num_threads := processors.new_threads()) is not None:
                    compute_in_this_thread(num_threads)
                    log.info("number of compute threads changed", extra={"fields": {"threads": num_threads}})
                while self._inbox:
                    self._inbox.popleft()()
                self._post(self.engine.step())
                if self.engine.broken:
                    raise StepFailed("too many consecutive steps failed")
        except BaseException as error:
            log.exception("the engine's step loop failed")
            self._failure = f"the engine stopped working ({type(error).__name__})"
        finally:
            self._thread_started.set()
            self._notify(self._fail_everything)

    def _submit(self, *requests: Request) -> None:
        try:
            self.engine.submit(*requests)
        except Exception as error:
            if not isinstance(error, SoftPromptError):
                log.exception("request %s could not be queued", requests[0].request_id)
            events: list[tuple[str, Event]] = [(request.request_id, error) for request in requests]
            self._notify(self._deliver, events, self.engine.stats())

    def _cancel(self, request_id: str) -> None:
        output = self.engine.cancel(request_id)
        if output is not None:
            self._post([output])

    def _quit(self) -> None:
        self._stopping = True

    def _post(self, outputs: list[Output]) -> None:
        """Send outputs to the event loop; tokens of recently flushed streams are held back."""
        now = time.monotonic()
        events: list[tuple[str, Event]] = []
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue
            stream.held.append(output.delta)
            due = now - stream.flushed_at >= self.engine.config.flush_interval_seconds
            if due or output.delta.finish_reason is not None:
                events.append((output.request_id, replace(output, delta=merge(stream.held))))
                stream.held, stream.flushed_at = [], now
        self._notify(self._deliver, events, self.engine.stats())

    def _notify(self, function: Callable[..., None], *args: object) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop is closed: there are no consumers left
            self._stopping = True

    # ---- back on the event loop ----

    def _deliver(self, events: list[tuple[str, Event]], stats: EngineStats) -> None:
        self._stats = stats
        for request_id, event in events:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put(event)

    def _fail_everything(self) -> None:
        """The thread has ended: fail all streams and calls that wait for it."""
        error = Unavailable(self._failure or "the engine is not running")
        for stream in self._streams.values():
            stream.put(error)
        for future in list(self._commands):
            settle(future, None, error)
        self._idle.set()
