"""Inputs that are too long lose their beginning, but no text of the template."""

from __future__ import annotations

from typing import Any

import pytest

from shared.text.template import InputEncoder, Message, Template, TemplateFormat
from shared.text.truncation import fit_messages, fit_text
from tests.tiny_models import byte_tokenizer

CHAT_TEMPLATE = (
    "<{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
USERS_FIRST = (
    "{% if (messages | rejectattr('role', 'equalto', 'system') | first).role != 'user' %}"
    "{{ raise_exception('user first') }}{% endif %}"
)


def chat(system: str = "", template: str = CHAT_TEMPLATE) -> InputEncoder:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = template
    return InputEncoder(tokenizer, Template(format=TemplateFormat.CHAT, system=system))


def turns(*contents: str, first: str = "user") -> list[Message]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [Message(role=roles[index % 2], content=content) for index, content in enumerate(contents)]


def text_of(encoder: InputEncoder, ids: list[int]) -> str:
    return str(encoder.tokenizer.decode(ids))


@pytest.mark.parametrize("room", [13, 20, 500, 1012])
def test_a_text_keeps_its_end_and_its_template(room: int) -> None:
    encoder = InputEncoder(byte_tokenizer(), Template(text="Say: {input}\nNow:"))
    whole = "".join(str(number % 10) for number in range(5000))
    kept = text_of(encoder, fit_text(encoder, whole, room))
    assert len(kept) == room
    assert kept == f"Say: {whole[-(room - 10) :]}\nNow:"


@pytest.mark.parametrize("room", [4, 11, 12])
def test_where_only_the_template_fits_no_empty_input_is_made(room: int) -> None:
    """Such a text is too long; a chat template might also refuse an empty content."""
    encoder = chat(
        template=CHAT_TEMPLATE + "{% if not messages[-1].content %}{{ raise_exception('empty') }}{% endif %}"
    )
    assert len(fit_text(encoder, "hello", room)) == len(encoder.encode_input("o")) > room


def test_what_fits_is_left_as_it_is() -> None:
    encoder = chat(system="S")
    assert fit_text(encoder, "hello", 100) == encoder.encode_input("hello")
    assert fit_messages(encoder, turns("a", "b", "c"), 100) == encoder.encode_messages(turns("a", "b", "c"))


def test_characters_of_several_tokens_are_cut_whole() -> None:
    encoder = InputEncoder(byte_tokenizer(), Template(text="{input}!"))
    assert text_of(encoder, fit_text(encoder, "ä€😀" * 50, 9)) == "€😀!"


def test_the_system_message_and_the_header_stay_when_a_chat_input_is_cut() -> None:
    encoder = chat(system="You help.")
    assert (
        text_of(encoder, fit_text(encoder, "x" * 500 + "end", 50))
        == "<[system]You help.;[user]" + "x" * 10 + "end;[assistant]"
    )


def test_the_oldest_turns_go_first() -> None:
    encoder = chat(system="S", template=USERS_FIRST + CHAT_TEMPLATE)
    messages = turns("one " * 20, "two", "three", "four", "five")
    assert (
        text_of(encoder, fit_messages(encoder, messages, 70))
        == "<[system]S;[user]three;[assistant]four;[user]five;[assistant]"
    )
    assert text_of(encoder, fit_messages(encoder, messages, 60)) == "<[system]S;[user]five;[assistant]"
    assert text_of(encoder, fit_messages(encoder, messages, 32)) == "<[system]S;[user]ive;[assistant]"


def test_a_callers_own_system_message_stays() -> None:
    encoder = chat()
    messages = [Message(role="system", content="be brief"), *turns("a" * 80, "b", "c")]
    assert text_of(encoder, fit_messages(encoder, messages, 60)) == "<[system]be brief;[user]c;[assistant]"


def test_a_later_system_message_keeps_its_place() -> None:
    encoder = chat()
    messages = turns("a" * 80, "b", "c")
    messages.insert(2, Message(role="system", content="be brief"))
    messages.insert(4, Message(role="system", content="now"))
    kept = "<[system]be brief;[user]c;[system]now;[assistant]"
    assert text_of(encoder, fit_messages(encoder, messages, 60)) == kept
    assert text_of(encoder, fit_messages(encoder, [*messages, *turns("d" * 50)], 60)).endswith(
        "<[system]be brief;[system]now;[user]" + "d" * 12 + ";[assistant]"
    )
    only_system = [Message(role="system", content="s" * 80)]
    assert fit_messages(encoder, only_system, 60) == encoder.encode_messages(only_system), "too long, and not cut"


def test_a_conversation_that_begins_with_the_assistant() -> None:
    encoder = chat()
    assert (
        text_of(encoder, fit_messages(encoder, turns("hello " * 20, "x", first="assistant"), 40))
        == "<[user]x;[assistant]"
    )
    assert text_of(encoder, fit_messages(encoder, turns("hello", first="assistant"), 25)) == "<[assistant]o;[assistant]"


def test_a_conversation_in_a_text_template_is_cut_as_the_text_it_becomes() -> None:
    encoder = InputEncoder(byte_tokenizer(), Template(text="Q: {input}"))
    assert text_of(encoder, fit_messages(encoder, turns("one", "two", "three"), 19)) == "Q: two\n\nUser: three"


def test_a_template_that_alone_is_too_long_is_reported_with_the_length() -> None:
    encoder = chat(system="s" * 100)
    assert len(fit_text(encoder, "hello", 50)) > 50
    assert len(fit_messages(encoder, turns("a", "b", "c"), 50)) > 50
