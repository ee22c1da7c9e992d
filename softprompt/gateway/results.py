"""Parts of answers that several endpoints share: finish reasons, usage, log-probabilities, names, fingerprints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from shared.names import parse_version_name
from shared.values.generation import (
    FinishReason,
    GenerationEnd,
    GenerationStart,
    InputToken,
    TokenAlternative,
    TokenLogprob,
)
from softprompt.gateway.backend import Backend

LOWEST_LOGPROB = -9999.0
"""What OpenAI's API writes for a token that is practically impossible; JSON has no infinity."""


def json_response(value: Any, status: int = 200) -> Response:
    """Values of the client as JSON. Numbers that are not finite become null."""
    return Response(to_json(value, inf_nan_mode="null"), status, media_type="application/json")


def new_id(prefix: str) -> str:
    """A unique id of an object."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


def finish_reason(end: GenerationEnd) -> str:
    """`stop` or `length`."""
    return "stop" if end.finish_reason in (FinishReason.EOS, FinishReason.STOP_SEQUENCE) else "length"


def resolved_model(start: GenerationStart, model: str) -> str:
    """The version that answered as `name@7`, or the base model's id, which `model` of the request is then."""
    return version_model(start.version) if start.version else model


def version_model(version: str) -> str:
    """`prompts/tone/versions/7` as `tone@7`."""
    prompt, number = parse_version_name(version, "version")
    return f"{prompt}@{number}"


async def about(backend: Backend, start: GenerationStart, model: str) -> dict[str, Any]:
    """The fields that name what answered. The fingerprint is the version's digest, or that of the base model: answers
    with an equal one come from equal weights. `model`: of the request.
    """
    fingerprint = start.digest
    if not fingerprint:
        info = await backend.model_info(model)
        fingerprint = info.base_model.fingerprint if info.base_model else ""
    return {"model": resolved_model(start, model), "system_fingerprint": fingerprint}


def usage(starts: Sequence[GenerationStart], ends: Iterable[GenerationEnd]) -> dict[str, Any]:
    """Tokens of one request: of each input once, and of all answers. Virtual tokens are not counted."""
    prompt_tokens = sum(start.input_tokens for start in starts)
    completion_tokens = sum(end.output_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(map(cached_tokens, starts))},
    }


def cached_tokens(start: GenerationStart) -> int:
    """Input tokens whose keys and values were cached, without the virtual tokens."""
    return max(0, start.cached_tokens - start.virtual_tokens)


def logprob(found: InputToken | TokenLogprob | TokenAlternative) -> float | None:
    """A log-probability. None for the first token of an input, which nothing precedes."""
    return None if found.logprob is None else max(found.logprob, LOWEST_LOGPROB)


def token(found: InputToken | TokenLogprob | TokenAlternative) -> dict[str, Any]:
    """A token with its text, its bytes and its log-probability."""
    return {"token": found.text, "logprob": logprob(found), "bytes": list(found.utf8)}


def token_with_top(found: InputToken | TokenLogprob) -> dict[str, Any]:
    """A token and its alternatives, as chat completions and responses have them."""
    return {**token(found), "top_logprobs": [token(other) for other in found.alternatives]}
