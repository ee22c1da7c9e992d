"""Protocol messages to the service's own types and back. All violations of a request are collected before it is
refused.

Knows the protocol and the domain, and nothing of engines, stores or servers. Answers are converted in
`inference_service.answers`.
"""

from __future__ import annotations

from dataclasses import replace

from prompttuning.v1 import common_pb2, generation_pb2

from inference_service.inputs import ChatInput, Content, InputRequest, TextInput, TokenInput
from inference_service.limits import (
    MAX_MESSAGES,
    MAX_PRIORITY,
    MAX_ROUTING_KEY_CHARS,
    MAX_SHOWN_VIOLATIONS,
    RequestLimits,
)
from shared.errors import FieldViolation, InvalidInput
from shared.names import PromptReference
from shared.text.template import Message, Template, TemplateFormat
from shared.values.sampling import Sampling
from shared.violations import Violations
from shared.wire.sampling import read_sampling
from shared.wire.template import read_checked_template

_ROLES = ("system", "user", "assistant")


class RequestReader:
    """Reads requests within `limits` and a vocabulary. Every method raises InvalidInput with all that is wrong."""

    def __init__(self, limits: RequestLimits, vocab_size: int) -> None:
        self._limits, self._vocab_size = limits, vocab_size

    def generation(
        self, request: generation_pb2.GenerateRequest | generation_pb2.GenerateStreamRequest
    ) -> tuple[InputRequest, Sampling]:
        """The input and the sampling of a generation."""
        violations = Violations()
        if abs(request.priority) > MAX_PRIORITY:
            violations.add("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, is {request.priority}")
        input = violations.result_of(lambda: self.input(request.input))
        sampling = violations.result_of(lambda: self.sampling(request.sampling))
        return violations.complete(input), violations.complete(sampling)

    def score(self, request: generation_pb2.ScoreRequest) -> tuple[InputRequest, tuple[str, ...]]:
        """The input and the candidates of a scoring; no candidates are the prompt's label set."""
        violations = Violations()
        input = violations.result_of(lambda: self.input(request.input))
        candidates = violations.result_of(lambda: self.candidates(request.candidates))
        if not (request.input.prompt or request.candidates):
            violations.add("candidates", "must have at least one: the bare model has no label set")
        return violations.complete(input), violations.complete(candidates)

    def input(self, message: generation_pb2.GenerationInput) -> InputRequest:
        """What to start from: a text, a conversation or token ids, with a prompt or a template."""
        violations, reference, template = Violations(), None, None
        content: Content | None = violations.result_of(lambda: self._content(message))
        if message.prompt:
            reference = violations.result_of(lambda: PromptReference.parse(message.prompt, "input.prompt"))
        if message.HasField("template"):
            template = violations.result_of(lambda: _template(message.template))
            if message.prompt:
                text = "is for the bare model only: a prompt brings the template that it was trained with"
                violations.add("input.template", text)
        if len(message.routing_key) > MAX_ROUTING_KEY_CHARS:
            violations.add("input.routing_key", f"must have at most {MAX_ROUTING_KEY_CHARS} characters")
        violations.raise_if_any()
        assert content is not None
        return InputRequest(content, reference, template, message.routing_key, message.truncate)

    def sampling(self, message: common_pb2.SamplingParams) -> Sampling:
        """The checked parameters of a request."""
        return read_sampling(message).check("sampling", self._limits.sampling, self._vocab_size)

    def candidates(self, texts: object) -> tuple[str, ...]:
        """The checked candidates of a score. Raises InvalidInput for too many, empty or repeated ones."""
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


def _template(message: common_pb2.Template) -> Template:
    violations = Violations()
    template = violations.complete(read_checked_template(message, "input.template", violations))
    if template.system and template.format is None:
        template = replace(template, format=TemplateFormat.CHAT)
    return template.check("input.template")
