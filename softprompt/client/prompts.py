"""Prompts, their versions and aliases, asynchronously; and the blocking forms of these methods.

A watch survives lost connections and restarts of the trainer. Each change carries its revision and store id, so a new
call asks for the changes after the last one: none is missed or repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import aclosing
from pathlib import Path

import grpc
from prompttuning.v1 import prompts_pb2

from shared.errors import DamagedBlob, NotFound
from shared.process.user_cache import expanded
from shared.values.prompts import (
    Alias,
    AliasSet,
    AliasTarget,
    Deleted,
    Prompt,
    PromptChange,
    PromptStatus,
    Published,
    ReplicaStatus,
    Snapshot,
    VersionStatus,
)
from shared.values.template import Template
from shared.wire.mirror import fill, read, write
from softprompt.client.connection import Connection
from softprompt.client.resuming import Contact, Interrupted, Silence, interruption_of, messages
from softprompt.client.sync_methods import SyncMethods, blocking
from softprompt.client.verdict import VERDICT_SECONDS, first_verdict, served_by_all
from softprompt.interchange.adapter import write_adapter
from softprompt.interchange.source import ImportSource
from softprompt.types.prompts import PromptVersion

CHUNK_BYTES = 512 << 10
DOWNLOAD_SECONDS = 300.0
IMPORT_SECONDS = 300.0
"""Includes loading the base model, which an import without golden records needs."""


async def watch_prompts(
    connection: Connection, after_revision: int | None, store_id: str, name_prefix: str, reconnect_seconds: float
) -> AsyncIterator[PromptChange]:
    """Raises the last call's error after `reconnect_seconds` without contact. A commit may hold several changes under
    one revision; after a connection lost between them, the first comes again.
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


class PromptMethods:
    """The part of AsyncClient for prompts. A prompt is "name" or "prompts/name"."""

    _connection: Connection

    async def list_prompts(self, *, name_prefix: str = "") -> list[Prompt]:
        """All prompts, sorted by name."""
        request = prompts_pb2.ListPromptsRequest(name_prefix=name_prefix)
        return await self._connection.all_pages(Prompt, request, "prompts")

    async def get_prompt(self, prompt: str) -> Prompt:
        """One prompt with its aliases. Raises NotFound."""
        request = prompts_pb2.GetPromptRequest(name=resource_name(prompt))
        return await self._connection.ask(Prompt, request, "prompt")

    async def list_versions(self, prompt: str) -> list[PromptVersion]:
        """All versions of a prompt, newest first."""
        request = prompts_pb2.ListPromptVersionsRequest(parent=resource_name(prompt))
        return await self._connection.all_pages(PromptVersion, request, "versions")

    async def get_version(self, version: str) -> PromptVersion:
        """One version, by "prompts/{prompt}/versions/{n}", "name", "name@alias" or "name@7". Raises NotFound."""
        request = prompts_pb2.GetPromptVersionRequest(name=version)
        return await self._connection.ask(PromptVersion, request, "version")

    async def set_alias(
        self,
        prompt: str,
        alias: str,
        target: int | Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> Alias:
        """Move an alias to a version, or to several with weights; an empty sequence removes it. Raises Conflict with
        the current value if it does not name `expected_version` (0: must not exist) or has moved since
        `expected_revision`.
        """
        request = fill(
            prompts_pb2.SetPromptAliasRequest(),
            prompt=resource_name(prompt),
            alias=alias,
            targets=[AliasTarget(target)] if isinstance(target, int) else target,
            expected_version=expected_version,
            expected_revision=expected_revision,
        )
        return await self._connection.ask(Alias, request, "alias")

    async def prompt_status(self, prompt: str) -> PromptStatus:
        """The replicas that serve each version, and those that refused it and why, by their last reports."""
        request = prompts_pb2.GetPromptStatusRequest(name=resource_name(prompt))
        return await self._connection.ask(PromptStatus, request)

    async def list_replicas(self) -> list[ReplicaStatus]:
        """All live replicas of any base model, by their last reports; none before the first prompt is published."""
        found = (await self._connection.send(prompts_pb2.ListPromptsRequest(page_size=1))).prompts
        try:  # the status of every prompt lists all replicas
            return list((await self.prompt_status(found[0].name)).replicas) if found else []
        except NotFound:  # it was deleted meanwhile
            return await self.list_replicas()

    async def wait_until_served_by_all(self, version: str, *, timeout_seconds: float = 60.0) -> VersionStatus:
        """Wait until every live replica of the version's base model serves it; there must be at least one. Raises
        PreconditionFailed with the reasons of refusals, DeadlineExceeded with the count after `timeout_seconds`.
        """
        return await served_by_all(self._connection, version, timeout_seconds)

    async def first_verdict(self, version: str, *, timeout_seconds: float = VERDICT_SECONDS) -> VersionStatus:
        """Wait until a live replica of the version's base model serves or refuses it; at once if none is alive. Raises
        PreconditionFailed with the reasons of a refusal, DeadlineExceeded after `timeout_seconds`.
        """
        return await first_verdict(self._connection, version, timeout_seconds)

    async def download_version(self, version: str) -> tuple[PromptVersion, bytes]:
        """The version with its whole manifest, and its blob (safetensors). Raises DamagedBlob if the digest differs."""
        request = prompts_pb2.DownloadPromptVersionRequest(name=version)
        call = self._connection.prompts.DownloadPromptVersion(request, timeout=DOWNLOAD_SECONDS)
        described: PromptVersion | None = None
        data = bytearray()
        async with self._connection.trainer.errors():
            async for part in call:
                if part.HasField("version"):
                    described = read(PromptVersion, part.version)
                data += part.chunk
        if described is None:
            raise DamagedBlob(f"{version} was sent without its description")
        if (digest := f"sha256:{hashlib.sha256(data).hexdigest()}") != described.digest:
            raise DamagedBlob(f"{described.name} has digest {described.digest}; what arrived has {digest}")
        return described, bytes(data)

    async def export_version(
        self, version: str, directory: str | Path, *, base_model: str = "", overwrite: bool = False, peft_type: str = ""
    ) -> PromptVersion:
        """Write a version as a directory for `peft.PeftModel.from_pretrained`, which loads the model from `base_model`.
        `peft_type`: for keys and values, PREFIX_TUNING (if empty) or CARTRIDGE.
        """
        described, data = await self.download_version(version)
        await asyncio.to_thread(write_adapter, expanded(directory), described, data, base_model, overwrite, peft_type)
        return described

    async def import_version(
        self,
        path: str | Path,
        prompt: str,
        *,
        base_model: str = "",
        template: Template | None = None,
        labels: Sequence[str] = (),
        alias: str = "",
        request_id: str = "",
        timeout_seconds: float | None = None,
    ) -> PromptVersion:
        """Publish a prefix that was trained elsewhere: a safetensors file, or a directory written by PEFT, TGIS or
        caikit. Pickle files are refused. `template` and `labels` are for foreign files; files of this service contain
        theirs. `base_model` is needed if the trainer has none of the name in an adapter of PEFT. `alias` is as in
        PublishPolicy. Repeating a `request_id` returns the version that it created. Raises InvalidInput, NotFound.
        """
        source = await asyncio.to_thread(ImportSource.of, path)
        data = await asyncio.to_thread(source.file.read_bytes)
        header = prompts_pb2.ImportHeader(
            prompt=prompt,
            base_model=base_model,
            labels=labels,
            alias=alias,
            request_id=request_id,
            kind=source.kind,
            trained_on=source.base_model,
        )
        if template is not None:
            write(template, header.template, "template")
            header.template.SetInParent()

        async def parts() -> AsyncIterator[prompts_pb2.ImportPromptVersionRequest]:
            yield prompts_pb2.ImportPromptVersionRequest(header=header)
            for start in range(0, len(data), CHUNK_BYTES):
                yield prompts_pb2.ImportPromptVersionRequest(chunk=data[start : start + CHUNK_BYTES])

        method = self._connection.prompts.ImportPromptVersion
        response = await self._connection.trainer.call(method, parts(), timeout_seconds or IMPORT_SECONDS)
        return read(PromptVersion, response.version)

    def watch_prompts(
        self,
        *,
        after_revision: int | None = None,
        store_id: str = "",
        name_prefix: str = "",
        reconnect_seconds: float = 120.0,
    ) -> AsyncIterator[PromptChange]:
        """Changes of the store, without end: a snapshot and what follows, or the changes after `after_revision`.
        Reconnects. Raises Unavailable after `reconnect_seconds` without contact, PreconditionFailed if `store_id`,
        which comes with each change, is not the trainer's store.
        """
        return watch_prompts(self._connection, after_revision, store_id, name_prefix, reconnect_seconds)

    async def delete_version(self, version: str) -> int:
        """Delete a version; return the revision of the deletion. Raises PreconditionFailed if an alias names it."""
        return int((await self._connection.send(prompts_pb2.DeletePromptVersionRequest(name=version))).revision)


class SyncPromptMethods(SyncMethods):
    """The blocking forms of PromptMethods."""

    list_prompts = blocking(PromptMethods.list_prompts)
    get_prompt = blocking(PromptMethods.get_prompt)
    list_versions = blocking(PromptMethods.list_versions)
    get_version = blocking(PromptMethods.get_version)
    set_alias = blocking(PromptMethods.set_alias)
    prompt_status = blocking(PromptMethods.prompt_status)
    list_replicas = blocking(PromptMethods.list_replicas)
    wait_until_served_by_all = blocking(PromptMethods.wait_until_served_by_all)
    first_verdict = blocking(PromptMethods.first_verdict)
    download_version = blocking(PromptMethods.download_version)
    export_version = blocking(PromptMethods.export_version)
    import_version = blocking(PromptMethods.import_version)
    watch_prompts = blocking(PromptMethods.watch_prompts)
    delete_version = blocking(PromptMethods.delete_version)


def resource_name(prompt: str) -> str:
    """`prompts/{name}` of that name or of the name alone."""
    return prompt if prompt.startswith("prompts/") else f"prompts/{prompt}"
