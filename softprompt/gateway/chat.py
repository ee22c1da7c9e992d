"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.values.generation import Generation, GenerationEnd, GenerationStart
from softprompt.gateway import results
from softprompt.gateway.answers import AnswerStreams, Ask, all_answers, conversation
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model, settings_of
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import Rename, bad_value
from softprompt.gateway.fields import Content, Fields, GenerationFields, OnlyFalse, message_of, renaming, sampling_of
from softprompt.gateway.guides import Call, ResponseFormat, Tool, ToolChoice, call_of
from softprompt.gateway.streaming import DONE, PING, EventStream, event
from softprompt.gateway.text_tokens import Token, only_text_tokens, text_tokens


class ChatMessage(Fields):
    """One turn. The fields that are always empty are those of answers that come back as turns."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)
    annotations: list[Any] | None = Field(default=None, max_length=0)


class ChatRequest(GenerationFields):
    """A conversation to continue."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: OnlyFalse | None = None
    store: OnlyFalse | None = None

    @field_validator("max_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_completion_tokens") not in (None, value):
            raise ValueError("contradicts max_completion_tokens")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _rename(request: ChatRequest, call: Call | None) -> Rename:
    limit = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    return renaming(
        {
            "input.chat.messages": "messages",
            "input.chat": "messages",
            "input.text": "messages",
            "sampling.max_new_tokens": limit,
            "sampling.num_logprobs": "top_logprobs",
            "sampling.guide.json_schema": call.param if call else "response_format.json_schema.schema",
            "sampling.guide": call.param if call else "response_format",
        }
    )


@endpoint("chat.completions.create", ChatRequest, streams=True)
async def create_chat_completion(request: Request, backend: Backend) -> Response:
    """Continues a conversation."""
    body = await read_model(request, ChatRequest)
    if (body.n or 1) > (most := settings_of(request).max_choices):
        raise bad_value("n", f"must be at most {most}")
    call = call_of(body.tools, body.tool_choice)
    request.state.rename, request.state.model = rename, _ = _rename(body, call), body.model
    guide = body.response_format.guide() if body.response_format else None
    if call is not None and guide is not None:
        raise bad_value("response_format", "contradicts tool_choice: the answer is the call of a function")
    model = await backend.reference(body.model)
    ask = Ask(
        conversation([message_of(message.role, message.content) for message in body.messages], model),
        model,
        sampling_of(
            body,
            max_new_tokens=body.max_completion_tokens or body.max_tokens,
            num_logprobs=body.num_logprobs,
            guide=call.guide if call else guide,
            n=body.n,
        ),
        routing_key=body.user or "",
    )
    head = {"id": results.new_id("chatcmpl"), "created": results.now()}
    if not body.stream:
        (answer,) = await all_answers(backend.client, [ask])
        return JSONResponse(await _whole(backend, head, answer, call, body.model, body.num_logprobs is not None))
    streams = AnswerStreams(backend.client, [ask])
    (start,) = await streams.started()
    head |= await results.about(backend, start, body.model)
    includes_usage = bool(body.stream_options and body.stream_options.include_usage)
    events = _events(head, streams, start, ask.num_completions, call, includes_usage)
    return EventStream(events, streams.cancel, rename, body.model)


async def _whole(
    backend: Backend, head: dict[str, Any], answer: Generation, call: Call | None, model: str, shows_logprobs: bool
) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": _message(completion.text, call),
            "logprobs": _logprobs(text_tokens(completion).logprobs) if shows_logprobs else None,
            "finish_reason": _reason(completion.end, call),
        }
        for index, completion in enumerate(answer.completions)
    ]
    return {
        **head,
        "object": "chat.completion",
        **await results.about(backend, answer.start, model),
        "choices": choices,
        "usage": results.usage([answer.start], [completion.end for completion in answer.completions]),
    }


def _message(text: str, call: Call | None) -> dict[str, Any]:
    if call is None:
        return {"role": "assistant", "content": text, "refusal": None}
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call.message(text)]}


def _reason(end: GenerationEnd, call: Call | None) -> str:
    reason = results.finish_reason(end)
    return "tool_calls" if call is not None and reason == "stop" else reason


def _logprobs(found: Sequence[Token]) -> dict[str, Any]:
    return {"content": [results.token_with_top(one) for one in found], "refusal": None}


async def _events(
    head: dict[str, Any],
    streams: AnswerStreams,
    start: GenerationStart,
    num_choices: int,
    call: Call | None,
    includes_usage: bool,
) -> AsyncGenerator[bytes]:
    """A chunk with the role for each choice, chunks with text, a chunk with the reason of the end; then the usage."""

    def chunk(index: int, delta: dict[str, Any], tokens: Sequence[Token] = (), reason: str | None = None) -> bytes:
        logprobs = _logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice], **empty_usage})

    empty_usage: dict[str, Any] = {"usage": None} if includes_usage else {}
    ends: list[GenerationEnd] = []
    held = [""] * num_choices
    """Text of calls whose function is known at their end only."""
    held_logprobs: list[list[Token]] = [[] for _ in held]
    for index in range(num_choices):
        yield chunk(index, {"role": "assistant", "content": None if call else "", "refusal": None})
        if call is not None and call.name:
            yield chunk(index, {"tool_calls": [{"index": 0, **call.message("")}]})
    async for part in only_text_tokens(streams.parts()):
        if part is None:
            yield PING
            continue
        index, piece = part
        if isinstance(piece, GenerationEnd):
            ends.append(piece)
            if call is not None and not call.name:
                message = {"tool_calls": [{"index": 0, **call.message(held[index])}]}
                yield chunk(index, message, held_logprobs[index])
            yield chunk(index, {}, reason=_reason(piece, call))
        elif call is not None and not call.name:
            held[index] += piece.text
            held_logprobs[index] += piece.logprobs
        elif piece.text or piece.logprobs:
            arguments = {"tool_calls": [{"index": 0, "function": {"arguments": piece.text}}]}
            yield chunk(index, arguments if call else {"content": piece.text}, piece.logprobs)
    if includes_usage:
        last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": results.usage([start], ends)}
        yield event(last)
    yield DONE
