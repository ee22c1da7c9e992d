"""Loads a published version: fetches and checks it, loads its prefix, replays its golden records.

Raises VersionRefused for versions that can never serve, Unavailable for those that may work later. Knows no aliases and
no schedule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from inference_service.prompts.golden import Replay, allowed_nats, alternatives_for, disagreement
from inference_service.prompts.version import RefusalReason, ServableVersion, VersionRefused, prefix_id_of
from shared.errors import DamagedBlob, InvalidInput, NotFound, Overloaded, PreconditionFailed, Unavailable
from shared.model.base_model import BaseModel
from shared.process.call_pool import CallPool
from shared.prompt.blob import PromptBlob, decode_blob
from shared.prompt.manifest import GoldenRecord
from shared.prompt.prefix import Prefix
from shared.store.index import VersionRecord
from shared.text.golden_inputs import golden_input_ids
from shared.text.template import InputEncoder

MAX_FETCH_SECONDS = 10.0
"""Time limit of a fetch of a few megabytes; a waiting load occupies one of few places."""
LEAST_BYTES_PER_SECOND = 16 << 20
"""Larger blobs, of keys and values, get the time that they take at this speed in addition."""
MAX_FETCHES = 16
"""Threads for fetching blobs, more than concurrent loads: a fetch that hangs keeps its thread, but not its place."""
_FIRST = 1 << 20  # a replay is one short step, and many callers may wait for its version


class BlobSource(Protocol):
    """The loader's interface to the store."""

    def fetch(self, digest: str) -> bytes:
        """The blob with this digest. Raises NotFound, DamagedBlob or Unavailable."""


class PrefixEngine(Protocol):
    """The loader's interface to the engine."""

    async def load_prefix(self, prefix_id: str, prefix: Prefix) -> None:
        """Load the prefix and keep it under this id. Raises PreconditionFailed if it is refused."""

    async def unload_prefix(self, prefix_id: str) -> Any:
        """Drop the prefix once no request uses it."""

    async def top_logprobs(
        self, prefix_id: str | None, input_ids: tuple[int, ...], k: int, priority: int = 0
    ) -> Sequence[tuple[int, float]]:
        """The `k` most likely next tokens after `input_ids`, most likely first, with their log-probabilities."""


class VersionLoader:
    """Loads versions. `max_length` limits the positions of a request, `max_logprobs` the alternatives per token."""

    def __init__(
        self,
        store: BlobSource,
        engine: PrefixEngine,
        base: BaseModel,
        max_length: int,
        max_logprobs: int,
        pool: CallPool | None = None,
    ) -> None:
        self._pool = pool or CallPool("prompt_store_fetch", max_threads=MAX_FETCHES)
        self._store, self._engine, self._base = store, engine, base
        self._fetching: dict[str, float] = {}
        """Start time of each pending fetch by digest, also of those that timed out."""
        self._max_length, self._max_logprobs = max_length, max_logprobs
        self._unloads: set[asyncio.Task[None]] = set()

    async def load(self, record: VersionRecord) -> ServableVersion:
        """Load and check a version. Raises VersionRefused or Unavailable, and then keeps nothing."""
        self._check_fingerprint(record.summary.base_model, record.summary.base_model_fingerprint)
        started = self._fetching.get(record.digest)
        fetch_seconds = self._seconds_to_fetch(record)
        if started is not None and time.monotonic() - started > fetch_seconds:
            # Another attempt would hang, too, and block a thread and a place for other versions.
            raise Unavailable(f"the prompt store has not answered an earlier request for the blob of {record.name}")
        blob, encoder = await self._pool.call_within(fetch_seconds, partial(self._fetch_and_check, record))
        prefix_id = prefix_id_of(record)
        try:
            await self._engine.load_prefix(prefix_id, blob.prefix)
        except DamagedBlob as error:
            raise VersionRefused(RefusalReason.NOT_FINITE, error.message) from error
        except (PreconditionFailed, InvalidInput) as error:
            raise VersionRefused(RefusalReason.SHAPE, error.message) from error
        try:
            await self._replay(prefix_id, blob)
        except BaseException:
            await asyncio.shield(self._engine.unload_prefix(prefix_id))
            raise
        return ServableVersion(record, blob.manifest, blob.prefix, encoder, prefix_id, datetime.now(UTC))

    def unload(self, prefix_id: str) -> None:
        """Unload a prefix in the background. The engine keeps it as long as a request uses it."""
        task = asyncio.create_task(self._unload(prefix_id), name=f"unload {prefix_id}")
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload(self, prefix_id: str) -> None:
        with suppress(Unavailable):  # the engine has stopped, and its memory goes with it
            await self._engine.unload_prefix(prefix_id)

    def _seconds_to_fetch(self, record: VersionRecord) -> float:
        return min(self._pool.timeout_seconds, MAX_FETCH_SECONDS + record.size_bytes / LEAST_BYTES_PER_SECOND)

    def _fetch_and_check(self, record: VersionRecord) -> tuple[PromptBlob, InputEncoder]:
        """The blob and its encoder. Tokenizes with the template, which may take long: not for the event loop."""
        blob = self._fetch(record)
        encoder = self._check_fits(blob)
        _check_template(blob.manifest.golden, encoder)
        return blob, encoder

    def _fetch(self, record: VersionRecord) -> PromptBlob:
        self._fetching[record.digest] = time.monotonic()
        try:
            blob = decode_blob(self._store.fetch(record.digest))
        except DamagedBlob as error:
            raise VersionRefused(RefusalReason.DAMAGED, error.message) from error
        except NotFound as error:  # a mirrored store may show a log entry before its blob
            raise Unavailable(f"the blob of {record.name} is not in the store yet") from error
        finally:
            self._fetching.pop(record.digest, None)
        if blob.digest != record.digest:
            raise VersionRefused(
                RefusalReason.DAMAGED, f"the blob's digest is {blob.digest}, the published one is {record.digest}"
            )
        return blob

    def _check_fingerprint(self, id: str, fingerprint: str) -> None:
        ours = self._base.info
        if fingerprint != ours.fingerprint:
            raise VersionRefused(
                RefusalReason.BASE_MODEL,
                f"tuned for {id} ({fingerprint}); this replica serves {ours.id} ({ours.fingerprint})",
            )

    def _check_fits(self, blob: PromptBlob) -> InputEncoder:
        """The encoder of the template, after checks of model, length, shape and finiteness in the model's dtype."""
        theirs = blob.manifest.base_model
        self._check_fingerprint(theirs.id, theirs.fingerprint)
        if blob.prefix.num_virtual_tokens + 2 > self._max_length:
            text = f"{blob.prefix.num_virtual_tokens} virtual tokens leave no room in {self._max_length} positions"
            raise VersionRefused(RefusalReason.SHAPE, text)
        try:
            blob.prefix.check_fits(self._base)
        except PreconditionFailed as error:
            raise VersionRefused(RefusalReason.SHAPE, error.message) from error
        except DamagedBlob as error:
            raise VersionRefused(RefusalReason.NOT_FINITE, error.message) from error
        try:
            return InputEncoder(self._base.tokenizer, blob.manifest.template.check())
        except InvalidInput as error:
            raise VersionRefused(RefusalReason.TEMPLATE, error.message) from error

    async def _replay(self, prefix_id: str, blob: PromptBlob) -> None:
        """Replay all records concurrently, so that the engine computes them in one pass."""
        wanted = list[tuple[int, GoldenRecord]]()
        for index, record in enumerate(blob.manifest.golden):
            if max(record.input_ids) >= self._base.info.vocab_size:
                raise VersionRefused(
                    RefusalReason.DAMAGED, f"golden record {index} has token ids that the model does not have"
                )
            if blob.prefix.num_virtual_tokens + len(record.input_ids) + 1 > self._max_length:
                continue  # too long for this replica; the trainer allows longer requests
            wanted.append((index, record))
        outcomes = await asyncio.gather(
            *(self._replay_one(prefix_id, index, record) for index, record in wanted), return_exceptions=True
        )
        replays = list[Replay]()
        for (_, record), outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            replays.append(Replay(record, outcome))
        serving_dtype = str(self._base.dtype).removeprefix("torch.")
        if different := disagreement(replays, allowed_nats(blob.manifest.golden, serving_dtype)):
            raise VersionRefused(RefusalReason.GOLDEN, f"the golden record disagrees: {different}")

    async def _replay_one(self, prefix_id: str, index: int, record: GoldenRecord) -> dict[int, float]:
        try:
            return dict(
                await self._engine.top_logprobs(
                    prefix_id, record.input_ids, alternatives_for(record, self._max_logprobs), _FIRST
                )
            )
        except DamagedBlob as error:
            raise VersionRefused(RefusalReason.NOT_FINITE, f"golden record {index}: {error.message}") from error
        except (PreconditionFailed, InvalidInput) as error:
            raise VersionRefused(RefusalReason.SHAPE, f"golden record {index}: {error.message}") from error
        except Overloaded as error:
            raise Unavailable(f"no room for the golden replay: {error.message}") from error


def _check_template(records: Sequence[GoldenRecord], encoder: InputEncoder) -> None:
    """Check that synthetic records are of inputs that every replica can compute, with this template and tokenizer."""
    if not any(record.is_synthetic for record in records):
        return
    expected = set(golden_input_ids(encoder))
    for index, record in enumerate(records):
        if record.is_synthetic and record.input_ids not in expected:
            text = f"golden record {index} is of an input that this version's template does not give"
            raise VersionRefused(RefusalReason.GOLDEN, text)
