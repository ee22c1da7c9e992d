"""Protocol messages to the service's own types and back. All violations of a request are collected before it is
refused.

Knows the protocol and the domain, and nothing of engines, stores or servers. Answers are converted in
`inference_service.answers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtoMessage
from prompttuning.v1 import common_pb2, generation_pb2
from pydantic import ValidationError

from inference_service.engine.core.request import SamplingParams
from inference_service.inputs import ChatInput, Content, InputRequest, TextInput, TokenInput
from inference_service.limits import (
    MAX_MESSAGES,
    MAX_PRIORITY,
    MAX_ROUTING_KEY_CHARS,
    MAX_SHOWN_VIOLATIONS,
    RequestLimits,
)
from inference_service.sampling import SamplingRequest
from shared.errors import FieldViolation, InvalidInput
from shared.names import PromptReference
from shared.rpc.templates import template_options
from shared.text.template import INPUT_FIELD, MAX_TEMPLATE_CHARS, Message, Template, TemplateFormat

Parsed = TypeVar("Parsed")
_ROLES = ("system", "user", "assistant")
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("top_k", "seed", "max_new_tokens", "min_new_tokens", "num_logprobs")
_MAX_OFFSET_PENALTY = 2.0
_FORMATS = {
    common_pb2.Template.FORMAT_UNSPECIFIED: None,
    common_pb2.Template.FORMAT_TEXT: TemplateFormat.TEXT,
    common_pb2.Template.FORMAT_CHAT: TemplateFormat.CHAT,
}


class RequestReader:
    """Reads requests within `limits` and a vocabulary. Every method raises InvalidInput with all that is wrong."""

    def __init__(self, limits: RequestLimits, vocab_size: int) -> None:
        self._limits, self._vocab_size = limits, vocab_size

    def generation(
        self, request: generation_pb2.GenerateRequest | generation_pb2.GenerateStreamRequest
    ) -> tuple[InputRequest, SamplingRequest]:
        found: list[FieldViolation] = []
        input = self._collect(found, lambda: self.input(request.input))
        sampling = self._collect(found, lambda: self.sampling(request.sampling))
        if abs(request.priority) > MAX_PRIORITY:
            found.append(
                FieldViolation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, is {request.priority}")
            )
        if found or input is None or sampling is None:
            raise InvalidInput(found)
        return input, sampling

    def score(self, request: generation_pb2.ScoreRequest) -> tuple[InputRequest, tuple[str, ...]]:
        found: list[FieldViolation] = []
        input = self._collect(found, lambda: self.input(request.input))
        candidates = self._collect(found, lambda: self.candidates(request.candidates))
        if input is not None and input.reference is None and not request.candidates:
            found.append(FieldViolation("candidates", "must have at least one: the bare model has no label set"))
        if found or input is None or candidates is None:
            raise InvalidInput(found)
        return input, candidates

    def input(self, message: generation_pb2.GenerationInput) -> InputRequest:
        found: list[FieldViolation] = []
        content = self._collect(found, lambda: self._content(message))
        reference = (
            self._collect(found, lambda: PromptReference.parse(message.prompt, "input.prompt"))
            if message.prompt
            else None
        )
        template = self._collect(found, lambda: _template(message.template)) if message.HasField("template") else None
        if message.prompt and message.HasField("template"):
            found.append(
                FieldViolation(
                    "input.template",
                    "is for the bare model only: a prompt brings the template that it was trained with",
                )
            )
        if len(message.routing_key) > MAX_ROUTING_KEY_CHARS:
            found.append(FieldViolation("input.routing_key", f"must have at most {MAX_ROUTING_KEY_CHARS} characters"))
        if found or content is None:
            raise InvalidInput(found)
        return InputRequest(content, reference, template, message.routing_key, message.truncate)

    def sampling(self, message: common_pb2.SamplingParams) -> SamplingRequest:
        floats = {name: _short_float(value) for name, value in _present(message, _FLOATS).items()}
        integers = _present(message, _INTEGERS)
        found = self._repeated(message)
        bound = integers.get("max_new_tokens", self._limits.sampling.max_new_tokens)
        given: dict[str, Any] = {**floats, **integers}
        checked = {**given, "max_new_tokens": bound}
        self._collect(found, lambda: SamplingParams(**checked).check("sampling", self._limits.sampling))
        for name in ("presence_penalty", "frequency_penalty"):
            if _MAX_OFFSET_PENALTY < abs(floats.get(name, 0.0)) <= self._limits.sampling.max_penalty:
                found.append(FieldViolation(f"sampling.{name}", f"must be from -2 to 2, is {floats[name]:g}"))
        if found:
            raise InvalidInput(found)
        return replace(
            SamplingRequest(**given),
            stop_sequences=tuple(message.stop_sequences),
            stop_token_ids=tuple(message.stop_token_ids),
            ignore_eos=message.ignore_eos,
        )

    def candidates(self, texts: object) -> tuple[str, ...]:
        candidates: tuple[str, ...] = tuple(texts)  # type: ignore[arg-type]  # a repeated field
        limit = self._limits.sampling.max_candidates
        if len(candidates) > limit:
            raise InvalidInput.of("candidates", f"at most {limit} are allowed, {len(candidates)} were given")
        found = [
            FieldViolation(f"candidates[{index}]", "must not be empty")
            for index, text in enumerate(candidates)
            if not text
        ]
        first: dict[str, int] = {}
        for index, text in enumerate(candidates):
            if text and first.setdefault(text, index) != index:
                found.append(
                    FieldViolation(
                        f"candidates[{index}]", f"repeats candidates[{first[text]}]: their shares would be split"
                    )
                )
        size = sum(len(text.encode()) for text in candidates)
        if size > self._limits.max_input_bytes:
            found.append(
                FieldViolation(
                    "candidates", f"have {size} bytes together; at most {self._limits.max_input_bytes} are allowed"
                )
            )
        if found:
            raise InvalidInput(found[:MAX_SHOWN_VIOLATIONS])
        return candidates

    def _content(self, message: generation_pb2.GenerationInput) -> Content:
        kind = message.WhichOneof("content")
        if kind == "text":
            return TextInput(self._within_bytes(message.text, "input.text"))
        if kind == "chat":
            return self._chat(message.chat)
        if kind == "token_ids":
            count = len(message.token_ids.ids)
            if count > self._limits.max_token_ids:
                raise InvalidInput.of(
                    "input.token_ids.ids", f"has {count} ids; at most {self._limits.max_token_ids} are allowed"
                )
            return TokenInput(tuple(message.token_ids.ids))
        raise InvalidInput.of("input", "must have text, chat or token_ids")

    def _chat(self, message: generation_pb2.ChatInput) -> ChatInput:
        turns = message.messages
        if not 1 <= len(turns) <= MAX_MESSAGES:
            raise InvalidInput.of("input.chat.messages", f"must be 1 to {MAX_MESSAGES} messages, are {len(turns)}")
        found = [
            FieldViolation(
                f"input.chat.messages[{index}].role", f"must be system, user or assistant, is {turn.role[:40]!r}"
            )
            for index, turn in enumerate(turns)
            if turn.role not in _ROLES
        ]
        size = sum(len(turn.content.encode()) for turn in turns)
        if size > self._limits.max_input_bytes:
            found.append(
                FieldViolation(
                    "input.chat.messages",
                    f"have {size} bytes together; at most {self._limits.max_input_bytes} are allowed",
                )
            )
        if turns[-1].role == "assistant":
            found.append(
                FieldViolation(
                    "input.chat.messages",
                    "must not end with the assistant: it is the assistant's turn that is generated",
                )
            )
        if found:
            raise InvalidInput(found[:MAX_SHOWN_VIOLATIONS])
        return ChatInput(tuple(Message(role=turn.role, content=turn.content) for turn in turns))

    def _within_bytes(self, text: str, field: str) -> str:
        size = len(text.encode())
        if size > self._limits.max_input_bytes:
            raise InvalidInput.of(field, f"has {size} bytes; at most {self._limits.max_input_bytes} are allowed")
        return text

    def _repeated(self, message: common_pb2.SamplingParams) -> list[FieldViolation]:
        limits, found = self._limits.sampling, list[FieldViolation]()
        if len(message.stop_sequences) > limits.max_stop_sequences:
            given = len(message.stop_sequences)
            found.append(
                FieldViolation(
                    "sampling.stop_sequences", f"at most {limits.max_stop_sequences} are allowed, {given} were given"
                )
            )
        for index, stop in enumerate(message.stop_sequences[: limits.max_stop_sequences]):
            if not 1 <= len(stop) <= limits.max_stop_sequence_chars:
                text = f"must have 1 to {limits.max_stop_sequence_chars} characters, has {len(stop)}"
                found.append(FieldViolation(f"sampling.stop_sequences[{index}]", text))
        if len(message.stop_token_ids) > limits.max_stop_token_ids:
            given = len(message.stop_token_ids)
            found.append(
                FieldViolation(
                    "sampling.stop_token_ids", f"at most {limits.max_stop_token_ids} are allowed, {given} were given"
                )
            )
        for index, token in enumerate(message.stop_token_ids[: limits.max_stop_token_ids]):
            if not 0 <= token < self._vocab_size:
                text = f"must be a token id from 0 to {self._vocab_size - 1}, is {token}"
                found.append(FieldViolation(f"sampling.stop_token_ids[{index}]", text))
        return found

    @staticmethod
    def _collect(found: list[FieldViolation], parse: Callable[[], Parsed]) -> Parsed | None:
        try:
            return parse()
        except InvalidInput as error:
            found.extend(error.violations)
            return None


def _template(message: common_pb2.Template) -> Template:
    if message.format not in _FORMATS:
        raise InvalidInput.of(
            "input.template.format", f"{message.format} is not a format of this version of the protocol"
        )
    found = [
        FieldViolation(
            f"input.template.{name}",
            f"must have at most {MAX_TEMPLATE_CHARS} characters, has {len(getattr(message, name))}",
        )
        for name in ("text", "system")
        if len(getattr(message, name)) > MAX_TEMPLATE_CHARS
    ]
    if found:
        raise InvalidInput(found)
    values = {"text": message.text or INPUT_FIELD, **template_options(message)}
    format = _FORMATS[message.format] or (TemplateFormat.CHAT if message.system else None)
    try:
        template = Template(**values) if format is None else Template(format=format, **values)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        raise InvalidInput.of(
            f"input.template.{detail['loc'][0]}", detail["msg"].replace("String", "", 1).strip()
        ) from error
    return template.check("input.template")


def _present(message: ProtoMessage, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields that the caller set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _short_float(value: float) -> float:
    """What a caller meant by a 32-bit field: 0.7, not 0.699999988079071."""
    return float(f"{value:.7g}")
