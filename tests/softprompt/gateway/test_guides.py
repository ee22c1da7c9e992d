"""Answers in a given form through OpenAI's own client: JSON, schemas, calls of functions, biases of tokens."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from tokenizers.pre_tokenizers import ByteLevel

MESSAGES: Any = [{"role": "user", "content": "hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
ALPHABET = sorted(ByteLevel.alphabet())
NO_SPACE = {str(5 + ALPHABET.index(space)): -100 for space in "ĠĊĉč"}
"""A random model would write spaces between JSON's tokens for long."""
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


def function(name: str, schema: Any = SCHEMA) -> Any:
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}


@pytest.mark.parametrize("model", ["tone", "tiny-llama"])
def test_an_answer_is_valid_under_its_schema(client: OpenAI, model: str) -> None:
    parameters: dict[str, Any] = {"model": model, "messages": MESSAGES, "temperature": 1, "logit_bias": NO_SPACE}
    for number in range(2):
        made = client.chat.completions.create(**{**parameters, "seed": number}, response_format=FORMAT)
        jsonschema.validate(json.loads(made.choices[0].message.content or ""), SCHEMA)
        assert made.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**parameters, response_format=FORMAT, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    jsonschema.validate(json.loads(text), SCHEMA)
    answer: Any = client.responses.create(
        model=model,
        input="hello",
        text={"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA}},
        temperature=1,
    )
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


class Thing(BaseModel):
    good: bool


def test_the_clients_own_parsing_of_models(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="tone", messages=MESSAGES, response_format=Thing, logit_bias=NO_SPACE)
    assert isinstance(parsed.choices[0].message.parsed, Thing)
    assert isinstance(
        client.responses.parse(model="tone", input="hello", text_format=Thing, temperature=1).output_parsed, Thing
    )


@pytest.mark.parametrize(
    ("tools", "choice", "names"),
    [
        ([function("paint")], "required", {"paint"}),
        ([function("paint"), function("wash")], {"type": "function", "function": {"name": "wash"}}, {"wash"}),
        ([function("paint"), function("wash")], "required", {"paint", "wash"}),
        ([function("nothing", None)], "required", {"nothing"}),
    ],
)
def test_a_function_is_called_with_valid_arguments(client: OpenAI, tools: Any, choice: Any, names: set[str]) -> None:
    parameters: dict[str, Any] = {
        "model": "tone", "messages": MESSAGES, "tools": tools, "tool_choice": choice, "logit_bias": NO_SPACE, "seed": 2,
    }  # fmt: skip
    (made,) = client.chat.completions.create(**parameters).choices
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    assert made.message.tool_calls
    (call,) = made.message.tool_calls
    assert call.type == "function"
    assert call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), tools[0]["function"]["parameters"] or {})
    name = arguments = ""
    for chunk in client.chat.completions.create(**parameters, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, json.loads(arguments)) == (call.function.name, json.loads(call.function.arguments))


@pytest.mark.parametrize("tools", [[function("paint")], [function("paint"), function("wash")]], ids=["one", "two"])
def test_each_choice_calls_with_an_id_and_log_probabilities_of_its_own(client: OpenAI, tools: Any) -> None:
    parameters: dict[str, Any] = {
        "model": "tone", "messages": MESSAGES, "tools": tools, "tool_choice": "required", "logit_bias": NO_SPACE,
        "n": 2, "seed": 2, "logprobs": True,
    }  # fmt: skip
    whole = client.chat.completions.create(**parameters).choices
    assert len({choice.message.tool_calls[0].id for choice in whole if choice.message.tool_calls}) == 2
    ids: list[set[str]] = [set(), set()]
    tokens: list[list[Any]] = [[], []]
    for chunk in client.chat.completions.create(**parameters, stream=True):
        for part in chunk.choices:
            ids[part.index] |= {call.id for call in part.delta.tool_calls or () if call.id}
            tokens[part.index] += (part.logprobs.content or []) if part.logprobs else []
    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]
    for found, choice in zip(tokens, whole, strict=True):
        expected = (choice.logprobs.content if choice.logprobs else None) or []
        assert expected
        assert [one.token for one in found] == [one.token for one in expected]
        # Near, because torch's float32 products differ in the last bits with what else is in a step.
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-3)


def test_biases_change_what_is_sampled(client: OpenAI) -> None:
    bias = {str(5 + ord("x") - 33): 100}
    made = client.chat.completions.create(model="tone", messages=MESSAGES, logit_bias=bias, max_tokens=5, temperature=0)
    text = made.choices[0].message.content
    assert text is not None
    assert len(set(text)) == 1
    assert (
        client.completions.create(model="tone", prompt="hello", logit_bias=bias, max_tokens=5).choices[0].text == text
    )


@pytest.mark.parametrize("left_out", ["name", "schema"])
def test_a_text_format_without_its_name_or_schema_is_refused(http: httpx.Client, left_out: str) -> None:
    format = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    del format[left_out]
    refused = http.post("/v1/responses", json={"model": "tone", "input": "x", "text": {"format": format}})
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == (f"text.format.{left_out}", "missing_required_parameter")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "response_format"),
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            "response_format",
        ),
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"a": "y" * 70_000}}}},
            "response_format",
        ),
        ({"tools": [function("paint")]}, "tool_choice"),
        ({"tools": [function("paint")], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [function("a", {"type": "array"})], "tool_choice": "none"}, "tools"),
        ({"tools": [function("a"), function("a")], "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools"),
        ({"tools": [function("a")], "tool_choice": "required", "response_format": FORMAT}, "response_format"),
        (
            {"tools": [function("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}},
            "tool_choice",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(2000)}}, "logit_bias"),
    ],
)
def test_a_form_that_can_not_be_is_refused_by_name(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = http.post("/v1/chat/completions", json={"model": "tone", "messages": MESSAGES, **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].partition("[")[0].partition(".")[0] == param, response.text


def test_a_schema_that_is_refused_is_named_with_a_plain_reason(http: httpx.Client) -> None:
    schema: dict[str, Any] = {"type": "object", "not": {}}
    text = 'these keywords are not supported: "not"'
    for path, change, param in (
        (
            "chat/completions",
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": schema}}},
            "response_format.json_schema.schema",
        ),
        (
            "chat/completions",
            {
                "tools": [function("a"), function("b", schema)],
                "tool_choice": {"type": "function", "function": {"name": "b"}},
            },
            "tools[1].function.parameters",
        ),
        ("chat/completions", {"tools": [function("a"), function("b", schema)], "tool_choice": "required"}, "tools"),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
            "text.format.schema",
        ),
    ):
        body = {"model": "tone", ("input" if path == "responses" else "messages"): MESSAGES, **change}
        error = http.post(f"/v1/{path}", json=body).json()["error"]
        assert (error["param"], error["message"]) == (param, f"{param}: {text}")


def test_tools_that_may_not_be_called_change_nothing(client: OpenAI) -> None:
    parameters: dict[str, Any] = {"model": "tone", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    plain = client.chat.completions.create(**parameters)
    tools: Any = client.chat.completions.create(**parameters, tools=[function("paint")], tool_choice="none")
    assert tools.choices == plain.choices
    called: Any = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}
    with pytest.raises(openai.BadRequestError, match="tool_calls"):
        client.chat.completions.create(**{**parameters, "messages": [*MESSAGES, called, *MESSAGES]})
