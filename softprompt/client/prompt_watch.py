"""Following the store's changes through lost connections and restarts of the trainer.

Each change says its revision and store, so whoever lost the stream asks for what came after: none is missed, none comes twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable

from prompttuning.v1 import prompts_pb2

from shared.errors import Unavailable
from softprompt.client.connection import Connection
from softprompt.client.mirror import read
from softprompt.client.watch import FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS
from softprompt.types.prompts import Alias, AliasSet, Deleted, Prompt, PromptChange, PromptVersion, Published, Snapshot

_CONNECTED_SECONDS = 30.0
"""A call that lasted so long had reached the trainer."""


async def watch_prompts(
    connection: Connection, after_revision: int | None, store_id: str, name_prefix: str, reconnect_seconds: float
) -> AsyncIterator[PromptChange]:
    """Unavailable after `reconnect_seconds` without any contact.

    A commit may hold several changes under one revision; a connection lost between two of them begins again with the first of them.
    """
    pause, contact = FIRST_PAUSE_SECONDS, time.monotonic()
    told: set[Hashable] = set()  # of the newest revision, which may not be complete
    while True:
        request = prompts_pb2.WatchPromptsRequest(name_prefix=name_prefix, store_id=store_id)
        if after_revision is not None:
            request.after_revision = after_revision
        begun = time.monotonic()
        call = connection.prompts.WatchPrompts(request)
        try:
            with connection.trainer.errors():
                async for response in call:
                    pause, contact = FIRST_PAUSE_SECONDS, time.monotonic()
                    change = _change(response)
                    if isinstance(change, Snapshot):
                        after_revision, told = change.revision, set()
                    elif (key := _key(change)) in told:
                        continue
                    else:
                        told = {key} if after_revision != change.revision - 1 else told | {key}
                        after_revision = change.revision - 1
                    store_id = change.store_id
                    yield change
        except Unavailable:
            if time.monotonic() - begun > _CONNECTED_SECONDS:  # nothing may happen in a store for days
                contact = time.monotonic()
            if time.monotonic() - contact > reconnect_seconds:
                raise
        finally:
            call.cancel()
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


def _key(change: PromptChange) -> Hashable:
    """What tells two changes of one revision apart."""
    match change:
        case Published(version=version):
            return change.revision, version.name
        case AliasSet(prompt=prompt, alias=alias):
            return change.revision, prompt, alias.name
        case Deleted(version=name):
            return change.revision, "deleted", name
        case _:
            return (change.revision,)


def _change(message: prompts_pb2.WatchPromptsResponse) -> PromptChange:
    at = (message.revision, message.store_id)
    match message.WhichOneof("change"):
        case "snapshot":
            return Snapshot(*at, prompts=tuple(read(Prompt, prompt) for prompt in message.snapshot.prompts))
        case "published":
            return Published(*at, version=read(PromptVersion, message.published))
        case "alias_set":
            return AliasSet(*at, prompt=message.alias_set.prompt, alias=read(Alias, message.alias_set.alias))
        case "deleted_version":
            return Deleted(*at, version=message.deleted_version)
        case _:  # a kind that is newer than this client
            return PromptChange(*at)
