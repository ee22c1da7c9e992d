"""How inputs and targets become ids: with and without a BOS, as text and as a conversation, the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import normalizers, processors

from shared.errors import InvalidInput
from shared.text.template import (
    InputEncoder,
    Message,
    Template,
    TemplateFormat,
    bare_template,
    default_format,
    pinned,
)
from shared.values.template import MAX_TEMPLATE_CHARS
from tests.tiny_models import CHAT_TEMPLATE, byte_tokenizer

CHAT = Template(text="Review: {input}", format=TemplateFormat.CHAT, system="Be brief.")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def bos_tokenizer() -> Any:
    """As Llama's: one BOS before whatever is tokenized with special tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<user>"})
    special = [("<user>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<user> $A", special_tokens=special
    )
    return tokenizer


class TestTemplate:
    def test_only_the_field_is_replaced(self) -> None:
        assert Template(text="A {input} {b} {{}} %s").check().render("{input} {0}\\1") == "A {input} {0}\\1 {b} {{}} %s"

    @pytest.mark.parametrize("text", ["", "no field", "{input} {input}", "{ input }", "{Input}"])
    def test_the_field_occurs_once(self, text: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            Template(text=text).check("spec.template")
        assert caught.value.violations[0].field == "spec.template.text"

    def test_a_system_message_needs_a_chat(self) -> None:
        with pytest.raises(InvalidInput, match=r"template\.system"):
            Template(system="Be brief.").check()
        assert CHAT.check() is CHAT

    def test_it_is_bounded_and_closed(self) -> None:
        with pytest.raises(InvalidInput, match=r"template\.text"):
            Template(text="{input}" + "x" * MAX_TEMPLATE_CHARS).check()
        with pytest.raises(ValidationError):
            TypeAdapter(Template).validate_python({"text": "{input}", "jinja": "{{ 1 }}"})

    def test_every_field_is_bounded_and_all_that_is_wrong_is_named(self) -> None:
        wrong = Template("x", None, "s", arguments={"a b": 1}, date="20240203", lead="x" * 1001, end="y" * 201)
        with pytest.raises(InvalidInput) as caught:
            replace(wrong, rendering=5).check("t")
        named = {violation.field for violation in caught.value.violations}
        assert named == {f"t.{name}" for name in ("text", "system", "arguments", "date", "lead", "end", "rendering")}

    def test_a_template_of_the_first_release_is_read(self) -> None:
        """Without the fields that were added later, and with a format in every stored template."""
        stored = '{"text":"Q: {input}","format":"CHAT","system":"Be kind","system_override":false}'
        found = TypeAdapter(Template).validate_json(stored)
        assert found == Template("Q: {input}", TemplateFormat.CHAT, "Be kind")
        assert found.rendering == 1

    @pytest.mark.parametrize(
        ("template", "prefix"),
        [
            (Template(text="{input}"), " "),
            (Template(text="Review: {input}\nLabel:"), " "),
            (Template(text="Review: {input}\nLabel: "), ""),
            (Template(text="Review: {input}\n"), ""),
            (CHAT, ""),
        ],
    )
    def test_the_text_before_a_target(self, template: Template, prefix: str) -> None:
        assert template.target_prefix == prefix


class TestText:
    def test_without_a_bos_there_is_none(self, tokenizer: Any) -> None:
        encoder = InputEncoder(tokenizer, Template(text="Say: {input}!"))
        assert tokenizer.decode(encoder.encode_input("hello")) == "Say: hello!"

    def test_a_bos_that_the_tokenizer_adds_comes_first_and_once(self, bos_tokenizer: Any) -> None:
        encoder = InputEncoder(bos_tokenizer, Template(text="Say: {input}!"))
        ids = encoder.encode_input("hello")
        assert ids == bos_tokenizer("Say: hello!")["input_ids"]
        assert ids.count(bos_tokenizer.bos_token_id) == 1

    def test_a_bos_that_the_template_writes_is_not_put_before_it_again(self, bos_tokenizer: Any) -> None:
        template = Template(text="<user>Say: {input}!", format=TemplateFormat.TEXT)
        for pinned_or_bare in (pinned(template, bos_tokenizer), bare_template(template, TemplateFormat.TEXT)):
            ids = InputEncoder(bos_tokenizer, pinned_or_bare).encode_input("<user>hello")
            assert bos_tokenizer.decode(ids) == "<user>Say: <user>hello!"
            assert ids.count(bos_tokenizer.bos_token_id) == 1
        for rendering in (2, 3):
            before = InputEncoder(bos_tokenizer, replace(template, rendering=rendering)).encode_input("hello")
            assert before.count(bos_tokenizer.bos_token_id) == 2, "versions of earlier builds stay as they were trained"

    def test_a_bos_that_is_set_but_not_added_stays_away(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<user>"})
        assert tokenizer.bos_token_id not in InputEncoder(tokenizer, Template()).encode_input("hello")

    @pytest.mark.parametrize("begin", ["<user>", "<end>", "<user> <system>"])
    def test_an_input_begins_as_the_tokenizer_begins_a_text(self, begin: str) -> None:
        """BOS, as of Llama; the end of sequence, as of XGLM; two tokens, as of GLM."""
        tokenizer = byte_tokenizer()
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in begin.split()]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A <end>", special_tokens=[*special, ("<end>", tokenizer.eos_token_id)]
        )
        ids = tokenizer("Say: hello!")["input_ids"][:-1]
        template = Template(text="Say: {input}!", format=TemplateFormat.TEXT)
        for pinned_or_bare in (pinned(template, tokenizer), bare_template(template, TemplateFormat.TEXT)):
            assert InputEncoder(tokenizer, pinned_or_bare).encode_input("hello") == ids
        tokenizer.add_special_tokens({"bos_token": "<user>"})
        assert pinned(template, tokenizer).rendering == (2 if begin == "<user>" else 3)
        first = ids[:1] if begin.startswith("<user>") else []
        before = InputEncoder(tokenizer, replace(template, rendering=2)).encode_input("hello")
        assert before == first + ids[len(special) :], "versions of earlier builds stay as they were trained"

    def test_a_target_has_a_space_before_it_an_end_after_it_and_no_bos(self, bos_tokenizer: Any) -> None:
        encoder = InputEncoder(bos_tokenizer, Template(text="{input}\nLabel:"))
        ids = encoder.encode_target("good")
        assert bos_tokenizer.decode(ids[:-1]) == " good"
        assert ids[-1] == bos_tokenizer.eos_token_id
        assert encoder.encode_target("good", end=False) == ids[:-1]
        assert (
            bos_tokenizer.decode(
                InputEncoder(bos_tokenizer, Template(text="{input}\n")).encode_target("good", end=False)
            )
            == "good"
        )

    def test_texts_with_the_same_tokens_are_named(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        encoder = InputEncoder(tokenizer, Template(text="{input}\nLabel:"))
        with pytest.raises(InvalidInput) as refused:
            encoder.encode_candidates(["yes", "no", "Yes", "maybe"], "labels")
        assert str(refused.value) == "labels[2]: 'Yes' has the same tokens as 'yes' in this model's vocabulary"

    def test_an_end_is_added_where_a_text_begins_with_another(self, tokenizer: Any) -> None:
        encoder = InputEncoder(tokenizer, Template(text="{input}\nLabel:"))
        for texts, has_end in ((["good", "bad", "goods"], True), (["good", "bad"], False)):
            ends = {ids[-1] == tokenizer.eos_token_id for ids in encoder.encode_candidates(texts, "labels")}
            assert ends == {has_end}

    def test_a_text_that_begins_with_another_needs_an_end(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        encoder = InputEncoder(tokenizer, Template(text="{input}\nLabel:"))
        assert len(encoder.encode_candidates(["good", "bad"], "labels")) == 2
        with pytest.raises(InvalidInput) as refused:
            encoder.encode_candidates(["bad", "goods", "good"], "labels", for_training=True)
        assert str(refused.value).startswith("labels[1]: 'goods' begins with 'good', which would always score higher: ")
        assert len(encoder.encode_candidates(["bad", "goods", "good"], "candidates")) == 3

    def test_an_empty_input_is_only_the_template(self, tokenizer: Any) -> None:
        assert tokenizer.decode(InputEncoder(tokenizer, Template(text="[{input}]")).encode_input("")) == "[]"

    def test_a_conversation_becomes_the_input(self, tokenizer: Any) -> None:
        encoder = InputEncoder(tokenizer, Template(text="Q: {input}"))
        assert tokenizer.decode(encoder.encode_messages([Message(role="user", content="hello")])) == "Q: hello"
        turns = [("system", "Be brief."), ("user", "hello"), ("assistant", "hi"), ("user", "who?")]
        ids = encoder.encode_messages([Message(role=role, content=content) for role, content in turns])
        assert tokenizer.decode(ids) == "Q: System: Be brief.\n\nUser: hello\n\nAssistant: hi\n\nUser: who?"

    @given(text=st.text(max_size=40), target=st.text(min_size=1, max_size=20))
    def test_input_and_target_joined_are_the_text(self, text: str, target: str) -> None:
        """Trained on `input + target`, served `input`: the seam must not depend on what follows."""
        encoder = InputEncoder(byte_tokenizer_once(), Template(text="Review: {input}\nLabel:"))
        ids = encoder.encode_input(text) + encoder.encode_target(target, end=False)
        assert ids == byte_tokenizer_once()(f"Review: {text}\nLabel: {target}", add_special_tokens=False)["input_ids"]


class TestChat:
    def test_an_input_becomes_the_users_turn_after_the_system_message(self, tokenizer: Any) -> None:
        ids = InputEncoder(tokenizer, CHAT).encode_input("nice")
        assert tokenizer.decode(ids) == "<system>Be brief.<end><user>Review: nice<end><assistant>"

    def test_messages_go_through_the_same_template(self, tokenizer: Any) -> None:
        encoder = InputEncoder(tokenizer, CHAT)
        assert encoder.encode_messages([Message(role="user", content="Review: nice")]) == encoder.encode_input("nice")

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_caller_can_not_replace_the_system_message(self, tokenizer: Any, place: int) -> None:
        messages = [Message(role="user", content="hello"), Message(role="user", content="hello")]
        messages.insert(place, Message(role="system", content="Be long."))
        with pytest.raises(InvalidInput) as refused:
            InputEncoder(tokenizer, CHAT).encode_messages(messages)
        assert refused.value.violations[0].field == f"messages[{place}]"

    def test_a_template_may_allow_another_system_message(self, tokenizer: Any) -> None:
        messages = [Message(role="system", content="Be long."), Message(role="user", content="hello")]
        open_template = replace(CHAT, system_override=True)
        text = tokenizer.decode(InputEncoder(tokenizer, open_template).encode_messages(messages))
        assert text == "<system>Be long.<end><user>hello<end><assistant>"

    def test_a_target_follows_directly(self, tokenizer: Any) -> None:
        assert tokenizer.decode(InputEncoder(tokenizer, CHAT).encode_target("good", end=False)) == "good"

    def test_no_bos_is_added_to_what_the_chat_template_wrote(self, bos_tokenizer: Any) -> None:
        ids = InputEncoder(bos_tokenizer, CHAT).encode_input("nice")
        assert ids[0] != bos_tokenizer.bos_token_id

    @pytest.mark.parametrize(
        "content", ["{% for part in message.content %}{{ part.text }}{% endfor %}", "{{ message.text }}", ""]
    )
    def test_a_chat_template_that_leaves_out_what_messages_say_is_none(self, content: str) -> None:
        """That of a model of images and texts expects lists of parts, and writes nothing of a text."""
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ message.content }}", content)
        assert default_format(tokenizer) is TemplateFormat.TEXT
        with pytest.raises(InvalidInput, match="a chat template that writes the text of messages; use TEXT"):
            InputEncoder(tokenizer, CHAT)

    def test_a_chat_template_that_leaves_out_system_messages_takes_none(self) -> None:
        """As the first one of Phi-3: it has no branch for this role."""
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE.replace("messages %}", "messages if message.role != 'system' %}")
        assert default_format(tokenizer) is TemplateFormat.CHAT
        with pytest.raises(InvalidInput, match=r"template\.system: .* leaves it out: write it into the template"):
            pinned(CHAT, tokenizer)
        encoder = InputEncoder(tokenizer, pinned(replace(CHAT, system=""), tokenizer))
        with pytest.raises(InvalidInput, match=r"messages\[0\]: the model's chat template leaves system messages out"):
            encoder.encode_messages([Message("system", "Be brief."), Message("user", "hello")])
        assert encoder.encode_messages([Message("user", "hello")])

    @pytest.mark.parametrize("kept", ["messages[-1:]", "messages[-2:]", "messages[:4]"])
    def test_a_chat_template_that_leaves_out_turns_takes_only_shorter_conversations(self, kept: str) -> None:
        """That of a translator writes the last message only: a conversation would lose its past."""
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE.replace("in messages %}", f"in {kept} %}}")
        assert default_format(tokenizer) is TemplateFormat.CHAT
        encoder = InputEncoder(tokenizer, pinned(replace(CHAT, system=""), tokenizer))
        assert tokenizer.decode(encoder.encode_messages([Message("user", "hello")])) == "<user>hello<end><assistant>"
        turns = [Message(("user", "assistant")[index % 2], f"turn {index}") for index in range(5)]
        left_out = 4 if kept == "messages[:4]" else 0
        with pytest.raises(InvalidInput, match=rf"messages\[{left_out}\]: .* does not write this user message"):
            encoder.encode_messages(turns)

    def test_an_error_about_a_system_message_does_not_say_that_all_are_left_out(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role != 'system' or 'system' not in messages[loop.index:]|map("
            "attribute='role') %}<{{ m.role }}>{{ m.content }}<end>{% endif %}{% endfor %}"
        )
        encoder = InputEncoder(tokenizer, replace(CHAT, system=""))
        turns = [Message(role, role) for role in ("system", "user", "system", "user")]
        with pytest.raises(InvalidInput, match=r"messages\[0\]: .* write this system message in .*; leave it out"):
            encoder.encode_messages(turns)
        assert tokenizer.decode(encoder.encode_messages(turns[:2])) == "<system>system<end><user>user<end>"

    @pytest.mark.parametrize("stop", ["x<end>", "<end>x", "<user>\n<end>", "<pad><pad>"])
    def test_a_stop_sequence_of_text_and_a_control_token_is_refused(self, tokenizer: Any, stop: str) -> None:
        encoder = InputEncoder(tokenizer, CHAT)
        encoder.check_stops(["x", "<end>", " <end>\n", "end>", "<"], "stops")
        with pytest.raises(InvalidInput, match=r"stops\[1\]: .* must be the whole .* has '<\w+>' and more"):
            encoder.check_stops(["x", stop], "stops")

    def test_stop_sequences_without_control_tokens_are_checked_without_reading_all_added_tokens(
        self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = InputEncoder(tokenizer, CHAT)
        encoder.check_stops(["x"], "stops")
        monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(lambda _: pytest.fail("read")))
        encoder.check_stops(["y", "end>"], "stops")

    def test_a_tokenizer_without_a_chat_template_is_refused(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = None
        with pytest.raises(InvalidInput, match=r"template\.format"):
            InputEncoder(tokenizer, CHAT)

    @pytest.mark.parametrize(
        ("chat_template", "expected"),
        [
            (CHAT_TEMPLATE, TemplateFormat.CHAT),
            (None, TemplateFormat.TEXT),
            ("{{ raise_exception('no') }}", TemplateFormat.TEXT),
        ],
    )
    def test_chat_is_the_default_where_the_chat_template_can_be_used(
        self, chat_template: str | None, expected: TemplateFormat
    ) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = chat_template
        assert default_format(tokenizer) is expected


_TOKENIZER = byte_tokenizer()


def byte_tokenizer_once() -> Any:
    return _TOKENIZER
