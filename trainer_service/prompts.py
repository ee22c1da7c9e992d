"""Published prompts as callers manage them: the prompt store, asynchronous, in pages, with compare-and-set as they write it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shared.blob import MAX_BLOB_BYTES, decode_blob
from shared.errors import Conflict, InvalidInput, PreconditionFailed
from shared.manifest import Manifest
from shared.names import PromptReference, check_alias, check_name, parse_version_name
from shared.store import (
    ANYTHING,
    Alias,
    AliasMoved,
    AliasTarget,
    Changes,
    Commit,
    PromptRecord,
    PromptStore,
    ReplicaRecord,
    StoreIndex,
    VersionDeleted,
    VersionPublished,
    VersionRecord,
    watch,
)
from shared.store.alias import Expected
from shared.store.fleet import Serving, serving
from trainer_service.base_models import BaseModels
from trainer_service.chunks import UploadSlots, timely
from trainer_service.imports import ImportRequest, import_job, read_import
from trainer_service.pools import TrainerPools
from trainer_service.proof import Prover

MAX_CONCURRENT_IMPORTS = 4


@dataclass(frozen=True)
class PromptPage:
    prompts: tuple[PromptRecord, ...]
    next_page_token: str


@dataclass(frozen=True)
class VersionPage:
    """Newest first."""

    prompt: PromptRecord
    versions: tuple[VersionRecord, ...]
    next_page_token: str


@dataclass(frozen=True)
class Version:
    """One version with the prompt that it belongs to, as the index knows them at one revision."""

    prompt: PromptRecord
    record: VersionRecord


@dataclass(frozen=True)
class PromptStatus:
    """Where each version of a prompt is served, newest first, and the replicas that are alive."""

    versions: tuple[tuple[Version, Serving], ...]
    replicas: tuple[ReplicaRecord, ...]
    revision: int


@dataclass(frozen=True)
class PromptChange:
    """One change of the store `store_id`: exactly one of the fields after it is set."""

    revision: int
    store_id: str
    snapshot: tuple[PromptRecord, ...] | None = None
    published: Version | None = None
    alias_moved: AliasMoved | None = None
    deleted: VersionDeleted | None = None

    def seen_by(self, may_see: Callable[[str], bool]) -> PromptChange | None:
        """The change for somebody who may see only some prompts; None if it is about none of those."""
        if self.snapshot is not None:
            return replace(self, snapshot=tuple(prompt for prompt in self.snapshot if may_see(prompt.name)))
        about = self.published.record if self.published else self.alias_moved or self.deleted
        return self if about is not None and may_see(about.prompt) else None


class Prompts:
    """Every method reads the store's newest state first. All raise Unavailable while the store is away."""

    def __init__(self, store: PromptStore, models: BaseModels, prover: Prover, pools: TrainerPools) -> None:
        self._store, self._models, self._prover = store, models, prover
        self._pool, self._watch_pool = pools.prompt_store, pools.prompt_store_watch
        self._imports = UploadSlots(MAX_CONCURRENT_IMPORTS)

    async def list(self, name_prefix: str, page_size: int, page_token: str) -> PromptPage:
        """By name; the token is the last name of the page before."""
        after = check_name(page_token, "page_token") if page_token else ""
        index = await self._fresh()
        matching = [prompt for prompt in index.list_prompts(after, len(index.prompts)) if prompt.name.startswith(name_prefix)]
        more = len(matching) > page_size
        return PromptPage(tuple(matching[:page_size]), matching[page_size - 1].name if more else "")

    async def get(self, prompt: str) -> PromptRecord:
        return (await self._fresh()).prompt(prompt)

    async def versions(self, prompt: str, page_size: int, page_token: str) -> VersionPage:
        """The token is the number of the last version of the page before."""
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 10):
            raise InvalidInput.of("page_token", "was not made by this service")
        index = await self._fresh()
        found = index.list_versions(prompt, int(page_token or 0), page_size + 1)
        more = len(found) > page_size
        return VersionPage(index.prompt(prompt), tuple(found[:page_size]), str(found[page_size - 1].version) if more else "")

    async def resolve(self, name: str) -> Version:
        """`prompts/{prompt}/versions/{n}`, or a reference."""
        reference = _reference(name)
        index = await self._fresh()
        return Version(index.prompt(reference.prompt), index.resolve(reference))

    async def read(self, version: Version) -> tuple[bytes, Manifest]:
        """The blob and what it says about itself."""
        data = await self._pool.call(self._store.fetch, version.record.digest)
        return data, (await asyncio.to_thread(decode_blob, data)).manifest

    async def set_alias(
        self,
        prompt: str,
        alias: str,
        targets: Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> tuple[Alias, int]:
        """The alias as it is now (without targets if it was removed), and the store's revision. Raises Conflict with the current value."""
        check_alias(alias, "alias")
        current = (await self.get(prompt)).aliases.get(alias)
        expected = _expected(prompt, alias, current, expected_version, expected_revision)
        revision = await self._pool.call(self._store.set_alias, prompt, alias, tuple(targets) or None, expected)
        moved = self._store.index().prompt(prompt).aliases.get(alias)
        return moved or Alias(alias, (), "", revision), revision

    async def delete(self, prompt: str, version: int) -> int:
        """The store's revision after it."""
        return await self._pool.call(self._store.delete_version, prompt, version)

    async def import_(self, request: ImportRequest, chunks: AsyncIterator[bytes]) -> tuple[Version, Manifest]:
        """Publish a matrix that was trained elsewhere. Raises InvalidInput, DamagedBlob or PreconditionFailed."""
        with self._imports.taken():
            data = bytearray()
            async for chunk in timely(chunks):
                data += chunk
                if len(data) > MAX_BLOB_BYTES:
                    raise InvalidInput.of("chunk", f"the file is larger than {MAX_BLOB_BYTES} bytes")
            found = await asyncio.to_thread(read_import, bytes(data), request, self._models)
            unproven = b"" if found.unproven_on is None else found.blob()[0]
            golden = () if found.unproven_on is None else await self._prover.golden_records(found.unproven_on, unproven)
            blob, manifest = await asyncio.to_thread(found.blob, golden)
        record = await self._pool.call(self._store.publish, request.prompt, blob, job=import_job(request), alias=request.alias or None)
        return Version(self._store.index().prompt(request.prompt), record), manifest

    async def status(self, prompt: str) -> PromptStatus:
        """Raises NotFound."""
        index = await self._fresh()
        record = index.prompt(prompt)
        replicas = await self._pool.call(self._store.list_replicas)
        versions = sorted(record.versions.values(), key=lambda version: -version.version)
        return PromptStatus(
            tuple((Version(record, version), serving(version, replicas)) for version in versions), tuple(replicas), index.revision
        )

    async def watch(self, after_revision: int | None, name_prefix: str, store_id: str = "") -> AsyncGenerator[PromptChange, None]:
        """Changes after a revision, for ever; None, or a revision that the log no longer reaches: everything as it is, first.

        `store_id` is the store that the revision is of (empty: not checked). Raises PreconditionFailed if this is another one.
        """
        if after_revision is not None and after_revision < 0:
            raise InvalidInput.of("after_revision", f"must not be negative, but is {after_revision}")
        if store_id:
            await self._check_store(store_id)
        async for changes in watch(self._store, after_revision, pool=self._watch_pool):
            for change in _flatten(changes, self._store.id, name_prefix):
                yield change

    async def _check_store(self, store_id: str) -> None:
        await self._pool.call(self._store.refresh, check=True)
        if store_id != self._store.id:
            raise PreconditionFailed(
                f"after_revision is of the prompt store {store_id[:40]!r}, and this one is {self._store.id!r}: the store was replaced; "
                "watch again without after_revision and forget what you knew",
                store_id=self._store.id,
                expected=store_id[:80],
            )

    async def _fresh(self) -> StoreIndex:
        return await self._pool.call(self._store.refresh)


def _reference(name: str) -> PromptReference:
    if name.startswith("prompts/"):
        prompt, version = parse_version_name(name, "name")
        return PromptReference(prompt, None, version)
    return PromptReference.parse(name, "name")


def _expected(prompt: str, alias: str, current: Alias | None, version: int | None, revision: int | None) -> Expected:
    """What the store is to find. A weighted alias can only be expected by its revision."""
    if revision is not None:
        found = current.revision if current else 0
        if found != revision:
            raise Conflict(f"{prompt}@{alias} last moved at revision {found}, not {revision}", current=found, expected=revision)
        return current.targets if current else None
    if version is None:
        return ANYTHING
    if version < 0:
        raise InvalidInput.of("expected_version", f"must not be negative, but is {version}")
    return version or None


def _flatten(changes: Changes, store_id: str, name_prefix: str) -> Iterator[PromptChange]:
    if changes.restarted:
        prompts = changes.index.list_prompts(limit=len(changes.index.prompts))
        found = tuple(prompt for prompt in prompts if prompt.name.startswith(name_prefix))
        yield PromptChange(changes.index.revision, store_id, snapshot=found)
        return
    for commit in changes.commits:
        for operation in commit.ops:
            if operation.prompt.startswith(name_prefix):
                yield _change(commit, store_id, operation, changes.index)


def _change(commit: Commit, store_id: str, operation: VersionPublished | AliasMoved | VersionDeleted, index: StoreIndex) -> PromptChange:
    match operation:
        case VersionPublished(prompt, version, digest, size_bytes, job, summary):
            record = VersionRecord(prompt, version, digest, size_bytes, job, commit.time, commit.revision, summary)
            return PromptChange(commit.revision, store_id, published=Version(index.prompt(prompt), record))
        case AliasMoved():
            return PromptChange(commit.revision, store_id, alias_moved=operation)
        case VersionDeleted():
            return PromptChange(commit.revision, store_id, deleted=operation)
