"""Passes calls of GenerationService on to replicas. Messages stay bytes; only a request's input is read.

A call goes to another replica if its first one is gone, drains, is full, or turns out to have another base model, and
only before its first message: after that, the caller has seen a part of an answer that no other replica would continue
in the same way.

Routing doesn't know callers. A prompt that it doesn't know, or for which there is no replica, goes to any replica:
that one knows what its caller may see, and its answer is the same with and without a router, also in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc

from shared.errors import InvalidInput, SoftPromptError, Unavailable
from shared.rpc.errors import error_from_rpc
from softprompt.routing.ask import ROUTED_KEY, Ask, Call, random_key, with_fields
from softprompt.routing.choice import choose
from softprompt.routing.cold_starts import METHODS, ColdStarts
from softprompt.routing.directory import Directory, Target
from softprompt.routing.links import STREAMING, Link, Links

MAX_ATTEMPTS = 4
_FINGERPRINT = "sha256:"
_RICH_STATUS_KEY = "grpc-status-details-bin"
_ELSEWHERE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,  # a replica that shuts down; our own cancellation is asyncio's CancelledError
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,  # a record with the address of another program
    }
)


@dataclass(frozen=True)
class _Route:
    """Where a call may go. `is_certain`: whether these replicas have the base model that it needs."""

    key: str
    links: list[Link]
    is_certain: bool


class Routing:
    """All replicas behind one object, in one event loop. `observe` gets each attempt's base model and status code."""

    def __init__(
        self,
        directory: Directory,
        open_channel: Callable[[str], Any],
        default_model: str = "",
        observe: Callable[[str, str], None] = lambda base_model, code: None,
        cold_starts: ColdStarts | None = None,
    ) -> None:
        self._directory, self._default_model, self._observe = directory, default_model, observe
        self._links, self._cold_starts = Links(open_channel), cold_starts or ColdStarts()
        self._models: dict[str, str] = {}
        """Ids of all base models that replicas have had, by fingerprint."""

    def links(self) -> list[Link]:
        """The links to all replicas, after the directory's newest state. New ones begin to connect."""
        links = self._links.to(self._directory.replicas)
        self._models.update({link.replica.fingerprint: link.replica.base_model for link in links})
        for link in links:
            _ = link.rank
        return links

    async def unary(self, call: Call, ask: Ask | None = None) -> bytes:
        """The response of a method with a single one."""
        async with aclosing(self.stream(call, ask)) as responses:
            async for response in responses:
                return response
        raise Unavailable("the replica ended the call without a response")

    async def stream(self, given: Call, ask: Ask | None = None) -> AsyncGenerator[bytes, None]:
        """The responses of a method. `ask` None: what the request's input says. Closing it cancels the call. Raises the
        replica's AioRpcError; Unavailable without a replica, or if it ended during the answer.
        """
        name, request, says_it_itself = given.name, given.request, ask is None
        if ask is None:
            ask, request = self._asked(request)
        loop = asyncio.get_running_loop()
        deadline = None if given.timeout_seconds is None else loop.time() + given.timeout_seconds
        tried, failed, began = set[Link](), None, loop.time()
        while True:
            route = self._route(ask)
            link = _best(route, tried) if len(tried) < MAX_ATTEMPTS else None
            if link is None and len(tried) < MAX_ATTEMPTS:
                await self._directory.find_replicas()  # one that is new takes the place of one that is gone
                if says_it_itself and not ask.prompt and not ask.base_model:  # no base model was known until now
                    ask, request = self._asked(request)
                route = self._route(ask)
                # a version that was refused may be one of before, for another base model, whose replica still answers
                is_behind = failed is not None and failed.code() is grpc.StatusCode.FAILED_PRECONDITION
                if (link := _best(route, tried)) is None and is_behind:
                    link = _best(replace(route, links=self.links()), tried)
            if link is None:
                if not (base_model := await self._may_start(name, ask, failed)):
                    break
                if not await self._cold_starts.wait(base_model, len(request), partial(self._is_live, ask), began):
                    raise Unavailable(f"no replica for {ask.prompt or base_model} has started yet")
                tried, failed = set(), None
                continue
            tried.add(link)
            remaining = None if deadline is None else max(0.0, deadline - loop.time())
            with link.used():
                call = link.call(name, request, remaining, (*given.metadata, (ROUTED_KEY, "1")))
                try:
                    try:
                        first = await _first_of(call, name)
                    except grpc.aio.AioRpcError as error:
                        self._observe(link.replica.base_model, error.code().name)
                        if not self._may_go_on(error, ask, link):
                            raise
                        # RESOURCE_EXHAUSTED is the more useful error: it has a retry delay.
                        full = failed is not None and failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                        failed = failed if full else error
                        if not route.is_certain:
                            await self._directory.catch_up()
                        continue
                    stream = name == STREAMING
                    given.answered(await (call.initial_metadata() if stream else call.trailing_metadata()))
                    code = grpc.StatusCode.CANCELLED if stream else grpc.StatusCode.OK
                    try:
                        if first is not None:
                            yield first
                        while stream and (message := await call.read()) is not grpc.aio.EOF:
                            yield message
                        code = grpc.StatusCode.OK
                    except grpc.aio.AioRpcError as error:
                        code = error.code()
                        raise _explained(error, "the replica ended during the answer") from error
                    finally:
                        self._observe(link.replica.base_model, code.name)
                    given.answered(await call.trailing_metadata())
                    return
                finally:
                    call.cancel()
        raise self._error(ask, failed)

    async def close(self) -> None:
        """Close the connections to all replicas."""
        await self._links.close()

    def base_models(self) -> list[str]:
        """Ids of the base models of the replicas that calls may go to, and of those that start on demand, sorted."""
        return sorted({*(link.replica.base_model for link in self.links()), *self._cold_starts.base_models})

    def first_model(self) -> str:
        """The base model of a call that names none, if any one will do; empty if no replica is known."""
        return self._default_model or min((link.replica.base_model for link in self.links()), default="")

    def fingerprints(self) -> list[str]:
        """Fingerprints of the base models of the replicas that calls may go to."""
        return sorted({link.replica.fingerprint for link in self.links()})

    def _asked(self, request: bytes) -> tuple[Ask, bytes]:
        """What a request asks for, and the request with what it leaves to chance or to the router."""
        ask = Ask.of(request)
        added: dict[str, str] = {}
        if ask.prompt and not ask.routing_key and self._directory.is_split(ask.prompt):
            added["routing_key"] = random_key()  # the replica then picks the same target as the router
        if not ask.prompt and (base_model := self._bare_model(ask)) != ask.base_model:
            added["base_model"] = base_model
        return (replace(ask, **added), with_fields(request, **added)) if added else (ask, request)

    def _bare_model(self, ask: Ask) -> str:
        """The base model of a call without a prompt. Raises InvalidInput if there are several, and it names none."""
        if chosen := ask.base_model or self._default_model:
            return chosen
        models = self.base_models()
        if len(models) < 2:
            return models[0] if models else ""
        # The error doesn't name them because the caller may be unauthenticated.
        raise InvalidInput.of("input.base_model", "must be set: several base models are served at this address")

    def _route(self, ask: Ask) -> _Route:
        links = self.links()
        if ask.prompt:
            target = self._directory.resolve(ask.prompt, ask.routing_key)
            suitable = [] if target is None else [link for link in links if _fits(link, target)]
            key = ask.prompt if target is None else target.version
        else:
            suitable = [
                link for link in links if ask.base_model in ("", link.replica.base_model, link.replica.fingerprint)
            ]
            key = ask.routing_key or random_key()
        return _Route(key, suitable or links, bool(suitable))

    def _may_go_on(self, error: grpc.aio.AioRpcError, ask: Ask, link: Link) -> bool:
        """Whether another replica may answer what this one refused."""
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "budget" in error_from_rpc(error).metadata:
            return False  # all replicas refuse
        link.is_wrong = link.is_wrong or code is grpc.StatusCode.UNIMPLEMENTED or is_loop(error)
        if ask.prompt:  # it has another base model, or has refused the version, as others may not have
            return code in _ELSEWHERE or code is grpc.StatusCode.FAILED_PRECONDITION
        return code in _ELSEWHERE or _is_other_model(error)

    async def _may_start(self, name: str, ask: Ask, failed: grpc.aio.AioRpcError | None) -> str:
        """Id of the base model for whose first replica the call may wait; empty if it may not. A replica of another
        model must have said first that the caller may use the prompt: then its refusal is about the base model.
        """
        if name not in METHODS or not self._cold_starts.base_models:
            return ""
        if ask.prompt and failed is None:  # no replica has been asked, which would know a new prompt
            await self._directory.catch_up()
        target = self._directory.resolve(ask.prompt, ask.routing_key) if ask.prompt else None
        base_model = self._id_of(ask.base_model) if not ask.prompt else "" if target is None else target.base_model
        if base_model not in self._cold_starts.base_models or self._is_live(ask):
            return ""
        if failed is None or failed.code() is grpc.StatusCode.UNAVAILABLE:
            return base_model
        is_other = failed.code() is grpc.StatusCode.FAILED_PRECONDITION if ask.prompt else _is_other_model(failed)
        return base_model if is_other else ""

    def _id_of(self, base_model: str) -> str:
        """The id of a base model that may be given by its fingerprint; empty for an unknown fingerprint."""
        if not base_model.startswith(_FINGERPRINT):
            return base_model
        return self._models.get(base_model) or self._directory.base_model_of(base_model)

    def _is_live(self, ask: Ask) -> bool:
        """Whether a replica that is connected has the base model of the call."""
        route = self._route(ask)
        return route.is_certain and any(link.rank == 0 for link in route.links)

    def _error(self, ask: Ask, failed: grpc.aio.AioRpcError | None) -> Exception:
        is_unknown = not self._id_of(ask.base_model) and (failed is None or _is_other_model(failed))
        if ask.base_model and is_unknown and self._cold_starts.base_models:
            asked = f"no live replica has the base model {ask.base_model[:80]}"
            return Unavailable(f"{asked}; if it is scaled to zero, a call that names its id starts one")
        if failed is None:
            return Unavailable("no replica is known yet; a replica is known after its first heartbeat")
        code = failed.code()
        target = self._directory.resolve(ask.prompt, ask.routing_key) if ask.prompt else None
        lacks = target is not None and not any(_fits(link, target) for link in self.links())
        if code is grpc.StatusCode.FAILED_PRECONDITION and lacks:
            # A replica of another base model said so, and thereby that the caller may use the prompt.
            return Unavailable(f"no live replica has the base model of {ask.prompt}")
        if _is_other_model(failed) and ask.base_model in {*self._models, *self._models.values()}:
            return Unavailable(f"no live replica has the base model {ask.base_model}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return Unavailable("no replica answers at the addresses of the replicas' records")
        return _explained(failed, "the replicas of this base model can't be reached")


def is_loop(error: grpc.aio.AioRpcError) -> bool:
    """Whether a router refused a call because it had been passed on already."""
    return error_from_rpc(error).metadata.get("refused") == ROUTED_KEY


def loop_error() -> SoftPromptError:
    """A router's answer to a call that was passed on already. Another replica may be right."""
    return Unavailable("a replica's record has the address of a router", refused=ROUTED_KEY)


def _is_other_model(error: grpc.aio.AioRpcError) -> bool:
    """Whether a replica refused a call for another base model than its own."""
    return error.code() is grpc.StatusCode.NOT_FOUND and error_from_rpc(error).metadata.get("kind") == "base model"


def _explained(error: grpc.aio.AioRpcError, reason: str) -> Exception:
    """The error, or Unavailable with the reason if the connection failed: its text has addresses inside the cluster."""
    is_of_connection = error.code() is grpc.StatusCode.UNAVAILABLE and not said_by_service(error)
    return Unavailable(reason) if is_of_connection else error


def said_by_service(error: grpc.aio.AioRpcError) -> bool:
    """Whether a service itself, and not gRPC or a proxy, ended a call with this."""
    return any(key == _RICH_STATUS_KEY for key, _ in error.trailing_metadata() or ())


def _fits(link: Link, target: Target) -> bool:
    return link.replica.fingerprint == target.fingerprint


def _best(route: _Route, tried: set[Link]) -> Link | None:
    """The link to try next: of the healthiest ones, the one that the version belongs to, if its load allows it."""
    ranks = [(link.rank, link) for link in route.links if link not in tried]
    if not ranks:
        return None
    best = min(rank for rank, _ in ranks)
    links = [link for rank, link in ranks if rank == best]
    return choose(route.key, links, lambda link: link.replica.id, lambda link: link.load)


async def _first_of(call: Any, name: str) -> bytes | None:
    """The first response; None for a stream without any."""
    if name != STREAMING:
        response: bytes = await call
        return response
    first = await call.read()
    return None if first is grpc.aio.EOF else first
