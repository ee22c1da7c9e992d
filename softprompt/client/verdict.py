"""Waiting for replicas to serve a version or to refuse it: each one checks a version before it serves it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from prompttuning.v1 import prompts_pb2

from shared.errors import DeadlineExceeded, NotFound, PreconditionFailed
from shared.names import parse_version_name, version_name
from shared.values.prompts import PromptStatus, VersionStatus
from softprompt.client.connection import Connection

STATUS_POLL_SECONDS = 0.2
VERDICT_SECONDS = 60.0
"""Enough for a replica to see a version and to replay its golden record."""


async def version_status(connection: Connection, version: str) -> VersionStatus:
    """The status of one version. Raises NotFound, or PreconditionFailed with the reasons why replicas refused it."""
    prompt, number = parse_version_name(version, "version")
    wanted = version_name(prompt, number)
    request = prompts_pb2.GetPromptStatusRequest(name=f"prompts/{prompt}")
    status = await connection.ask(PromptStatus, request)
    found = next((item for item in status.versions if item.version == wanted), None)
    if found is None:
        raise NotFound("version", wanted)
    if refusals := [item for item in found.refused if item.has_base_model]:
        reasons = "; ".join(f"{item.replica} refused {wanted}: {item.reason}" for item in refusals)
        raise PreconditionFailed(reasons, version=wanted)
    return found


async def served_by_all(connection: Connection, version: str, timeout_seconds: float) -> VersionStatus:
    """See `PromptMethods.wait_until_served_by_all`."""
    found = await _awaited(connection, version, timeout_seconds, lambda status: status.served_by_all)
    if not found.served_by_all:
        counted = f"{len(found.served)} of {found.num_replicas} live replicas"
        raise DeadlineExceeded(f"{found.version} is served by {counted} after {timeout_seconds:g} s")
    return found


async def first_verdict(
    connection: Connection, version: str, timeout_seconds: float = VERDICT_SECONDS
) -> VersionStatus:
    """See `PromptMethods.first_verdict`."""
    found = await _awaited(connection, version, timeout_seconds, _is_decided)
    if not _is_decided(found):
        raise DeadlineExceeded(f"no replica has served or refused {found.version} within {timeout_seconds:g} s")
    return found


def _is_decided(status: VersionStatus) -> bool:
    return bool(status.served) or not status.num_replicas


async def _awaited(
    connection: Connection, version: str, timeout_seconds: float, is_met: Callable[[VersionStatus], bool]
) -> VersionStatus:
    """The status once it `is_met`, or the last one of that time."""
    deadline = time.monotonic() + timeout_seconds
    while not is_met(found := await version_status(connection, version)) and time.monotonic() <= deadline:
        await asyncio.sleep(STATUS_POLL_SECONDS * random.uniform(0.5, 1.5))
    return found
