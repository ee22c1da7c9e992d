"""Published prompts for callers: the prompt store with paging, visibility, compare-and-set, imports and watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack

from shared.caller import Caller, current_caller
from shared.errors import Conflict, DamagedBlob, InvalidInput, NotFound, PreconditionFailed
from shared.names import PromptReference, check_alias, version_name
from shared.prompt.blob import decode_blob
from shared.prompt.digest import MAX_BLOB_BYTES
from shared.store import (
    ANYTHING,
    Alias,
    AliasTarget,
    Changes,
    PromptRecord,
    PromptStore,
    StoreIndex,
    StoreWatcher,
)
from shared.store.alias import Expected
from shared.store.commit import MAX_ACTOR_CHARS
from shared.store.fleet import serving
from shared.store.index import render_targets
from shared.store.view import commit_revision, shown_index, shown_revision, shown_revisions, store_revision
from shared.values import prompts as values
from trainer_service.base_models import BaseModels
from trainer_service.datasets.chunks import UploadSlots, timely
from trainer_service.imports import ImportRequest, import_job, read_import
from trainer_service.pools import TrainerPools
from trainer_service.prompt_view import (
    shown_alias,
    shown_change,
    shown_prompt,
    shown_replica,
    shown_serving,
    shown_version,
)
from trainer_service.proof import Prover

log = logging.getLogger(__name__)

MAX_CONCURRENT_IMPORTS = 8
LARGE_IMPORT_BYTES, MAX_LARGE_IMPORTS = 64 << 20, 2
"""Files above this size are rarer and are held in memory several times: few of them at once."""


class Prompts:
    """Every method first reads the store's newest state and raises Unavailable while the store is unavailable.

    For a caller who is limited to some prompts, the others don't exist (`shared.store.view`). The actor of a change is
    its caller.
    """

    def __init__(self, store: PromptStore, models: BaseModels, prover: Prover, pools: TrainerPools) -> None:
        self._store, self._models, self._prover = store, models, prover
        self._pool, self._watch_pool = pools.prompt_store, pools.prompt_store_watch
        self._imports = UploadSlots(MAX_CONCURRENT_IMPORTS)
        self._large_imports = UploadSlots(MAX_LARGE_IMPORTS)

    async def list(self, name_prefix: str, page_size: int, after: str = "") -> tuple[Sequence[values.Prompt], str]:
        """Prompts sorted by name, from the name after `after` on; and the next page's `after`, empty on the last."""
        found = (await self._fresh()).list_prompts(after, page_size + 1, name_prefix)
        next_after = found[page_size - 1].name if len(found) > page_size else ""
        return [shown_prompt(prompt) for prompt in found[:page_size]], next_after

    async def get(self, prompt: str) -> PromptRecord:
        """The prompt with its versions and aliases. Raises NotFound."""
        return (await self._fresh()).prompt(prompt)

    async def versions(self, prompt: str, page_size: int, below: int = 0) -> tuple[Sequence[values.PromptVersion], int]:
        """Versions, newest first, beginning below the number `below` (0: with the newest); and the `below` of the next
        page, 0 on the last. Raises NotFound.
        """
        index = await self._fresh()
        found = index.list_versions(prompt, below, page_size + 1)
        next_below = found[page_size - 1].version if len(found) > page_size else 0
        return [shown_version(index.prompt(prompt), record) for record in found[:page_size]], next_below

    async def read(self, name: str) -> tuple[values.PromptVersion, bytes]:
        """The version named by `prompts/{prompt}/versions/{n}` or by a reference, and its blob. Raises InvalidInput,
        NotFound, or DamagedBlob, also if the blob is missing.
        """
        reference = PromptReference.parse_any(name, "name")
        index = await self._fresh()
        prompt, record = index.prompt(reference.prompt), index.resolve(reference)
        try:
            data = await self._pool.call(self._store.fetch, record.digest)
        except NotFound as error:
            raise DamagedBlob(f"the blob of {record.name} is missing from the prompt store") from error
        return shown_version(prompt, record, (await asyncio.to_thread(decode_blob, data)).manifest), data

    async def set_alias(
        self,
        prompt: str,
        alias: str,
        targets: Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> tuple[values.Alias, int]:
        """Moves the alias, or removes it if there are no targets. Returns the new alias and the store's revision.
        Raises Conflict with the current value if the alias is not as expected.
        """
        check_alias(alias, "alias")
        current = (await self.get(prompt)).aliases.get(alias)
        expected = _expected(prompt, alias, current, expected_version, expected_revision)
        actor = _actor()
        revision = await self._pool.call(self._store.set_alias, prompt, alias, tuple(targets) or None, expected, actor)
        fields = {
            "alias": f"{prompt}@{alias}",
            "targets": render_targets(targets),
            "actor": actor,
            "revision": revision,
        }
        log.info("alias set", extra={"fields": fields})
        moved = self._seen(self._store.index()).prompt(prompt).aliases.get(alias)
        shown = moved.revision if moved and current_caller().is_limited_to_prompts else self._shown(revision)
        return shown_alias(moved or Alias(alias, (), "", shown)), shown

    async def delete(self, prompt: str, version: int) -> int:
        """Deletes a version and returns the store's new revision. Raises NotFound."""
        (await self.get(prompt)).version(version)
        actor = _actor()
        revision = await self._pool.call(self._store.delete_version, prompt, version, actor)
        fields = {"version": version_name(prompt, version), "actor": actor, "revision": revision}
        log.info("version deleted", extra={"fields": fields})
        return self._shown(revision)

    async def import_(self, request: ImportRequest, chunks: AsyncIterator[bytes]) -> values.PromptVersion:
        """Publishes a prompt that was trained elsewhere. Raises InvalidInput, DamagedBlob or PreconditionFailed."""
        with ExitStack() as slots:
            slots.enter_context(self._imports.taken())
            data, is_large = bytearray(), False
            async for chunk in timely(chunks):
                data += chunk
                if len(data) > MAX_BLOB_BYTES:
                    raise InvalidInput.of("chunk", f"the file is larger than {MAX_BLOB_BYTES} bytes")
                if len(data) > LARGE_IMPORT_BYTES and not is_large:
                    slots.enter_context(self._large_imports.taken())
                    is_large = True
            found = await asyncio.to_thread(read_import, bytes(data), request, self._models)
            unproven = b"" if found.unproven_on is None else found.blob()[0]
            golden = () if found.unproven_on is None else await self._prover.golden_records(found.unproven_on, unproven)
            blob, manifest = await asyncio.to_thread(found.blob, golden)
        actor, job, alias = _actor(), import_job(request), request.moved_alias or None
        record = await self._pool.call(self._store.publish, request.prompt, blob, job=job, alias=alias, actor=actor)
        fields = {"version": record.name, "alias": request.moved_alias, "actor": actor, "revision": record.revision}
        log.info("version imported", extra={"fields": fields})
        prompt = self._seen(self._store.index()).prompt(request.prompt)
        return shown_version(prompt, prompt.version(record.version), manifest)

    async def status(self, prompt: str) -> values.PromptStatus:
        """Which replicas serve which versions of the prompt. Raises NotFound."""
        index = await self._pool.call(self._store.refresh)
        record = self._seen(index).prompt(prompt)
        replicas = await self._pool.call(self._store.list_replicas)
        versions = sorted(record.versions.values(), key=lambda version: -version.version)
        seen = [index.revision, *(replica.revision for replica in replicas)]
        revision, *seen = await asyncio.to_thread(shown_revisions, index, current_caller(), seen)
        return values.PromptStatus(
            versions=tuple(shown_serving(record, version, serving(version, replicas)) for version in versions),
            replicas=tuple(shown_replica(replica, shown) for replica, shown in zip(replicas, seen, strict=True)),
            revision=revision,
        )

    async def watch(
        self, after_revision: int | None, name_prefix: str, store_id: str = ""
    ) -> AsyncGenerator[values.PromptChange, None]:
        """Yields the changes after a revision, forever. If the revision is None or older than the log, a snapshot of
        all prompts comes first.

        `store_id` names the store of the revision (empty: not checked). Raises PreconditionFailed if this is another
        store.
        """
        if after_revision is not None and after_revision < 0:
            raise InvalidInput.of("after_revision", f"must not be negative, but is {after_revision}")
        if store_id:
            await self._check_store(store_id)
        caller = current_caller()
        if after_revision is not None:
            index = await self._pool.call(self._store.refresh)
            after_revision = store_revision(after_revision, index, self._store.recent_commits(), caller)
        async for changes in StoreWatcher(self._store, after_revision, pool=self._watch_pool):
            for change in _flatten(changes, self._store.id, name_prefix, caller):
                yield change

    async def _check_store(self, store_id: str) -> None:
        await self._pool.call(self._store.refresh, check=True)
        if store_id != self._store.id:
            raise PreconditionFailed(
                f"after_revision is of the prompt store {store_id[:40]!r}, and this one is {self._store.id!r}: the "
                "store was replaced; watch again without after_revision and discard what you have",
                store_id=self._store.id,
                expected=store_id[:80],
            )

    async def _fresh(self) -> StoreIndex:
        return self._seen(await self._pool.call(self._store.refresh))

    def _seen(self, index: StoreIndex) -> StoreIndex:
        return shown_index(index, current_caller())

    def _shown(self, revision: int) -> int:
        """The revision of a recent change as the caller sees it."""
        made = [commit for commit in self._store.recent_commits() if commit.revision == revision]
        caller = current_caller()
        return commit_revision(made[0], caller) if made else shown_revision(self._store.index(), caller)


def _actor() -> str:
    """The actor of a change, as recorded in the store's log."""
    return current_caller().name[:MAX_ACTOR_CHARS]


def _expected(prompt: str, alias: str, current: Alias | None, version: int | None, revision: int | None) -> Expected:
    """The state of the alias that the store must find. A weighted alias can be expected only by its revision."""
    if revision is not None:
        found = current.revision if current else 0
        if found != revision:
            raise Conflict(
                f"{prompt}@{alias} last moved at revision {found}, not {revision}", current=found, expected=revision
            )
        return current.targets if current else None
    if version is None:
        return ANYTHING
    if version < 0:
        raise InvalidInput.of("expected_version", f"must not be negative, but is {version}")
    return version or None


def _flatten(changes: Changes, store_id: str, name_prefix: str, caller: Caller) -> Iterator[values.PromptChange]:
    index = shown_index(changes.index, caller)
    if changes.restarted:
        found = index.list_prompts(limit=len(index.prompts), name_prefix=name_prefix)
        yield values.Snapshot(shown_revision(changes.index, caller), store_id, tuple(map(shown_prompt, found)))
        return
    for commit in changes.commits:
        for operation in commit.ops:
            if operation.prompt.startswith(name_prefix) and caller.may_use(operation.prompt):
                yield shown_change(operation, commit.time, commit_revision(commit, caller), store_id, index)
