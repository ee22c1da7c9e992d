"""What a version keeps of its model's chat template: the beginning and the end of an answer, the day, the arguments."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import TypeAdapter

from shared.errors import InvalidInput
from shared.text.template import InputEncoder, Template, TemplateFormat, pinned
from tests.shared.text.test_plain_text import CHAT, chat_tokenizer
from tests.tiny_models import byte_tokenizer


def test_a_random_chat_template_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"template\.format: .* differently each time"):
        pinned(CHAT, chat_tokenizer("{{ range(1000) | random }}{{ messages[0].content }}"))


def test_the_end_of_an_answer_is_also_found_where_a_system_message_is_needed() -> None:
    tokenizer = chat_tokenizer(
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<pad>{% endfor %}"
    )
    assert pinned(Template(format=TemplateFormat.CHAT, system="S"), tokenizer).end == "<pad>"


def test_an_answer_ends_as_the_chat_template_ends_turns() -> None:
    """Gemma and Phi-3 end a turn with a token that is not the tokenizer's end of sequence."""
    tokenizer = chat_tokenizer(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<pad>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = pinned(CHAT, tokenizer)
    assert template.end == "<pad>"
    assert InputEncoder(tokenizer, template).encode_target("x")[-1] == 0
    assert (
        InputEncoder(tokenizer, CHAT).encode_target("x")[-1] == tokenizer.eos_token_id
    )  # a version from before keeps its own end


def test_what_the_chat_template_writes_before_an_answer_is_kept() -> None:
    thought = "{% if m.role == 'assistant' %}[]\n{% endif %}"
    tokenizer = chat_tokenizer(
        "{% for m in messages %}<{{ m.role }}>"
        + thought
        + "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    encoder = InputEncoder(tokenizer, pinned(CHAT, tokenizer))
    assert (
        tokenizer.decode(encoder.encode_input("x") + encoder.encode_target("y")) == "<user>x<end><assistant>[]\ny<end>"
    )
    spaced = chat_tokenizer(
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }}<end>{% endif %}"
        "{% endfor %}"
    )
    encoder = InputEncoder(spaced, pinned(CHAT, spaced))
    assert encoder.target_prefix == " "
    assert spaced.decode(encoder.encode_input("x") + encoder.encode_target("y")) == "[x] y<end>"


@pytest.mark.parametrize(
    "clock",
    [
        "strftime_now('%d %b %Y')",
        "strftime_now ( form )",
        "today('%d %b %Y')",
        "today('%' ~ 'd %b %Y')",
        "today(given)",
    ],
)
def test_a_template_renders_the_same_tomorrow(clock: str) -> None:
    tokenizer = chat_tokenizer(
        "\n{% set form = '%d %b %Y' %}{% set today = strftime_now %}{{ "
        + clock
        + " }}|{{ messages[0].content }}{% if loud %}!{% endif %}"
    )
    template = pinned(
        Template(format=TemplateFormat.CHAT, arguments={"loud": True, "given": "%d %b %Y"}), tokenizer, date(2024, 2, 3)
    )
    assert tokenizer.decode(InputEncoder(tokenizer, template).encode_input("x")) == "\n03 Feb 2024|x!"
    assert TypeAdapter(Template).validate_json(TypeAdapter(Template).dump_json(template)) == template


@pytest.mark.parametrize("field", ["arguments", "date"])
def test_bad_arguments_and_days_are_named(field: str) -> None:
    values: dict[str, Any] = {"arguments": {"tokenize": True}} if field == "arguments" else {"date": "2024-02-31"}
    with pytest.raises(InvalidInput) as refused:
        Template(format=TemplateFormat.CHAT, **values).check()
    assert refused.value.violations[0].field == f"template.{field}"


def test_an_argument_that_had_no_effect_is_refused_in_new_requests_only() -> None:
    template = Template(format=TemplateFormat.CHAT, arguments={"sanitize_control_tokens": False})
    with pytest.raises(InvalidInput, match="'sanitize_control_tokens' can't be the name of an argument"):
        template.check()
    tokenizer = byte_tokenizer()
    stored = pinned(template, tokenizer).check()
    assert tokenizer.decode(InputEncoder(tokenizer, stored).encode_input("x")) == "<user>x<end><assistant>"
