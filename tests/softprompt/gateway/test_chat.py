"""Chat completions through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from shared.store import AliasTarget
from shared.values.generation import FinishReason, GenerationDelta, GenerationEnd, TokenLogprob
from shared.values.message import Message
from softprompt.gateway.answers import Parts, conversation
from softprompt.gateway.backend import Reference
from softprompt.gateway.text_tokens import only_text_tokens
from tests.softprompt.gateway.running import World
from tests.waiting import wait_until

HELLO: Any = [{"role": "user", "content": "hello"}]


def test_the_models_are_the_base_model_the_prompts_their_aliases_and_versions(client: OpenAI) -> None:
    models = [model.id for model in client.models.list()]
    assert models[0] == "tiny-llama"
    assert {"tone", "tone@canary", "tone@1", "tone@2"} <= set(models)
    assert all(client.models.retrieve(model).id == model for model in ("tiny-llama", "tone", "tone@canary", "tone@1"))
    assert client.models.retrieve("tone@default").id == "tone@default"
    for missing in ("nothing", "tone@9", "tone@x", "gpt-3.5-turbo", "a/b"):
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve(missing)
        assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("model", "answering"),
    [("tiny-llama", "tiny-llama"), ("tone", "tone@1"), ("tone@canary", "tone@2"), ("tone@2", "tone@2")],
)
def test_an_answer_is_that_of_the_version_that_the_model_names(
    client: OpenAI, services: World, model: str, answering: str
) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=6, temperature=0)
    (choice,) = answer.choices
    prompt = "" if model == "tiny-llama" else model
    expected = services.loop.run(services.replica.generate("hello", prompt, max_new_tokens=6))
    assert (answer.model, answer.object) == (answering, "chat.completion")
    assert (choice.message.role, choice.message.content) == ("assistant", expected.output.text)
    assert choice.finish_reason in ("stop", "length")
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("sha256:")
    assert answer.system_fingerprint == expected.start.digest or not prompt
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.start.input_tokens
    assert answer.usage.completion_tokens == expected.end.output_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    stream = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected.output.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == choice.finish_reason
    assert chunks[-1].usage == answer.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {(answering, answer.system_fingerprint)}


def test_one_message_to_a_prompt_is_the_input_of_its_template() -> None:
    """A prompt trained with the template "Review: {input}" sees that text before the message, as in training."""
    hello, brief = Message("user", "hello"), Message("system", "Be brief.")
    assert conversation([hello], Reference(prompt="tone")) == "hello"
    for messages, model in (
        ([hello], Reference(base_model="tiny-llama")),
        ([brief, hello], Reference(prompt="tone")),
        ([Message("user", "")], Reference(prompt="tone")),
    ):
        assert conversation(messages, model) == messages


def test_several_answers_have_seeds_of_their_own_and_are_the_same_streamed(client: OpenAI) -> None:
    parameters: dict[str, Any] = {
        "model": "tone", "messages": HELLO, "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 8,
    }  # fmt: skip
    whole = [choice.message.content for choice in client.chat.completions.create(**parameters).choices]
    assert len(set(whole)) == 3
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**parameters, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole
    (second,) = client.chat.completions.create(**{**parameters, "n": 1, "seed": 6}).choices
    assert second.message.content == whole[1]


def test_log_probabilities_have_text_bytes_and_alternatives(client: OpenAI) -> None:
    parameters: dict[str, Any] = {
        "model": "tone", "messages": HELLO, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    (choice,) = client.chat.completions.create(**parameters).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    for token in choice.logprobs.content:
        assert token.bytes is not None
        assert bytes(token.bytes).decode(errors="replace") == token.token
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob == token.logprob < 0, "greedy: the token is the first alternative"
    streamed = [
        token
        for chunk in client.chat.completions.create(**parameters, stream=True)
        for part in chunk.choices
        if part.logprobs
        for token in part.logprobs.content or []
    ]
    assert streamed == choice.logprobs.content


def test_the_end_token_is_in_no_log_probabilities(client: OpenAI) -> None:
    stopped = []
    for seed in range(6):
        parameters: dict[str, Any] = {
            "model": "tiny-llama", "messages": HELLO, "max_tokens": 30, "temperature": 1, "seed": seed,
            "logprobs": True, "logit_bias": {"1": 4},
        }  # fmt: skip
        (choice,) = client.chat.completions.create(**parameters).choices
        parts = [part for chunk in client.chat.completions.create(**parameters, stream=True) for part in chunk.choices]
        streamed = [token for part in parts if part.logprobs for token in part.logprobs.content or []]
        found = (choice.logprobs and choice.logprobs.content) or []
        assert streamed == found
        assert "<end>" not in [token.token for token in found]
        stopped += [choice.message.content] if choice.finish_reason == "stop" and choice.message.content else []
    assert stopped


async def test_a_held_token_that_is_no_end_token_comes_later() -> None:
    first, second = TokenLogprob(5, -1.0, (), " a", b" a"), TokenLogprob(6, -2.0, (), "b", b"b")

    async def parts(end: FinishReason) -> Parts:
        yield 0, GenerationDelta("", (5,), (first,))  # held back: it may be part of a stop sequence
        yield None
        yield 0, GenerationDelta("a", (6,), (second,))
        yield 0, GenerationEnd(end, 2, None, None, None, "")

    async def tokens(end: FinishReason) -> list[TokenLogprob]:
        found = [part async for part in only_text_tokens(parts(end))]
        return [one for part in found if part for one in getattr(part[1], "logprobs", ())]

    assert await tokens(FinishReason.EOS) == await tokens(FinishReason.STOP_SEQUENCE) == [first]
    assert await tokens(FinishReason.LENGTH) == [first, second]


def test_the_tokens_of_a_stop_sequence_are_in_no_log_probabilities(client: OpenAI) -> None:
    parameters: dict[str, Any] = {
        "model": "tiny-llama", "messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True,
        "logit_bias": {str(5 + index): 30 for index in range(65, 91)},
    }  # fmt: skip
    (choice,) = client.chat.completions.create(**parameters).choices
    written = choice.message.content or ""
    for stop in (written[:1], written[3:6], written[9:]):
        (cut,) = client.chat.completions.create(**parameters, stop=[stop, "never"]).choices
        assert cut.message.content == written.partition(stop)[0]
        found = (cut.logprobs and cut.logprobs.content) or []
        assert "".join(token.token for token in found) == cut.message.content
        parts = [
            part
            for chunk in client.chat.completions.create(**parameters, stop=[stop, "never"], stream=True)
            for part in chunk.choices
        ]
        assert [token for part in parts if part.logprobs for token in part.logprobs.content or []] == found


@pytest.mark.parametrize("echo", [False, True])
def test_the_tokens_of_a_completion_are_those_of_its_text(client: OpenAI, echo: bool) -> None:
    parameters: dict[str, Any] = {
        "model": "tiny-llama", "prompt": ["hello", "abc"], "max_tokens": 12, "temperature": 0, "logprobs": 1, "n": 2,
        "logit_bias": {str(5 + index): 30 for index in range(65, 91)},
    }  # fmt: skip
    written = client.completions.create(**parameters).choices[0].text
    ends: dict[str, Any] = {"logit_bias": {"1": 100}}
    for more in ({"stop": written[:1]}, {"stop": [written[3:6], "never"]}, {"stop": written[9:]}, {}, ends):
        choices = client.completions.create(**{**parameters, **more}, echo=echo).choices
        assert all(choice.logprobs for choice in choices), "also without a token"
        found = [(choice.text, choice.logprobs.tokens if choice.logprobs else None) for choice in choices]
        assert [text for text, _ in found] == ["".join(tokens or []) for _, tokens in found]
        streamed: list[tuple[str, list[str]]] = [("", []) for _ in choices]
        for chunk in client.completions.create(**{**parameters, **more}, echo=echo, stream=True):
            for part in chunk.choices:
                text, tokens = streamed[part.index]
                streamed[part.index] = text + part.text, tokens + ((part.logprobs and part.logprobs.tokens) or [])
        assert streamed == [(text, tokens or []) for text, tokens in found]


def test_a_conversation_with_developer_and_parts_is_read_as_system_and_text(client: OpenAI, services: World) -> None:
    def answer(messages: Any) -> str | None:
        found = client.chat.completions.create(model="tone", messages=messages, max_tokens=8, temperature=0)
        return found.choices[0].message.content

    before: Any = client.chat.completions.create(model="tone", messages=HELLO, max_tokens=3).choices[0].message
    plain = answer(
        [
            {"role": "system", "content": "be\nbrief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": before.content},
            {"role": "user", "content": "again"},
        ]
    )
    parts = [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
    assert plain == answer(
        [{"role": "developer", "content": parts}, *HELLO, before, {"role": "user", "content": "again"}]
    )


def test_a_user_always_gets_the_same_version_of_a_weighted_alias(client: OpenAI, services: World) -> None:
    services.store.set_alias("tone", "split", [AliasTarget(1, 1), AliasTarget(2, 1)])
    wait_until(lambda: "tone@split" in {model.id for model in client.models.list()})
    ask: dict[str, Any] = {"model": "tone@split", "messages": HELLO, "max_tokens": 1}
    chosen = [{client.chat.completions.create(**ask, user=f"user-{n}").model for _ in range(2)} for n in range(16)]
    assert all(len(models) == 1 for models in chosen)
    assert set().union(*chosen) == {"tone@1", "tone@2"}


def test_stop_penalties_and_top_p_are_passed_on(client: OpenAI, services: World) -> None:
    def answer(**more: Any) -> Any:
        made = client.chat.completions.create(model="tone", messages=HELLO, max_tokens=12, seed=1, **more)
        return made.choices[0]

    whole = answer(temperature=0).message.content
    stop = whole[3:5]
    for given in (stop, [stop, "never"]):
        stopped = answer(temperature=0, stop=given)
        assert stopped.message.content == whole[: whole.index(stop)]
        assert stopped.finish_reason == "stop"
    assert answer(temperature=2.0, top_p=1e-6).message.content == whole, "only the most probable token is left"
    penalised = answer(temperature=0, frequency_penalty=2.0, presence_penalty=2.0).message.content
    expected = services.loop.run(
        services.replica.generate("hello", "tone", max_new_tokens=12, frequency_penalty=2.0, presence_penalty=2.0)
    )
    assert penalised == expected.output.text


def test_completions_of_texts_and_token_ids(client: OpenAI, services: World) -> None:
    made = client.completions.create(model="tiny-llama", prompt="hello", max_tokens=6, temperature=0, logprobs=2)
    (choice,) = made.choices
    assert made.object == "text_completion"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs or ()) >= 5
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]
    ids = list(map(int, services.loop.run(_ids(services, "hello"))))
    for prompt in (ids, [ids, ids], ["hello", "hello"]):
        more = client.completions.create(model="tiny-llama", prompt=prompt, max_tokens=6, temperature=0)
        assert {one.text for one in more.choices} == {choice.text}
    assert made.usage is not None
    assert more.usage is not None
    assert more.usage.prompt_tokens == 2 * made.usage.prompt_tokens
    twice = client.completions.create(
        model="tone", prompt=["a", "b"], n=2, max_tokens=4, seed=3, temperature=1, stream=True
    )
    texts = ["", "", "", ""]
    for chunk in twice:
        for one in chunk.choices:
            texts[one.index] += one.text
    whole = client.completions.create(model="tone", prompt=["a", "b"], n=2, max_tokens=4, seed=3, temperature=1)
    assert texts == [one.text for one in whole.choices]


def test_echo_puts_the_input_and_its_log_probabilities_first(client: OpenAI) -> None:
    parameters: dict[str, Any] = {
        "model": "tiny-llama", "prompt": ["hello", "abc"], "max_tokens": 3, "temperature": 0, "logprobs": 1, "n": 2,
    }  # fmt: skip
    plain = client.completions.create(**parameters)
    echoed = client.completions.create(**parameters, echo=True)
    assert [choice.text for choice in echoed.choices] == [
        text + choice.text for text, choice in zip(("hello", "hello", "abc", "abc"), plain.choices, strict=True)
    ]
    for choice in echoed.choices:
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.text_offset is not None
        assert logprobs.token_logprobs[0] is None
        assert all(value is not None and value < 0 for value in logprobs.token_logprobs[1:])
        assert logprobs.text_offset[:4] == [0, 1, 2, 3]
    assert echoed.usage == plain.usage
    scored = client.completions.create(**{**parameters, "max_tokens": 0}, echo=True)
    assert [choice.text for choice in scored.choices] == ["hello", "hello", "abc", "abc"]
    for whole, choice in zip(echoed.choices, scored.choices, strict=True):
        assert choice.finish_reason == "length"
        assert whole.logprobs is not None
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == (whole.logprobs.token_logprobs or [])[: len(choice.text)]
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    typed = {**parameters, "prompt": "hello<end>", "max_tokens": 0, "n": 1, "logit_bias": {"1": 100}}
    [choice] = client.completions.create(**typed, echo=True).choices
    assert choice.text == "hello<end>", "the text of the input, although the engine's next token is <end>"
    for more in ({}, {"echo": True, "stream": True}):
        with pytest.raises(openai.BadRequestError, match="can be 0 only with echo"):
            client.completions.create(**{**parameters, "max_tokens": 0, **more})
    streamed = ["", "", "", ""]
    tokens: list[list[str]] = [[], [], [], []]
    for chunk in client.completions.create(**parameters, echo=True, stream=True):
        for part in chunk.choices:
            streamed[part.index] += part.text
            tokens[part.index] += (part.logprobs.tokens or []) if part.logprobs else []
    assert streamed == [choice.text for choice in echoed.choices]
    assert tokens == [choice.logprobs.tokens for choice in echoed.choices if choice.logprobs]


async def _ids(services: World, text: str) -> Any:
    from prompttuning.v1 import common_pb2, generation_pb2

    template = common_pb2.Template(text="{input}", format=common_pb2.Template.FORMAT_TEXT)
    request = generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(text=text, template=template))
    return (await services.replica.stub.CountTokens(request)).token_ids
