"""The Responses API through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.softprompt.gateway.running import World


def test_a_text_is_answered_whole_and_streamed(client: OpenAI, services: World) -> None:
    expected = services.loop.run(services.replica.generate("hello", "tone", max_new_tokens=6))
    parameters: dict[str, Any] = {
        "model": "tone", "input": "hello", "max_output_tokens": 6, "temperature": 0, "metadata": {"a": "b"},
    }  # fmt: skip
    whole = client.responses.create(**parameters)
    assert whole.output_text == expected.output.text
    assert (whole.model, whole.metadata, whole.object) == ("tone@1", {"a": "b"}, "response")
    is_whole = whole.status == "completed"
    assert is_whole or (whole.incomplete_details and whole.incomplete_details.reason == "max_output_tokens")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        expected.start.input_tokens, expected.end.output_tokens,
    )  # fmt: skip
    events: list[Any] = list(client.responses.create(**parameters, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
    ]  # fmt: skip
    assert kinds[-1] == f"response.{whole.status}"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    with client.responses.stream(**parameters) as stream:
        *_, last = stream
    assert last.type == f"response.{whole.status}"


def test_instructions_and_turns_are_the_conversation(client: OpenAI) -> None:
    first = client.responses.create(model="tone", input="hello", max_output_tokens=4)
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        *[item.to_dict() for item in first.output],
        {"type": "message", "role": "user", "content": "again"},
    ]
    answer = client.responses.create(
        model="tone", instructions="be brief", input=turns, max_output_tokens=8, temperature=0, user="someone"
    )
    chat = client.chat.completions.create(
        model="tone",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "again"},
        ],
        max_tokens=8,
        temperature=0,
    )
    assert answer.output_text == chat.choices[0].message.content


def test_log_probabilities_and_truncation(client: OpenAI) -> None:
    parameters: dict[str, Any] = {"model": "tone", "input": "hello", "max_output_tokens": 4, "temperature": 0}
    whole: Any = client.responses.create(**parameters, top_logprobs=2, include=["message.output_text.logprobs"])
    logprobs = whole.output[0].content[0].logprobs
    assert len(logprobs) >= 3
    assert all(len(token.top_logprobs) == 2 for token in logprobs)
    long = {**parameters, "input": "hello " * 200}
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**long)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "input")
    assert client.responses.create(**long, truncation="auto").output_text != ""


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"reasoning": {}}, "reasoning"),
        ({"conversation": "x"}, "conversation"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 999}, "top_logprobs"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"model": "nothing"}, "model"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = http.post("/v1/responses", json={"model": "tone", "input": "hello", **change})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"].partition("[")[0] == param, response.text
