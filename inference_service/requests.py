"""Requests, checked against the service's limits. All violations of a request are collected before it is refused.

Knows the protocol and the domain, and nothing of engines, stores or servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prompttuning.v1 import common_pb2, generation_pb2

from inference_service.inputs import Content, InputRequest
from inference_service.limits import (
    MAX_MESSAGES,
    MAX_MODEL_CHARS,
    MAX_ROUTING_KEY_CHARS,
    MAX_SHOWN_VIOLATIONS,
    RequestLimits,
)
from shared.caller import MAX_PRIORITY
from shared.errors import InvalidInput
from shared.location import Location
from shared.names import PromptReference
from shared.values.enums import TemplateFormat
from shared.values.generation import GenerationInput, TokenIds
from shared.values.message import ROLES, Message
from shared.values.sampling import Sampling
from shared.values.template import Template
from shared.violations import Violations
from shared.wire.generation import read_sampling
from shared.wire.mirror import read


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
        violations, candidates = Violations(), tuple(request.candidates)
        input = violations.result_of(lambda: self.input(request.input))
        with violations.collected():
            self._check_candidates(candidates)
        if not (request.input.prompt or candidates):
            violations.add("candidates", "must have at least one: the bare model has no label set")
        return violations.complete(input), candidates

    def input(self, message: generation_pb2.GenerationInput) -> InputRequest:
        """What to start from: a text, a conversation or token ids, with a prompt or a template."""
        violations, reference, template = Violations(), None, None
        given = read(GenerationInput, message, "input", violations)
        with violations.collected():
            self._check_content(given.content)
        if given.prompt:
            reference = violations.result_of(lambda: PromptReference.parse(given.prompt, "input.prompt"))
        if given.template is not None:
            template = _with_format(given.template)
            with violations.collected():
                template.check("input.template")
            if given.prompt:
                text = "is for the bare model only: a prompt brings the template that it was trained with"
                violations.add("input.template", text)
        if len(given.routing_key) > MAX_ROUTING_KEY_CHARS:
            violations.add("input.routing_key", f"must have at most {MAX_ROUTING_KEY_CHARS} characters")
        if len(given.base_model) > MAX_MODEL_CHARS:
            violations.add("input.base_model", f"must have at most {MAX_MODEL_CHARS} characters")
        violations.raise_if_any()
        return InputRequest(given.content, reference, template, given.routing_key, given.truncate, given.base_model)

    def sampling(self, message: common_pb2.SamplingParams) -> Sampling:
        """The checked parameters of a request."""
        return read_sampling(message).check("sampling", self._limits.sampling, self._vocab_size)

    def _check_candidates(self, candidates: Sequence[str]) -> None:
        limit, found = self._limits.sampling.max_candidates, Violations(MAX_SHOWN_VIOLATIONS)
        if len(candidates) > limit:
            raise InvalidInput.of("candidates", f"at most {limit} are allowed, {len(candidates)} were given")
        first: dict[str, int] = {}
        for index, text in enumerate(candidates):
            place = Location(("candidates", index))
            if not text:
                found.add(place, "must not be empty")
            elif first.setdefault(text, index) != index:
                found.add(place, f"repeats candidates[{first[text]}]: their shares would be split")
        with found.collected():
            self._check_bytes(candidates, "candidates")
        found.raise_if_any()

    def _check_content(self, content: Content) -> None:
        if isinstance(content, TokenIds):
            if (count := len(content.ids)) > self._limits.max_token_ids:
                text = f"has {count} ids; at most {self._limits.max_token_ids} are allowed"
                raise InvalidInput.of("input.token_ids.ids", text)
        elif isinstance(content, str):
            self._check_bytes([content], "input.text")
        else:
            self._check_chat(content)

    def _check_chat(self, turns: Sequence[Message]) -> None:
        messages, found = "input.chat.messages", Violations(MAX_SHOWN_VIOLATIONS)
        if not 1 <= len(turns) <= MAX_MESSAGES:
            raise InvalidInput.of(messages, f"must be 1 to {MAX_MESSAGES} messages, are {len(turns)}")
        for index, turn in enumerate(turns):
            if turn.role not in ROLES:
                text = f"must be system, user or assistant, is {turn.role[:40]!r}"
                found.add(f"{messages}[{index}].role", text)
        with found.collected():
            self._check_bytes([turn.content for turn in turns], messages)
        if turns[-1].role == "assistant":
            found.add(messages, "must not end with the assistant: it is the assistant's turn that is generated")
        found.raise_if_any()

    def _check_bytes(self, texts: Sequence[str], field: str) -> None:
        size, most = sum(len(text.encode()) for text in texts), self._limits.max_input_bytes
        if size > most:
            has = f"has {size} bytes" if field == "input.text" else f"have {size} bytes together"
            raise InvalidInput.of(field, f"{has}; at most {most} are allowed")


def _with_format(template: Template) -> Template:
    """A system message alone implies the CHAT format."""
    implied = template.format is None and bool(template.system)
    return replace(template, format=TemplateFormat.CHAT) if implied else template
