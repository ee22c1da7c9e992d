"""How an input becomes token ids: the one function that training, evaluation, golden records and serving share.

The model sees `[virtual tokens][BOS, where the tokenizer adds one][rendered template][target]`. Positions count from 0 at the
first virtual token. Where two places rendered or tokenized on their own, prompts would silently rot; so nobody else does.

TEXT  the template text with `{input}` replaced. If it does not end in white space, targets begin with a space (a byte-pair
      token carries the space before it), and serving drops that space from the answer.
CHAT  the model's own chat template: an optional system message, one user message (the template text with `{input}`
      replaced) or the caller's messages, and the header of the assistant's turn. Targets follow directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import InvalidInput

INPUT_FIELD = "{input}"
MAX_TEMPLATE_CHARS = 32_768


class TemplateFormat(StrEnum):
    TEXT = "TEXT"
    CHAT = "CHAT"


class Message(BaseModel):
    """One turn of a conversation: `role` is system, user or assistant."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str
    content: str


class Template(BaseModel):
    """Immutable; stored in a version's manifest, so that a prompt is always served the way it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str = Field(default=INPUT_FIELD, max_length=MAX_TEMPLATE_CHARS)
    format: TemplateFormat = TemplateFormat.TEXT
    system: str = Field(default="", max_length=MAX_TEMPLATE_CHARS)

    def check(self, field: str = "template") -> Template:
        """Itself, or InvalidInput naming `field`."""
        if self.text.count(INPUT_FIELD) != 1:
            raise InvalidInput.of(f"{field}.text", f"must contain {INPUT_FIELD} exactly once, found {self.text.count(INPUT_FIELD)}")
        if self.system and self.format is not TemplateFormat.CHAT:
            raise InvalidInput.of(f"{field}.system", "needs the CHAT format")
        return self

    def render(self, text: str) -> str:
        before, _, after = self.text.partition(INPUT_FIELD)
        return before + text + after

    @property
    def target_prefix(self) -> str:
        """What stands between the rendered input and a target: one space, or nothing."""
        if self.format is TemplateFormat.CHAT or self.text[-1:].isspace():
            return ""
        return " "


class InputEncoder:
    """Encodes inputs and targets for one tokenizer and one template. Thread-safe as far as the tokenizer is.

    `tokenizer` is a transformers tokenizer. Lengths are in tokens, without the virtual ones.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        if template.format is TemplateFormat.CHAT and not getattr(tokenizer, "chat_template", None):
            raise InvalidInput.of("template.format", "CHAT needs a base model whose tokenizer has a chat template; use TEXT")
        self.tokenizer = tokenizer
        self.template = template

    def encode_input(self, text: str) -> list[int]:
        """The ids that stand after the virtual tokens and before the first generated token."""
        if self.template.format is TemplateFormat.TEXT:
            return self._leading_ids + self._tokenize(self.template.render(text))
        return self.encode_messages([Message(role="user", content=self.template.render(text))])

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """A conversation that the assistant is to continue. The template's system message is put first if none is given."""
        if self.template.format is not TemplateFormat.CHAT:
            raise InvalidInput.of("messages", "this prompt has a TEXT template: send input, not messages")
        turns = [message.model_dump() for message in messages]
        if self.template.system and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.template.system})
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self._tokenize(rendered)

    def encode_target(self, text: str, *, end: bool = True) -> list[int]:
        """The ids of a target or candidate continuation; `end` adds the end-of-sequence token that stops generation."""
        ids = self._tokenize(self.template.target_prefix + text)
        return [*ids, self.tokenizer.eos_token_id] if end and self.tokenizer.eos_token_id is not None else ids

    def encode_candidates(self, texts: Sequence[str], field: str) -> tuple[tuple[int, ...], ...]:
        """The ids of targets that are weighed against each other. Where one begins another, the end of sequence tells them apart.

        Raises InvalidInput naming `field` if a text has no tokens or two have the same.
        """
        plain = [tuple(self.encode_target(text, end=False)) for text in texts]
        for index, ids in enumerate(plain):
            if not ids:
                raise InvalidInput.of(f"{field}[{index}]", f"{texts[index][:80]!r} has no tokens in this model's vocabulary")
        if len(set(plain)) < len(plain):
            raise InvalidInput.of(field, "two of them have the same tokens in this model's vocabulary")
        ordered = sorted(plain)  # a beginning sorts right before what it begins
        nested = any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(ordered))
        return tuple(tuple(self.encode_target(text)) for text in texts) if nested else tuple(plain)

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _leading_ids(self) -> list[int]:
        """BOS if this tokenizer puts one before a text; read off its own behaviour, since configurations differ."""
        bos = self.tokenizer.bos_token_id
        probe = list(self.tokenizer("a")["input_ids"])
        return [bos] if bos is not None and probe[:1] == [bos] else []
