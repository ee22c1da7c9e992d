"""Turns an input into token ids. Training, evaluation, golden records and serving share this encoder.

The model sees `[virtual tokens][BOS, or what else the tokenizer begins a text with][rendered template][target]`.
Positions count from 0 at the first virtual token. A second implementation of rendering or tokenization would silently
degrade prompts.

TEXT  the template text with `{input}` replaced. If it does not end in white space, targets begin with a space (a
      byte-pair token includes the space before it), and serving drops that space from the answer.
CHAT  the model's chat template: an optional system message, one user message (the template text with `{input}`
      replaced) or the caller's messages, and the header of the assistant's turn. Targets follow the way the chat
      template writes answers.

Only templates produce control tokens; in an input, a message or a target, their strings are ordinary text
(`plain_text`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from shared.errors import InvalidInput
from shared.text.plain_text import PlainText
from shared.text.rendering import render_chat
from shared.values.enums import TemplateFormat as TemplateFormat
from shared.values.message import ROLES
from shared.values.message import Message as Message
from shared.values.template import INPUT_FIELD as INPUT_FIELD
from shared.values.template import Template as Template

_Turns = list[dict[str, str]]
_MAX_RENDERINGS = 8
_OPENED = re.compile(r"<([\w:-]+)>\s*\Z")
_ANSWER = "\U0010fffe"
"""Placeholder for the answer, to find out how a chat template writes one."""


class InputEncoder:
    """Encodes inputs and targets with one transformers tokenizer and one template. As thread-safe as the tokenizer.

    Raises InvalidInput if the tokenizer can't be used with the template.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        if template.format is TemplateFormat.CHAT and not has_chat_template(tokenizer):
            raise InvalidInput.of(
                "template.format",
                "CHAT needs a base model with a chat template that writes the text of messages; use TEXT",
            )
        self.tokenizer = tokenizer
        self.template = template
        self._text = PlainText(tokenizer, template.text)
        if template.end and self.end_token_id is None:
            raise InvalidInput.of("template.end", f"{template.end[:40]!r} is not a token of this base model")

    def encode_input(self, text: str) -> list[int]:
        """The ids of an input, which follow the virtual tokens. Raises InvalidInput if the chat template rejects it."""
        if self.template.format is not TemplateFormat.CHAT:
            ids, leading = self._text.ids(self.template.render(self._text.quote(text))), self._leading_ids
            is_written = self.template.rendering > 3 and ids[: len(leading)] == leading  # by the template
            return ids if is_written else leading + ids
        return self._encode_turns(lambda plain: [_turn("user", self.template.render(plain(text)))])

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation for the assistant to continue. With a TEXT template, `conversation_text` of it.

        The template's system message comes first. Raises InvalidInput naming `messages[i]` for messages that the chat
        template rejects or leaves out, and for a second system message without `system_override`.
        """
        for index, message in enumerate(messages):
            if message.role not in ROLES:
                raise InvalidInput.of(
                    f"messages[{index}].role", f"must be one of {', '.join(ROLES)}, not {message.role[:40]!r}"
                )
        if self.template.format is not TemplateFormat.CHAT:
            return self.encode_input(conversation_text(messages))
        brought = next((index for index, message in enumerate(messages) if message.role == "system"), None)
        if brought is not None and self.template.system and not self.template.system_override:
            text = "the prompt has a system message of its own, which can't be replaced; leave yours out"
            raise InvalidInput.of(f"messages[{brought}]", text)
        roles = tuple(message.role for message in messages)
        if (absent := _left_out(roles, self.tokenizer, self.template)) is not None:
            role = roles[absent]
            text = f"the model's chat template does not write this {role} message in this conversation; leave it out"
            if role == "system" and _left_out(("system", "user"), self.tokenizer, self.template) == 0:
                text = "the model's chat template leaves system messages out: write it into the user's message"
            raise InvalidInput.of(f"messages[{absent}]", text)
        return self._encode_turns(
            lambda plain: [_turn(message.role, plain(message.content)) for message in messages],
            with_system=brought is None,
        )

    def encode_target(self, text: str, *, end: bool = True) -> list[int]:
        """The ids of a target or candidate continuation; `end` adds the token that stops generation."""
        ids = self._text.ids(self.target_prefix + self._text.quote(text), continues=self.template.rendering > 1)
        return [*ids, self.end_token_id] if end and self.end_token_id is not None else ids

    def encode_candidates(
        self, texts: Sequence[str], field: str, *, for_training: bool = False
    ) -> tuple[tuple[int, ...], ...]:
        """The ids of alternative targets. If one is the beginning of another, all get the end of sequence.

        Raises InvalidInput naming the item of `field` if a text has no tokens or those of another one; for training
        also if it begins with another one and nothing ends a target.
        """
        plain = [tuple(self.encode_target(text, end=False)) for text in texts]
        for index, ids in enumerate(plain):
            if not ids:
                raise InvalidInput.of(
                    f"{field}[{index}]", f"{texts[index][:80]!r} has no tokens in this model's vocabulary"
                )
        ordered = sorted(range(len(plain)), key=plain.__getitem__)
        is_nested = False
        for short, long in pairwise(ordered):  # a beginning comes right before what it begins
            if plain[short] == plain[long]:
                reason = f"{texts[long][:80]!r} has the same tokens as {texts[short][:80]!r} in this model's vocabulary"
                raise InvalidInput.of(f"{field}[{long}]", reason)
            begins = plain[long][: len(plain[short])] == plain[short]
            if begins and for_training and self.end_token_id is None:
                reason = f"{texts[long][:80]!r} begins with {texts[short][:80]!r}, which would always score higher"
                advice = "this base model has no end-of-sequence token to tell them apart; reword one of them"
                raise InvalidInput.of(f"{field}[{long}]", f"{reason}: {advice}")
            is_nested = is_nested or begins
        return tuple(tuple(self.encode_target(text)) for text in texts) if is_nested else tuple(plain)

    def control_tokens(self, texts: Sequence[str]) -> dict[int, str]:
        """The texts that each spell one control token, by its id. Generated text never contains them."""
        ids = {self._text.control_id(text.strip()): text for text in texts}
        return {id: text for id, text in ids.items() if id is not None}

    def check_stops(self, texts: Sequence[str], field: str) -> None:
        """Raises InvalidInput naming the item of `field` for a stop sequence of a control token and other text."""
        for index, text in enumerate(texts):
            if self._text.control_id(text.strip()) is None and (token := self._text.first_hidden_token(text)):
                reason = f"a control token must be the whole stop sequence; this one has {token!r} and more"
                raise InvalidInput.of(f"{field}[{index}]", reason)

    @property
    def target_prefix(self) -> str:
        """The spaces between the rendered input and a target, which serving drops from an answer."""
        return self.template.target_prefix

    @cached_property
    def end_token_id(self) -> int | None:
        """The token that ends a target: the chat template's end of turn, or the tokenizer's end of sequence."""
        if not self.template.end:
            found: int | None = self.tokenizer.eos_token_id
            return found
        return self._text.control_id(self.template.end)

    def _encode_turns(self, write: Callable[[Callable[[str], str]], _Turns], *, with_system: bool = True) -> list[int]:
        """`write` makes the turns with a function that makes a content plain."""
        system = _system_turns(self.template) if with_system else []
        turns, plain = write(self._text.quote), write(self._text.readable)
        try:
            rendered = self._render([*system, *turns])
        except Exception as error:  # the chat template is the model's own code and may raise anything
            raise self._refusal(system, turns, error) from error
        if turns != plain:  # the chat template may look for the strings, or refuse them
            marked = write(self._text.mark)
            with suppress(Exception):
                as_it_is = self._render([*system, *plain])
                with_marks = as_it_is if marked == plain else self._render([*system, *marked])
                rendered = self._text.as_rendered(rendered, as_it_is, with_marks)
        return self._text.ids(rendered + self.template.lead.rstrip(" "))

    def _render(self, turns: Sequence[Mapping[str, str]]) -> str:
        return render_chat(self.tokenizer, self.template, turns, add_generation_prompt=True)

    def _refusal(self, system: list[dict[str, str]], turns: list[dict[str, str]], error: Exception) -> InvalidInput:
        """The error for rejected turns. It names the system message if the turns are valid without it, else the first
        message that is rejected after the messages before it.
        """
        if system and self._problem(turns) is None:
            return InvalidInput.of("template.system", f"the model's chat template refuses it: {str(error)[:200]}")
        for count in range(1, len(turns) + 1):
            if (problem := self._problem([*system, *turns[:count]])) is not None:
                return InvalidInput.of(
                    f"messages[{count - 1}]", f"the model's chat template refuses it: {str(problem)[:200]}"
                )
        return InvalidInput.of("messages", f"the model's chat template refuses them: {str(error)[:200]}")

    def _problem(self, turns: Sequence[Mapping[str, str]]) -> Exception | None:
        try:
            self._render(turns)
        except Exception as error:
            return error
        return None

    @cached_property
    def _leading_ids(self) -> list[int]:
        return _leading_ids(self.tokenizer, only_bos=self.template.rendering < 3)


def _leading_ids(tokenizer: Any, *, only_bos: bool) -> list[int]:
    """What the tokenizer puts before a text, mostly a BOS. Found by trying, since configurations differ.

    `only_bos`: nothing else, as in earlier versions. XGLM begins a text with its end of sequence, GLM with two tokens.
    """
    plain, found = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    if only_bos or not plain:  # a tokenizer without the letter
        return found[:1] if tokenizer.bos_token_id is not None and found[:1] == [tokenizer.bos_token_id] else []
    begins = (begin for begin in range(len(found)) if found[begin : begin + len(plain)] == plain)
    return found[: next(begins, 0)]


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer has a chat template, and it writes the text of messages.

    Those of models of images and texts may expect lists of parts and write nothing of a text.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    return has_one and _left_out(("user",), tokenizer, Template(format=TemplateFormat.CHAT)) is None


def _left_out(roles: tuple[str, ...], tokenizer: Any, template: Template) -> int | None:
    """The index of the first of messages of these roles whose text the chat template doesn't write; None if it writes
    or refuses them.
    """
    arguments = json.dumps(dict(template.arguments), sort_keys=True)
    return _left_out_by(roles, tokenizer, str(tokenizer.chat_template), arguments)


@lru_cache(maxsize=1024)  # each request to the bare model needs it
def _left_out_by(roles: tuple[str, ...], tokenizer: Any, _source: str, arguments: str) -> int | None:
    texts = [f"{_ANSWER}{index}{_ANSWER}" for index in range(len(roles))]
    template = Template(format=TemplateFormat.CHAT, arguments=json.loads(arguments))
    try:
        turns = [_turn(role, text) for role, text in zip(roles, texts, strict=True)]
        rendered = render_chat(tokenizer, template, turns, add_generation_prompt=True)
    except Exception:  # a chat template is the model's own code
        return None
    return next((index for index, text in enumerate(texts) if text not in rendered), None)


def default_format(tokenizer: Any) -> TemplateFormat:
    """The default format: CHAT if the tokenizer's chat template can write a user's message, else TEXT."""
    if not has_chat_template(tokenizer):
        return TemplateFormat.TEXT
    try:
        render_chat(tokenizer, Template(format=TemplateFormat.CHAT), [_turn("user", "x")], add_generation_prompt=True)
    except Exception:  # a chat template is the model's own code, and this one can't be used
        return TemplateFormat.TEXT
    return TemplateFormat.CHAT


def bare_template(template: Template | None, default: TemplateFormat) -> Template:
    """The bare model's template: the caller's, or the input alone. `default`: its format if none is set."""
    chosen = template or Template()
    return replace(chosen, format=chosen.format or default, rendering=4)


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as the input of a TEXT template.

    A single user message is the input, unchanged. Otherwise each message becomes a paragraph `User: ...`,
    `Assistant: ...` or `System: ...`, in order.
    """
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def pinned(template: Template, tokenizer: Any, today: date | None = None) -> Template:
    """The template of a new prompt, with all values fixed that rendering would otherwise take from the day or the code.

    Finds out from the chat template how it ends an answer and which text precedes one. Raises InvalidInput for a chat
    template that is random.
    """
    template = replace(template, format=template.format or TemplateFormat.TEXT, rendering=2, lead="", end="")
    if template.format is not TemplateFormat.CHAT:
        leading = _leading_ids(tokenizer, only_bos=False)
        is_bos = _leading_ids(tokenizer, only_bos=True) == leading
        is_written = bool(leading) and PlainText(tokenizer, template.text).ids(template.text)[: len(leading)] == leading
        return replace(template, rendering=4 if is_written else 2 if is_bos else 3)
    if template.system and _left_out(("system", "user"), tokenizer, template) is not None:
        text = "the model's chat template leaves it out: write it into the template's text"
        raise InvalidInput.of("template.system", text)
    template = dated(template, today)
    asking = [_turn("user", "x")]
    turns = [*_system_turns(template), *asking]
    try:
        question = render_chat(tokenizer, template, turns, add_generation_prompt=True)
        before, found, after = _around_an_answer(tokenizer, template, turns)
        again = {render_chat(tokenizer, template, turns, add_generation_prompt=True) for _ in range(_MAX_RENDERINGS)}
        start = question
        if found and not before.startswith(start):  # Mistral 7B v0.3 writes the system message into the last turn only
            start = render_chat(tokenizer, template, asking, add_generation_prompt=True)
            before, found, after = _around_an_answer(tokenizer, template, asking)
    except Exception:  # a chat template that can't write such a conversation; the tokenizer's own end holds
        return template
    if again != {question}:
        text = "the model's chat template renders the same messages differently each time; use TEXT"
        raise InvalidInput.of("template.format", text)
    if not found:
        return template
    lead = before.removeprefix(start) if before.startswith(start) else _closing(tokenizer, start, before, after)
    end = PlainText(tokenizer).first_control_token(after)
    return replace(template, lead=lead, end="" if end == tokenizer.eos_token else end)


def _closing(tokenizer: Any, question: str, before: str, after: str) -> str:
    """What closes the thought that a chat template begins for an answer, but doesn't write before one: DeepSeek R1's
    begins it with `<think>`. Empty without such a thought.
    """
    opened = _OPENED.search(question)
    if opened is None:
        return ""
    head, close = question[: opened.start()], f"</{opened[1]}>"
    if after.lstrip().startswith(close):  # a turn's tag, which it closes after the answer
        return ""
    written = before.removeprefix(head) if before.startswith(head) else ""
    if close in written:
        return written[written.index(close) :]
    return f"\n{close}\n\n" if close in tokenizer.get_chat_template() else ""


def _around_an_answer(tokenizer: Any, template: Template, turns: Sequence[Mapping[str, str]]) -> tuple[str, str, str]:
    """What the chat template writes before an answer, the answer (empty if it is not found), and what follows it."""
    answered = [*turns, _turn("assistant", _ANSWER)]
    return render_chat(tokenizer, template, answered, add_generation_prompt=False).partition(_ANSWER)


def dated(template: Template, today: date | None = None) -> Template:
    """The template with its date set, if it is a chat template without one."""
    if template.format is not TemplateFormat.CHAT or template.date:
        return template
    return replace(template, date=(today or datetime.now(UTC).date()).isoformat())


def _system_turns(template: Template) -> list[dict[str, str]]:
    return [_turn("system", template.system)] if template.system else []


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
