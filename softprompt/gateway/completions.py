"""`/v1/completions`: texts or token ids that a model continues. A prompt renders a text by its own template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.values.enums import TemplateFormat
from shared.values.generation import (
    Completion,
    FinishReason,
    GenerationEnd,
    GenerationStart,
    TokenIds,
)
from shared.values.template import Template
from softprompt.gateway import results
from softprompt.gateway.answers import AnswerStreams, Ask, all_answers
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model, settings_of
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import bad_value
from softprompt.gateway.fields import GenerationFields, else_saying, renaming, sampling_of, text_or_list
from softprompt.gateway.streaming import DONE, PING, EventStream, event
from softprompt.gateway.text_tokens import TextPart, Token, only_text_tokens, text_tokens

_CONTINUE = Template("{input}", TemplateFormat.TEXT)
"""The bare model continues the text itself, without its chat template."""


def _as_prompts(value: Any) -> list[Any]:
    value = text_or_list(value)
    is_one = isinstance(value, str) or (value and isinstance(value[0], int))
    return [value] if is_one else value


Prompts = Annotated[
    list[Annotated[str | list[int], else_saying("must be a string or a list of token ids")]],
    Field(min_length=1),
    BeforeValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
"""A text, several texts, token ids, or several lists of them."""


class CompletionRequest(GenerationFields):
    """What to continue."""

    prompt: Prompts
    echo: bool | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0)

    @field_validator("max_tokens")
    @classmethod
    def _zero_only_echoes(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value == 0 and (not info.data.get("echo") or info.data.get("stream")):
            raise ValueError("can be 0 only with echo: true and without stream")
        return value


_rename = renaming(
    {
        "input.text": "prompt",
        "input.token_ids.ids": "prompt",
        "input.token_ids": "prompt",
        "sampling.max_new_tokens": "max_tokens",
        "sampling.num_logprobs": "logprobs",
        "sampling.num_input_logprobs": "logprobs",
    }
)


@endpoint("completions.create", CompletionRequest, streams=True)
async def create_completion(request: Request, backend: Backend) -> Response:
    """Continues texts."""
    body = await read_model(request, CompletionRequest)
    request.state.rename, request.state.model = _rename, body.model
    count = (body.n or 1) * len(body.prompt)
    if count > (most := settings_of(request).max_choices):
        param = "prompt" if len(body.prompt) > most else "n"
        raise bad_value(param, f"asks for {count} answers; at most {most} are allowed in one request")
    reference = await backend.reference(body.model)
    only_echoes = body.max_tokens == 0
    sampling = sampling_of(
        body,
        max_new_tokens=1 if only_echoes else body.max_tokens,
        num_logprobs=0 if only_echoes else body.logprobs,
        num_input_logprobs=body.logprobs if body.echo else None,
        echo=body.echo,
        n=body.n,
    )
    asks = [
        Ask(
            prompt if isinstance(prompt, str) else TokenIds(tuple(prompt)),
            reference,
            sampling,
            template=_CONTINUE if not reference.prompt and isinstance(prompt, str) else None,
            routing_key=body.user or "",
        )
        for prompt in body.prompt
    ]
    head = {"id": results.new_id("cmpl"), "object": "text_completion", "created": results.now()}
    if body.stream:
        streams = AnswerStreams(backend.client, asks)
        starts = await streams.started()
        head |= await results.about(backend, starts[0], body.model)
        includes_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(head, streams, starts, body.n or 1, includes_usage)
        return EventStream(events, streams.cancel, _rename, body.model)
    answers = await all_answers(backend.client, asks)
    whole = [(answer.start, completion) for answer in answers for completion in answer.completions]
    if only_echoes:
        whole = [(start, _only_echo(completion)) for start, completion in whole]
    shows = body.logprobs is not None
    choices = [
        _choice(
            index,
            completion.text,
            _logprobs(text_tokens(completion, start.input_logprobs)) if shows else None,
            results.finish_reason(completion.end),
        )
        for index, (start, completion) in enumerate(whole)
    ]
    used = results.usage([answer.start for answer in answers], [completion.end for _, completion in whole])
    head |= await results.about(backend, answers[0].start, body.model)
    return JSONResponse({**head, "choices": choices, "usage": used})


def _only_echo(completion: Completion) -> Completion:
    """Without the one token that the engine writes at least."""
    output = completion.output
    is_shown = completion.end.finish_reason is FinishReason.LENGTH  # the token of an end is in no text
    text = output.text.removesuffix("".join(one.text for one in output.logprobs)) if is_shown else output.text
    end = replace(completion.end, output_tokens=0, finish_reason=FinishReason.LENGTH)
    return Completion(replace(output, text=text, logprobs=()), end)


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(part: TextPart) -> dict[str, Any]:
    """The older form of log-probabilities."""
    return {
        "tokens": [one.text for one in part.logprobs],
        "token_logprobs": [results.logprob(one) for one in part.logprobs],
        "top_logprobs": [_by_text(one) for one in part.logprobs],
        "text_offset": list(part.offsets),
    }


def _by_text(found: Token) -> dict[str, float | None] | None:
    if found.logprob is None:
        return None
    return {one.text: results.logprob(one) for one in (*found.alternatives, found)}


async def _events(
    head: dict[str, Any], streams: AnswerStreams, starts: Sequence[GenerationStart], count: int, includes_usage: bool
) -> AsyncGenerator[bytes]:
    """Chunks with text, one with the reason of each choice's end, then the usage. `count`: choices of each input."""
    empty_usage: dict[str, Any] = {"usage": None} if includes_usage else {}
    ends: list[GenerationEnd] = []
    async for part in only_text_tokens(streams.parts(), lambda index: starts[index // count].input_logprobs):
        if part is None:
            yield PING
            continue
        index, piece = part
        if isinstance(piece, GenerationEnd):
            ends.append(piece)
            choice = _choice(index, "", None, results.finish_reason(piece))
        else:
            choice = _choice(index, piece.text, _logprobs(piece) if piece.logprobs else None, None)
        yield event({**head, "choices": [choice], **empty_usage})
    if includes_usage:
        yield event({**head, "choices": [], "usage": results.usage(starts, ends)})
    yield DONE
