"""PromptService: convert, delegate, convert back. Errors are domain errors; the interceptor makes statuses of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from fractions import Fraction
from typing import Any

from prompttuning.v1 import prompts_pb2 as pb
from prompttuning.v1 import prompts_pb2_grpc

from shared.caller import current_caller
from shared.errors import InvalidInput
from shared.names import parse_version_name
from shared.security.page_tokens import ListScope, PageTokens
from shared.store.commit import MAX_TARGETS, MAX_WEIGHT, AliasTarget
from shared.values import prompts as values
from shared.wire.mirror import fill, read, read_checked, write
from trainer_service.imports import ImportRequest
from trainer_service.prompt_view import shown_prompt
from trainer_service.prompts import Prompts
from trainer_service.servicers.names import page_size_of, prompt_of
from trainer_service.servicers.streams import Beat, header_and_chunks, heartbeat, until_draining

_CHUNK_BYTES = 1 << 20


class PromptServicer(prompts_pb2_grpc.PromptServiceServicer):
    """`draining` ends the watches. A watch is never silent for longer than `heartbeat_seconds`."""

    def __init__(
        self,
        prompts: Prompts,
        tokens: PageTokens,
        draining: asyncio.Event,
        heartbeat_seconds: float,
    ) -> None:
        self._prompts, self._tokens, self._draining = prompts, tokens, draining
        self._heartbeat_seconds = heartbeat_seconds

    async def ListPrompts(self, request: pb.ListPromptsRequest, context: Any) -> pb.ListPromptsResponse:
        scope = ListScope("ListPrompts", current_caller(), {"name_prefix": request.name_prefix})
        size, after = page_size_of(request.page_size), self._tokens.open(request.page_token, scope)
        prompts, next_after = await self._prompts.list(request.name_prefix, size, after)
        token = self._tokens.seal(next_after, scope)
        return fill(pb.ListPromptsResponse(), prompts=prompts, next_page_token=token)

    async def GetPrompt(self, request: pb.GetPromptRequest, context: Any) -> pb.GetPromptResponse:
        prompt = await self._prompts.get(prompt_of(request.name))
        return fill(pb.GetPromptResponse(), prompt=shown_prompt(prompt))

    async def ListPromptVersions(
        self, request: pb.ListPromptVersionsRequest, context: Any
    ) -> pb.ListPromptVersionsResponse:
        prompt = prompt_of(request.parent, "parent")
        scope = ListScope("ListPromptVersions", current_caller(), {"parent": prompt})
        size, below = page_size_of(request.page_size), int(self._tokens.open(request.page_token, scope) or 0)
        versions, next_below = await self._prompts.versions(prompt, size, below)
        token = self._tokens.seal(str(next_below or ""), scope)
        return fill(pb.ListPromptVersionsResponse(), versions=versions, next_page_token=token)

    async def GetPromptVersion(self, request: pb.GetPromptVersionRequest, context: Any) -> pb.GetPromptVersionResponse:
        version, _ = await self._prompts.read(request.name)
        return fill(pb.GetPromptVersionResponse(), version=version)

    async def SetPromptAlias(self, request: pb.SetPromptAliasRequest, context: Any) -> pb.SetPromptAliasResponse:
        alias, revision = await self._prompts.set_alias(
            prompt_of(request.prompt, "prompt"),
            request.alias,
            stored_targets([read(values.AliasTarget, target) for target in request.targets]),
            expected_version=request.expected_version if request.HasField("expected_version") else None,
            expected_revision=request.expected_revision if request.HasField("expected_revision") else None,
        )
        return fill(pb.SetPromptAliasResponse(), alias=alias, revision=revision)

    async def DeletePromptVersion(
        self, request: pb.DeletePromptVersionRequest, context: Any
    ) -> pb.DeletePromptVersionResponse:
        revision = await self._prompts.delete(*parse_version_name(request.name, "name"))
        return pb.DeletePromptVersionResponse(revision=revision)

    async def DownloadPromptVersion(
        self, request: pb.DownloadPromptVersionRequest, context: Any
    ) -> AsyncIterator[pb.DownloadPromptVersionResponse]:
        version, data = await self._prompts.read(request.name)
        yield fill(pb.DownloadPromptVersionResponse(), version=version)
        for start in range(0, len(data), _CHUNK_BYTES):
            yield pb.DownloadPromptVersionResponse(chunk=data[start : start + _CHUNK_BYTES])

    async def ImportPromptVersion(
        self, requests: AsyncIterator[pb.ImportPromptVersionRequest], context: Any
    ) -> pb.ImportPromptVersionResponse:
        header, chunks = await header_and_chunks(requests)
        version = await self._prompts.import_(read_checked(ImportRequest, header, "header"), chunks)
        return fill(pb.ImportPromptVersionResponse(), version=version)

    async def GetPromptStatus(self, request: pb.GetPromptStatusRequest, context: Any) -> pb.GetPromptStatusResponse:
        status = await self._prompts.status(prompt_of(request.name))
        return write(status, pb.GetPromptStatusResponse())

    async def WatchPrompts(
        self, request: pb.WatchPromptsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPromptsResponse]:
        after = request.after_revision if request.HasField("after_revision") else None
        changes = self._prompts.watch(after, request.name_prefix, request.store_id)
        revision, store_id = after, request.store_id
        async with aclosing(until_draining(changes, self._draining, self._heartbeat_seconds)) as changes_until_drain:
            async for change in changes_until_drain:
                if isinstance(change, Beat):
                    if revision is not None:  # before the first snapshot there is no revision to go on from
                        beat = heartbeat(self._heartbeat_seconds)
                        yield pb.WatchPromptsResponse(revision=revision, store_id=store_id, heartbeat=beat)
                else:
                    revision, store_id = change.revision, change.store_id
                    yield write(change, pb.WatchPromptsResponse())


_MAX_VERSION = 999_999_999


def stored_targets(targets: Sequence[values.AliasTarget]) -> tuple[AliasTarget, ...]:
    """Weights are ratios; they become whole numbers, as the store keeps them. Raises InvalidInput."""
    if len(targets) > MAX_TARGETS:
        raise InvalidInput.of("targets", f"has {len(targets)} entries; at most {MAX_TARGETS} are allowed")
    for index, target in enumerate(targets):
        if not 1 <= target.version <= _MAX_VERSION:
            raise InvalidInput.of(f"targets[{index}].version", f"{target.version} is not a version number")
        if not (math.isfinite(target.weight) and target.weight > 0):
            raise InvalidInput.of(f"targets[{index}].weight", f"must be above 0, not {target.weight}")
    weights = _whole_weights([float(target.weight) for target in targets])
    return tuple(AliasTarget(target.version, weight) for target, weight in zip(targets, weights, strict=True))


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers as they are, else the smallest in these ratios: 0.9 and 0.1 are 9 and 1. Ratios beyond MAX_WEIGHT
    are rounded to it.
    """
    if all(weight.is_integer() and weight <= MAX_WEIGHT for weight in weights):
        return [int(weight) for weight in weights]
    fractions = [Fraction(weight).limit_denominator(10_000) for weight in weights]
    if all(fractions):
        whole = [int(fraction * math.lcm(*(item.denominator for item in fractions))) for fraction in fractions]
        whole = [weight // math.gcd(*whole) for weight in whole]
        if max(whole) <= MAX_WEIGHT:
            return whole
    return [max(1, round(weight / max(weights) * MAX_WEIGHT)) for weight in weights]
