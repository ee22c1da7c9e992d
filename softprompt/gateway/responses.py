"""`/v1/responses`: text in, text out. Stateless: nothing is stored, so a conversation is sent whole each time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.values.generation import GenerationStart
from shared.values.guide import Guide
from shared.values.message import Message
from softprompt.gateway import results
from softprompt.gateway.answers import AnswerStreams, Ask, all_answers, conversation
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import Rename, bad_value
from softprompt.gateway.fields import Content, Fields, ModelName, OnlyFalse, message_of, renaming, sampling_of, text_as
from softprompt.gateway.guides import Name, check_members, guide_of
from softprompt.gateway.response_events import ResponseDraft, response_events
from softprompt.gateway.streaming import EventStream
from softprompt.gateway.text_tokens import text_tokens

LOGPROBS = "message.output_text.logprobs"


class InputMessage(Fields):
    """One turn. `id` and `status` are those of answers that come back as turns."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    phase: None = None


Input = Annotated[
    list[InputMessage],
    Field(min_length=1),
    text_as(lambda text: [{"role": "user", "content": text}], str | list[InputMessage]),
]


class TextFormat(Fields):
    """The form of the text; the schema's fields stand beside its type."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    def guide(self) -> Guide | None:
        """The guide; None for text. Raises ApiError."""
        needed, optional = {"name": self.name, "schema": self.schema_}, ("description", "strict")
        check_members(self.type, "text.format", needed, {name: getattr(self, name) for name in optional})
        return guide_of(self.type, self.schema_)


class TextOptions(Fields):
    """The form of the answer."""

    format: TextFormat | None = None


class ResponseStreamOptions(Fields):
    """Options of a stream. Its last event has the usage in any case."""

    include_obfuscation: OnlyFalse | None = None


class ResponseRequest(Fields):
    """What to answer."""

    model: ModelName
    input: Input
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    store: OnlyFalse | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token; None: no log-probabilities."""
        wanted = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    @property
    def messages(self) -> list[Message]:
        """The conversation, with the instructions as its system message."""
        turns = [message_of(message.role, message.content) for message in self.input]
        return [Message("system", self.instructions), *turns] if self.instructions else turns


def _rename_of(body: ResponseRequest) -> Rename:
    common = renaming(
        {
            "input.chat.messages": "input",
            "input.chat": "input",
            "input.text": "input",
            "sampling.max_new_tokens": "max_output_tokens",
            "sampling.num_logprobs": "top_logprobs",
            "sampling.guide.json_schema": "text.format.schema",
            "sampling.guide": "text.format",
        }
    )

    def rename(field: str) -> str:
        name = common(field)
        if not body.instructions or not name.startswith("input["):
            return name
        number, _, rest = name.removeprefix("input[").partition("]")
        return "instructions" if number == "0" else f"input[{int(number) - 1}]{rest}"

    return rename


@endpoint("responses.create", ResponseRequest, streams=True)
async def create_response(request: Request, backend: Backend) -> Response:
    """Answers a text or a conversation."""
    body = await read_model(request, ResponseRequest)
    request.state.rename, request.state.model = rename, _ = _rename_of(body), body.model
    for key, value in (body.metadata or {}).items():
        if len(key) > 64 or len(value) > 512:
            raise bad_value("metadata", "keys have at most 64 characters, values at most 512")
    if len(body.metadata or {}) > 16:
        raise bad_value("metadata", "has more than 16 entries")
    format = body.text.format if body.text else None
    guide = format.guide() if format else None
    model = await backend.reference(body.model)
    ask = Ask(
        conversation(body.messages, model),
        model,
        sampling_of(body, max_new_tokens=body.max_output_tokens, num_logprobs=body.num_logprobs, guide=guide),
        routing_key=body.user or "",
        truncate=body.truncation == "auto",
    )
    if not body.stream:
        (answer,) = await all_answers(backend.client, [ask])
        draft = _draft(body, answer.start)
        draft.add(text_tokens(answer.completions[0]))
        return JSONResponse(draft.ended(answer.end))
    streams = AnswerStreams(backend.client, [ask])
    (start,) = await streams.started()
    draft = _draft(body, start)
    return EventStream(response_events(draft, streams, rename, body.model), streams.cancel, rename, body.model)


def _draft(body: ResponseRequest, start: GenerationStart) -> ResponseDraft:
    """The response before its text, with what the request asked for."""
    format = body.text.format if body.text else None
    asked = {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "user": body.user,
        "text": {"format": format.model_dump(by_alias=True, exclude_none=True) if format else {"type": "text"}},
    }
    return ResponseDraft(asked, results.resolved_model(start, body.model), start)
