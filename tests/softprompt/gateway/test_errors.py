"""Errors in the shape of OpenAI's API: what is refused is named, and nothing is ignored."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from shared.errors import Overloaded, Unavailable
from shared.store.usage import UsedUp
from softprompt.client.async_client import AsyncClient
from softprompt.gateway.answers import AnswerStreams
from softprompt.gateway.errors import api_error
from softprompt.gateway.refused import REFUSED_FIELDS
from tests.softprompt.gateway.running import World
from tests.waiting import wait_until

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "tone", "messages": MESSAGES}


def post(http: httpx.Client, path: str, body: Any, **options: Any) -> Any:
    """The status and the error of a refused request."""
    response = http.post(f"/v1/{path}", json=body, **options)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return response.status_code, error


@pytest.mark.parametrize(
    "name", sorted({*REFUSED_FIELDS, "nonsense"} - {"wandb", "integrations", "tools", "tool_choice", "stream_options"})
)
def test_a_parameter_that_is_not_offered_is_refused_by_name(http: httpx.Client, name: str) -> None:
    status, error = post(http, "chat/completions", {**CHAT, name: {}})
    assert (status, error["param"]) == (400, name)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("unsupported_parameter" if name in REFUSED_FIELDS else "unknown_parameter")
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"nonsense": None}, "nonsense", "unknown_parameter"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"messages": [{**MESSAGES[0], "name": "x"}]}, "messages[0].name", "unsupported_parameter"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
        ({"model": 7}, "model", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 11}, "temperature", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 1e300}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 1 << 70}, "seed", "invalid_value"),
        ({"logit_bias": {str(1 << 70): 1}}, "logit_bias", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1 << 40}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1 << 20}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "invalid_value"),
        ({"stop": ["x"] * 100}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": {}}, "stop", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 100}, "top_logprobs", "invalid_value"),
        ({"user": "x" * 10_000}, "user", "invalid_value"),
        ({"store": True}, "store", "invalid_value"),
        ({"store": 0}, "store", "invalid_value"),
        ({"parallel_tool_calls": 0}, "parallel_tool_calls", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_value_is_refused_with_its_name(
    http: httpx.Client, change: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    body = {**CHAT, **change} if not stream or "stream" in change or "stream_options" in change else {
        **CHAT, "stream": True, **change
    }  # fmt: skip
    status, error = post(http, "chat/completions", body)
    assert (status, error["param"], error["code"]) == (400, param, code), error["message"]
    assert "Value error" not in error["message"], "a word of pydantic's"


@pytest.mark.parametrize(
    "model", ["nothing", "tone@9", "tone@missing", "gpt-3.5-turbo", "tone@", "Tone", "../x", "a\0b"]
)
def test_a_model_that_is_not_there(client: OpenAI, model: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model=model, messages=MESSAGES, stream=stream)
        assert (error.value.code, error.value.param) == ("model_not_found", "model")
        assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b'{"model": NaN}', 400),
        (b'{"model": "tone", "temperature": Infinity, "messages": []}', 400),
        (b'{"model": "\xff"}', 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"a":' * 100_000, 400),
        (b"[" * 100_000, 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", 400),
        (b" " * (5 << 20), 413),
    ],
)
def test_a_body_that_is_not_json_or_too_large(http: httpx.Client, content: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    response = http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_errors_say_what_to_change(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    twice = http.post("/v1/chat/completions", content=b'{"model": "tone", "x": [{"n": 1, "n": 2}]}', headers=headers)
    assert twice.json()["error"]["message"] == "n: comes twice in one object"
    for change, text in (
        ({"logit_bias": {"-1": 1}}, "logit_bias: keys must be token ids, not '-1'"),
        ({"seed": -1}, f"seed: must be at least 0 and at most {(1 << 63) - 1}, is -1"),
        ({"messages": []}, "messages: must not be empty"),
        ({"model": ""}, "model: must not be empty"),
        ({"model": "x" * 201}, "model: must have at most 200 characters"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}] * 129},
            "tools: must have at most 128 items, has 129",
        ),
        ({"logit_bias": {"": 1}}, "logit_bias: keys must be token ids, not ''"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias: keys must be token ids, not '05'"),
        ({"seed": 1 << 63}, f"seed: {1 << 63} does not fit: it is out of range"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "any"},
            'tool_choice: must be "none", "required" or {"type": "function", "function": {"name": NAME}}',
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}, *MESSAGES]},
            "messages[0].tool_calls: must be empty: models here read no calls of tools and no results of tools",
        ),
        (
            {"messages": [{"role": "User", "content": "x"}]},
            "messages[0].role: must be 'system', 'developer', 'user' or 'assistant'",
        ),
        ({"store": True}, "store: must be false: the gateway stores no answers"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
            "tools[0].type: must be 'function': models here call functions only",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "x"}}, *MESSAGES]},
            "messages[0].audio: must be null: models here read and write text only",
        ),
        ({"messages": ["hello"]}, "messages[0]: must be an object"),
        ({"messages": "hello"}, "messages: must be a list"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "a", "content": "7 degrees"}]},
            "messages[0].role: must be 'system', 'developer', 'user' or 'assistant': "
            "models here read no calls of tools and no results of tools",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type: must be 'text', 'input_text' or 'output_text': "
            "models here read and write text only",
        ),
        (
            {"parallel_tool_calls": True},
            "Unsupported parameter: 'parallel_tool_calls': an answer has at most one tool call.",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "Unsupported parameter: 'stream_options.include_obfuscation': streams are not padded.",
        ),
    ):
        assert post(http, "chat/completions", {**CHAT, **change})[1]["message"] == text
    for prompt in ([5, 1 << 70], [5, -(1 << 40)]):
        error = post(http, "completions", {"model": "tone", "prompt": prompt})[1]
        assert error["param"] == "prompt[1]"
        assert error["message"].startswith(f"prompt[1]: {prompt[1]} does not fit")
    with_mark = http.post("/v1/chat/completions", content=b'\xef\xbb\xbf{"model": "tone"}', headers=headers)
    assert "byte order mark" in with_mark.json()["error"]["message"]
    status, error = post(http, "chat/completions", {**CHAT, "messages": [{"role": "user", "content": None}]})
    assert (status, error["param"]) == (400, "messages[0].content")
    assert "string" in error["message"]
    assert "list" in error["message"]
    missing = "file-" + "0" * 64
    assert http.get(f"/v1/files/{missing}").json()["error"]["message"] == f"No such file: {missing!r}"


def test_paths_methods_and_types_that_are_not_there(http: httpx.Client) -> None:
    for method, path, status, text in (
        ("GET", "/v1/nothing", 404, "there is no GET /v1/nothing; "),
        ("POST", "/chat/completions", 404, "there is no POST /chat/completions; "),
        ("GET", "/v1/models/", 404, "The model '' does not exist"),
        ("DELETE", "/v1/models/tone", 405, "there is no DELETE /v1/models/tone; "),
        ("GET", "/v1/chat/completions", 405, "there is no GET /v1/chat/completions; "),
        ("GET", "/%ff%fe", 404, "there is no GET /"),
        ("GET", "/models", 404, "there is no GET /models; "),
    ):
        response = http.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"].startswith(text)
    assert http.put("/v1/files").headers["allow"] == "GET, HEAD, POST"
    assert post(http, "chat/completions", CHAT, headers={"content-type": "text/plain"})[0] == 415
    status, error = post(http, "chat/completions", CHAT, headers={"content-encoding": "gzip"})
    assert (status, "gzip" in error["message"]) == (415, True)


def test_a_parameter_of_the_address_is_refused_by_name(http: httpx.Client) -> None:
    for path in ("models", "models/tone", "files/file-x", "fine_tuning/jobs/ftjob-x", "files?limit=1"):
        response = http.get(f"/v1/{path}{'&' if '?' in path else '?'}nonsense=1")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "nonsense"), path
    assert post(http, "chat/completions?stream=true", CHAT)[1]["param"] == "stream"


def test_request_ids_go_through_and_bad_ones_are_replaced(http: httpx.Client) -> None:
    for sent, kept in (("my-request.7", True), ("x" * 65, False), ("a b", False), ("é", False)):
        headers = {"x-request-id": sent.encode()}
        response = http.get("/v1/models", headers=headers)  # type: ignore[arg-type]
        assert (response.headers["x-request-id"] == sent) is kept
        assert response.status_code == 200


def test_pages_of_other_sites_and_other_host_names_are_refused(http: httpx.Client, services: World) -> None:
    host = f"127.0.0.1:{services.gateway.port}"
    for headers, status in (
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": f"http://{host}", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": f"http://{host}"}, 200),
    ):
        response = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}, headers=headers)
        assert response.status_code == status, headers


@pytest.mark.parametrize(("is_budget", "num_calls"), [(True, 1), (False, 3)])
def test_clients_do_not_try_again_when_a_budget_is_used_up(is_budget: bool, num_calls: int) -> None:
    calls = []

    def refuse(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        limit = Overloaded("full", retry_after_seconds=0.01)
        answer = api_error(UsedUp(budget="monthly", resets_at=4e9).error(3.9e9) if is_budget else limit).response()
        return httpx.Response(answer.status_code, headers=answer.headers.items(), content=bytes(answer.body))

    http: Any = httpx.Client(transport=httpx.MockTransport(refuse))
    with (
        OpenAI(api_key="x", base_url="http://gateway/v1", http_client=http, max_retries=2) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.models.list()
    assert len(calls) == num_calls
    kind = ("insufficient_quota", "insufficient_quota") if is_budget else ("rate_limit_error", "rate_limit_exceeded")
    assert (caught.value.type, caught.value.code) == kind
    assert ("retry-after" in caught.value.response.headers) is not is_budget


def num_failed(services: World, operation: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{services.gateway.metrics_port}/metrics", timeout=None).text
    wanted = f'softprompt_gateway_requests_total{{operation="{operation}",status="503"}} '
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(wanted)))


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("chat/completions", CHAT, "chat.completions.create"),
        ("completions", {"model": "tone", "prompt": "hello"}, "completions.create"),
        ("responses", {"model": "tone", "input": "hello"}, "responses.create"),
    ],
)
def test_a_stream_that_breaks_is_counted_with_the_status_of_its_error(
    services: World, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, operation: str
) -> None:
    async def broken(self: AnswerStreams) -> AsyncGenerator[None]:
        yield None
        raise Unavailable("the replica ended during the answer")

    before = num_failed(services, operation)
    monkeypatch.setattr(AnswerStreams, "parts", broken)
    answer = http.post(f"/v1/{path}", json={**body, "stream": True})
    assert answer.status_code == 200
    last: Any = json.loads(answer.text.strip().rpartition("data: ")[2])
    if path == "responses":
        assert last["type"] == "response.failed"
        last = last["response"]
    assert last["error"]["message"] == "the replica ended during the answer"
    wait_until(lambda: num_failed(services, operation) == before + 1)


def test_a_download_that_breaks_is_counted_as_failed(
    services: World, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: AsyncClient, dataset: str) -> AsyncGenerator[bytes]:
        yield b"{}"
        raise Unavailable("the trainer ended during the download")

    before = num_failed(services, "files.content")
    monkeypatch.setattr(AsyncClient, "download_dataset", broken)
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(f"/v1/files/file-{'0' * 64}/content")
    wait_until(lambda: num_failed(services, "files.content") == before + 1)
