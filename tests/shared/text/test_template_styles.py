"""Chat templates as published models have them: training's token ids are those of the template's own rendering.

The templates are the published ones without tools. The tokenizer has one id for each byte and for each control token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken

from shared.text.template import InputEncoder, Message, Template, TemplateFormat, pinned
from tests.tiny_models import byte_tokenizer

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must"
    " alternate user/assistant/user/assistant/...') }}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """`end` ends an answer. `control` are further control tokens. `eos` is the tokenizer's, by default `end`."""

    template: str
    end: str
    control: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = ""
    system: bool = True
    """Whether the template accepts a system message, and writes it wherever the conversation ends."""


STYLES = {
    "chatml": Style(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
        ("<|im_start|>",),
        eos="<|endoftext|>",
    ),
    "llama-3": Style(
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] +"
        " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "llama-2": Style(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + _ALTERNATE +
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "mistral-v1": Style(
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are"
        " supported!') }}{% endif %}{% endfor %}",
        "</s>",
        system=False,
    ),
    "mistral-v3": Style(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}"
        "{% for message in loop_messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{% if loop.last and system_message is defined %}{{ '[INST] ' + system_message + '\n\n' + message['content'] +"
        " '[/INST]' }}{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ("[INST]", "[/INST]"),
        system=False,  # it is written before a question that comes last, so the whole conversation doesn't show it
    ),
    "mistral-tekken": Style(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{% elif message['role'] == 'user' %}"
        "{{ '[INST]' + message['content'] + '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
        "{% endfor %}",
        "</s>",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "gemma-2": Style(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + _ALTERNATE + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<end_of_turn>",
        ("<start_of_turn>",),
        bos="<bos>",
        eos="<eos>",
        system=False,
    ),
    "gemma-3": Style(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}"
        "{% endif %}{% for message in loop_messages %}" + _ALTERNATE + "{% if message['role'] == 'assistant' %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{% if message['content'] is string %}"
        "{{ message['content'] | trim }}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<end_of_turn>",
        ("<start_of_turn>",),
        bos="<bos>",
        eos="<eos>",
    ),
    "phi-3": Style(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] +"
        " '<|end|>\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        ("<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
    ),
    "phi-4": Style(
        "{% for message in messages %}{% if (message['role'] == 'system') %}{{ '<|im_start|>system<|im_sep|>' +"
        " message['content'] + '<|im_end|>' }}{% elif (message['role'] == 'user') %}{{ '<|im_start|>user<|im_sep|>' +"
        " message['content'] + '<|im_end|>' }}{% elif (message['role'] == 'assistant') %}"
        "{{ '<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        "<|im_end|>",
        ("<|im_start|>", "<|im_sep|>"),
        eos="<|endoftext|>",
    ),
    "qwen-3": Style(
        "{% set ns = namespace(last=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
        "{% if message.role == 'assistant' %}{% set content = message.content.split('</think>')[-1].lstrip('\n') %}"
        "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ content + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content +"
        " '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}",
        "<|im_end|>",
        ("<|im_start|>",),
        eos="<|endoftext|>",
    ),
    "deepseek": Style(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% else %}"
        "{% set content = message['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "granite": Style(
        "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content']"
        " + '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "command-r": Style(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + message['content'] + '<|END_OF_TURN_TOKEN|>' }}"
        "{% elif message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message['content'].strip() +"
        " '<|END_OF_TURN_TOKEN|>' }}{% else %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' +"
        " message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        bos="<BOS_TOKEN>",
        eos="<eos>",
    ),
    "zephyr": Style(
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] +"
        " eos_token }}{% elif message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + eos_token }}"
        "{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% else %}{{ '\n' }}{% endif %}"
        "{% endfor %}",
        "</s>",
    ),
    "alpaca": Style(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% else %}"
        "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        "</s>",
    ),
    "harmony": Style(  # gpt-oss: the last answer of a conversation ends with another token than earlier ones
        "{{ '<|start|>system<|message|>You are ChatGPT.<|end|>' }}{% if messages[0].role == 'system' %}"
        "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '<|end|>' }}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
        "{% for message in loop_messages %}{% if message.role == 'assistant' %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "<|return|>",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
    ),
    "marked": Style(  # as trl's templates for a loss on the assistant's turns
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
        ("<|im_start|>",),
        eos="<|endoftext|>",
    ),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> Any:
    style, tokenizer = STYLES[name], byte_tokenizer()
    eos = style.eos or style.end
    tokens = dict.fromkeys((style.bos, eos, style.end, *style.control))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": style.bos, "eos_token": eos})
    tokenizer.chat_template = style.template
    return tokenizer


@pytest.mark.parametrize(
    ("begun", "written", "after", "lead"),
    [
        ("<think>\n", "", "", "\n</think>\n\n"),  # DeepSeek R1's and QwQ's
        ("<think>\n", "<think></think>", "", "</think>"),  # Nemotron 3's
        ("<think>\n", "<think>\n\n</think>\n\n", "", "\n</think>\n\n"),  # Qwen 3's of 2507
        ("<think>\n", "<think>", "", "\n</think>\n\n"),
        ("<think></think>", "", "", ""),  # Gemma 4's, which writes an empty thought only there
        ("<answer>", "<answer>", "", ""),
        ("<answer>\n", "<answer>", "</answer>", ""),  # an ordinary turn
        ("<answer>\n", "<answer>So: ", "</answer>", ""),
        ("\n<answer>\n", "<answer>", "</answer>", ""),
        ("<seed:think>", "", "", ""),  # the template doesn't say how it ends
    ],
)
def test_an_answer_is_not_trained_inside_a_thought(begun: str, written: str, after: str, lead: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{{ '"
        + written.replace("\n", "\\n")
        + "' + m.content.split('</think>')[-1] }}"
        + after
        + "{% else %}{{ m.content }}{% endif %}<end>{% endfor %}{% if add_generation_prompt %}{{ '<assistant>"
        + begun.replace("\n", "\\n")
        + "' }}{% endif %}"
    )
    template = pinned(Template(format=TemplateFormat.CHAT), tokenizer)
    assert (template.lead, template.end) == (lead, "")
    ids = InputEncoder(tokenizer, template).encode_input("x")
    assert tokenizer.decode(ids) == f"<user>x<end><assistant>{begun}{lead}"


@pytest.mark.parametrize("thinking", [None, False])
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
@pytest.mark.parametrize("name", STYLES)
def test_training_sees_what_the_template_renders_up_to_the_end_of_the_turn(
    name: str, with_system: bool, thinking: bool | None
) -> None:
    style, tokenizer = STYLES[name], tokenizer_of(name)
    if with_system and not style.system:
        return
    arguments = {} if thinking is None else {"enable_thinking": thinking}
    template = pinned(Template(format=TemplateFormat.CHAT, arguments=arguments), tokenizer)
    encoder = InputEncoder(tokenizer, template)
    turns = [("user", "Is it 3?"), ("assistant", "No."), ("user", "Then?"), ("assistant", "It is 4.")]
    turns = [("system", "Be brief.")] * with_system + turns
    for count in (len(turns) - 2, len(turns)):  # one question, and one after a first answer
        messages = [Message(role=role, content=content) for role, content in turns[:count]]
        asked = encoder.encode_messages(messages[:-1])
        ids = asked + encoder.encode_target(messages[-1].content)
        whole = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns[:count]], tokenize=False, **arguments
        )
        begin = whole[: whole.rindex(turns[count - 1][1])]
        answer = whole[len(begin) : whole.index(style.end, len(begin))]
        trained = begin + answer.rstrip(" ") + style.end  # Llama 2 writes a space before the end
        assert tokenizer.decode(ids) == trained
        assert ids == tokenizer(trained, add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.convert_tokens_to_ids(style.end)
        assert ids.count(tokenizer.bos_token_id) == whole[: len(begin)].count(style.bos)
        assert tokenizer.decode(asked) == begin[: len(begin) - len(template.target_prefix)]


@pytest.mark.parametrize("name", STYLES)
def test_an_input_is_one_users_message(name: str) -> None:
    template = pinned(Template(format=TemplateFormat.CHAT), tokenizer_of(name))
    encoder = InputEncoder(tokenizer_of(name), template)
    assert encoder.encode_input("hello") == encoder.encode_messages([Message(role="user", content="hello")])
    system = replace(template, system="Be brief.")
    if STYLES[name].system:
        turns = [Message(role="system", content="Be brief."), Message(role="user", content="hello")]
        assert InputEncoder(tokenizer_of(name), system).encode_input("hello") == encoder.encode_messages(turns)


def test_the_space_before_an_answer_is_found_where_the_system_message_is_in_the_last_turn_only() -> None:
    tokenizer = tokenizer_of("mistral-v3")
    template = pinned(Template(format=TemplateFormat.CHAT, system="Be brief."), tokenizer)
    encoder = InputEncoder(tokenizer, template)
    text = tokenizer.decode(encoder.encode_input("hello") + encoder.encode_target("Hi."))
    assert text == "<s>[INST] Be brief.\n\nhello[/INST] Hi.</s>"
