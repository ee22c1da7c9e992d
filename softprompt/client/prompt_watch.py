"""Watching the store's changes through lost connections and restarts of the trainer.

Each change carries its revision and store id, so a new call asks for the changes after the last one: none is missed or
repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import aclosing

import grpc
from prompttuning.v1 import prompts_pb2

from shared.wire.mirror import fill, read
from softprompt.client.connection import Connection
from softprompt.client.resuming import Contact, Interrupted, Silence, interruption_of, messages
from softprompt.types.prompts import AliasSet, Deleted, PromptChange, Published, Snapshot


async def watch_prompts(
    connection: Connection, after_revision: int | None, store_id: str, name_prefix: str, reconnect_seconds: float
) -> AsyncIterator[PromptChange]:
    """Raises the error of the last call after `reconnect_seconds` without contact.

    A commit may hold several changes under one revision. A connection lost between two of them starts again at the
    first.
    """
    contact = Contact(reconnect_seconds)
    seen: set[Hashable] = set()  # changes of the newest revision, which may be incomplete
    while True:
        request = prompts_pb2.WatchPromptsRequest(name_prefix=name_prefix, store_id=store_id)
        fill(request, after_revision=after_revision)
        interruption: Interrupted | None = None
        try:
            call = connection.prompts.WatchPrompts(request)
            async with aclosing(messages(connection.trainer, call, contact)) as responses:
                async for response in responses:
                    if response.HasField("heartbeat"):
                        contact.promised(response.heartbeat)
                        continue
                    change = read(PromptChange, response)
                    if isinstance(change, Snapshot):
                        after_revision, seen = change.revision, set()
                    elif (key := _key(change)) in seen:
                        continue
                    else:
                        seen = {key} if after_revision != change.revision - 1 else seen | {key}
                        after_revision = change.revision - 1
                    store_id = change.store_id
                    yield change
        except Silence as error:
            interruption = error
            await _probe(connection, contact)
        except Interrupted as error:
            interruption = error
        await contact.pause(interruption)


async def _probe(connection: Connection, contact: Contact) -> None:
    """Note contact if the trainer answers. A trainer without heartbeats is silent while its store does not change."""
    request = prompts_pb2.ListPromptsRequest(page_size=1)
    try:
        await connection.prompts.ListPrompts(request, timeout=connection.trainer.timeout_seconds)
    except grpc.aio.AioRpcError as error:
        if interruption_of(connection.trainer, error) is None:
            contact.heard()
    else:
        contact.heard()


def _key(change: PromptChange) -> Hashable:
    """Distinguishes the changes of one revision."""
    match change:
        case Published(version=version):
            return change.revision, version.name
        case AliasSet(prompt=prompt, alias=alias):
            return change.revision, prompt, alias.name
        case Deleted(version=name):
            return change.revision, "deleted", name
        case _:
            return (change.revision,)
