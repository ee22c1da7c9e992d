"""The two methods that ask about replicas: answered from one replica of each base model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from google.protobuf.message import DecodeError
from prompttuning.v1 import generation_pb2

from shared.errors import InvalidInput
from shared.names import parse_version_name
from softprompt.routing.ask import Ask, Call
from softprompt.routing.routing import Routing

_QUARANTINED = generation_pb2.LoadedPrompt.STATE_QUARANTINED


async def model_info(routing: Routing, call: Call) -> bytes:
    """GetModelInfo of one base model, with the ids of all. Without a base model: the default, else the first one."""
    try:
        wanted = generation_pb2.GetModelInfoRequest.FromString(call.request).base_model or routing.first_model()
    except DecodeError as error:
        raise InvalidInput.of("request", "can't be read as the method's message") from error
    ask, named = Ask(base_model=wanted), generation_pb2.GetModelInfoRequest(base_model=wanted)
    response = await routing.unary(replace(call, request=named.SerializeToString()), ask)
    info = generation_pb2.GetModelInfoResponse.FromString(response)
    info.base_models[:] = routing.base_models()
    return info.SerializeToString()


async def loaded_prompts(routing: Routing, call: Call) -> bytes:
    """ListLoadedPrompts of one replica of each base model.

    A version is shown as the replica of its base model has it: the others quarantine it. Base models without a replica
    that answers are left out; if none answers, raises the first error.
    """
    asks = [Ask(base_model=fingerprint) for fingerprint in routing.fingerprints()] or [Ask()]
    calls = (routing.unary(call, ask) for ask in asks)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    received = (found for found in outcomes if isinstance(found, bytes))
    answers = list(map(generation_pb2.ListLoadedPromptsResponse.FromString, received))
    if not answers:
        raise next(found for found in outcomes if isinstance(found, BaseException))
    shown: dict[str, generation_pb2.LoadedPrompt] = {}
    for item in (item for answer in answers for item in answer.prompts):
        if item.version not in shown or shown[item.version].state == _QUARANTINED:
            shown[item.version] = item
    prompts = [shown[version] for version in sorted(shown, key=lambda name: parse_version_name(name, "version"))]
    revision = min(answer.revision for answer in answers)
    return generation_pb2.ListLoadedPromptsResponse(prompts=prompts, revision=revision).SerializeToString()


OVERVIEWS = {"GetModelInfo": model_info, "ListLoadedPrompts": loaded_prompts}
"""By method."""
