"""Answers have the shapes that OpenAI documents: they fit the types of OpenAI's client strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import Completion, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.softprompt.gateway.test_fine_tuning import EXAMPLES, ended, lines

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in "fg"]
WRITTEN = ("store", "user_provided_suffix", "bytes")
"""Fields that OpenAI's service writes and that some types of its client lack: of responses, of jobs, and of tokens in
streams of responses.
"""
NULL = ("finish_reason", "token_logprobs", "top_logprobs")
"""What OpenAI's service leaves empty although the type of completions does not: the reason before a stream's end, and
the log-probability of a text's first token.
"""


def other_fields(value: Any) -> Iterator[str]:
    """Names of the fields that a type does not have."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from other_fields(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from other_fields(item)


def check(kind: Any, value: Any) -> None:
    wrong: list[Any] = []
    try:
        made = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        assert set(other_fields(made)) <= set(WRITTEN), value
    except ValidationError as error:
        wrong = error.errors()
    assert [one for one in wrong if one["input"] is not None or not set(NULL) & set(one["loc"])] == []


def events(http: httpx.Client, path: str, body: Any) -> list[Any]:
    text = http.post(path, json={**body, "stream": True}).raise_for_status().text
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def check_answers(http: httpx.Client, path: str, body: Any, whole: Any, part: Any) -> None:
    """`whole`: type of an answer; `part`: of an event of its stream."""
    check(whole, http.post(path, json=body).raise_for_status().json())
    options: list[Any] = [{}] if "responses" in path else [{}, {"stream_options": {"include_usage": True}}]
    for more in options:
        found = events(http, path, {**body, **more})
        assert len(found) > 2
        for event in found:
            check(part, event)


@pytest.mark.parametrize("model", ["tone", "tiny-llama"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"tools": TOOLS[:1], "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": "required", "logprobs": True},
    ],
)
def test_chats(http: httpx.Client, model: str, more: Any) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, **more}
    check_answers(http, "/v1/chat/completions", body, ChatCompletion, ChatCompletionChunk)


@pytest.mark.parametrize("more", [{}, {"n": 2, "logprobs": 1, "echo": True}])
def test_completions(http: httpx.Client, more: Any) -> None:
    body = {"model": "tone", "prompt": ["hello", "abc"], "max_tokens": 4, **more}
    check_answers(http, "/v1/completions", body, Completion, Completion)


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.9, "user": "x", "truncation": "auto"},
        {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        {"instructions": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    ],
)
def test_responses(http: httpx.Client, more: Any) -> None:
    body = {"model": "tone", "input": "hello", "max_output_tokens": 24, **more}
    check_answers(http, "/v1/responses", body, Response, ResponseStreamEvent)


def test_files_jobs_and_models(http: httpx.Client, client: OpenAI) -> None:
    form = {"files": {"file": ("shapes.jsonl", lines(EXAMPLES[1:]))}, "data": {"purpose": "fine-tune"}}
    file = http.post("/v1/files", **form).raise_for_status().json()  # type: ignore[arg-type]
    job = {"model": "tiny-llama", "training_file": file["id"], "suffix": "shapes", "metadata": {"a": "b"}}
    made = http.post("/v1/fine_tuning/jobs", json=job).raise_for_status().json()
    check(FineTuningJob, made)
    url = f"/v1/fine_tuning/jobs/{made['id']}"
    check(FineTuningJob, http.get(url).json())
    check(FineTuningJob, http.post(f"{url}/cancel").json())
    for path, kind in (
        ("/v1/models", Model),
        ("/v1/files", FileObject),
        ("/v1/fine_tuning/jobs", FineTuningJob),
        (f"{url}/events", FineTuningJobEvent),
        (f"{url}/checkpoints", FineTuningJobCheckpoint),
    ):
        found = http.get(path).raise_for_status().json()
        assert found["object"] == "list"
        for one in found["data"]:
            check(kind, one)
    check(Model, http.get("/v1/models/tone").json())
    check(FileObject, file)
    ended(client, made["id"])
    check(FileDeleted, http.delete(f"/v1/files/{file['id']}").raise_for_status().json())
