"""Every parameter that OpenAI's client knows is offered, or refused by name with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import httpx
import pytest
from openai.types import completion_create_params as completion_parameters
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_parameters
from openai.types.fine_tuning import SupervisedHyperparametersParam, SupervisedMethodParam
from openai.types.fine_tuning import job_create_params as job_parameters
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseInputTextParam,
    ResponseOutputMessageParam,
    ResponseOutputTextParam,
    ResponseTextConfigParam,
)
from openai.types.responses import response_create_params as response_parameters
from openai.types.shared_params import FunctionDefinition, ResponseFormatJSONSchema
from openai.types.shared_params.response_format_json_schema import JSONSchema

from softprompt.gateway.refused import REFUSED_FIELDS
from tests.softprompt.gateway.test_errors import CHAT, MESSAGES, post


@pytest.mark.parametrize(
    ("path", "parameters", "body"),
    [
        ("chat/completions", chat_parameters.CompletionCreateParamsBase, CHAT),
        ("completions", completion_parameters.CompletionCreateParamsBase, {"model": "tone", "prompt": "x"}),
        ("responses", response_parameters.ResponseCreateParamsBase, {"model": "tone", "input": "x"}),
        ("fine_tuning/jobs", job_parameters.JobCreateParams, {"model": "tiny-llama", "training_file": "file-x"}),
    ],
)
def test_every_parameter_of_the_client_is_offered_or_refused_with_the_reason(
    http: httpx.Client, path: str, parameters: type, body: dict[str, Any]
) -> None:
    described = http.get("/openapi.json").json()
    schema = described["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    offered = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    names = get_type_hints(parameters).keys() - offered.keys()
    assert len(names) < len(offered) or path == "responses"
    for name in names:
        status, error = post(http, path, {**body, name: True})
        assert (status, error["param"], error["code"]) == (400, name, "unsupported_parameter")
        assert name in REFUSED_FIELDS


def test_every_parameter_in_an_object_of_the_client_is_offered_or_refused_with_the_reason(http: httpx.Client) -> None:
    def content(part: Any) -> Any:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **part}]}]}

    def input_part(part: Any) -> Any:
        return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", **part}]}]}

    function = {"name": "f"}
    schema = {"name": "x", "schema": {}}
    chat, response, job = "chat/completions", "responses", "fine_tuning/jobs"
    objects: list[tuple[str, str, type, Callable[[Any], Any]]] = [
        (chat, "ChatMessage", ChatCompletionUserMessageParam, lambda m: {"messages": [{**MESSAGES[0], **m}]}),
        (chat, "ChatMessage", ChatCompletionAssistantMessageParam, lambda m: {"messages": [{**MESSAGES[0], **m}]}),
        (chat, "TextPart", ChatCompletionContentPartTextParam, content),
        (chat, "StreamOptions", ChatCompletionStreamOptionsParam, lambda s: {"stream": True, "stream_options": s}),
        (chat, "Tool", ChatCompletionFunctionToolParam,
         lambda t: {"tools": [{"type": "function", "function": function, **t}]}),
        (chat, "Function", FunctionDefinition,
         lambda f: {"tools": [{"type": "function", "function": {**function, **f}}]}),
        (chat, "ResponseFormat", ResponseFormatJSONSchema,
         lambda r: {"response_format": {"type": "json_schema", "json_schema": schema, **r}}),
        (chat, "JsonSchema", JSONSchema,
         lambda s: {"response_format": {"type": "json_schema", "json_schema": {**schema, **s}}}),
        (response, "InputMessage", EasyInputMessageParam, lambda m: {"input": [{**MESSAGES[0], **m}]}),
        (response, "InputMessage", ResponseOutputMessageParam, lambda m: {"input": [{**MESSAGES[0], **m}]}),
        (response, "TextPart", ResponseInputTextParam, input_part),
        (response, "TextPart", ResponseOutputTextParam, input_part),
        (response, "TextOptions", ResponseTextConfigParam, lambda t: {"text": t}),
        (response, "TextFormat", ResponseFormatTextJSONSchemaConfigParam,
         lambda f: {"text": {"format": {"type": "json_schema", **schema, **f}}}),
        (job, "Method", job_parameters.Method, lambda m: {"method": {"type": "supervised", **m}}),
        (job, "Supervised", SupervisedMethodParam, lambda s: {"method": {"type": "supervised", "supervised": s}}),
        (job, "TuningHyperparameters", SupervisedHyperparametersParam,
         lambda h: {"method": {"type": "supervised", "supervised": {"hyperparameters": h}}}),
        (job, "TuningHyperparameters", job_parameters.Hyperparameters, lambda h: {"hyperparameters": h}),
    ]  # fmt: skip
    bodies = {
        chat: CHAT,
        response: {"model": "tone", "input": "x"},
        job: {"model": "tiny-llama", "training_file": "file-x"},
    }
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    for path, name, typed, changed in objects:
        offered = schemas[name]["properties"]
        for field in sorted({"nonsense", *get_type_hints(typed)} - offered.keys()):
            status, error = post(http, path, {**bodies[path], **changed({field: {}})})
            code = "unknown_parameter" if field == "nonsense" else "unsupported_parameter"
            assert (status, error["code"]) == (400, code), (typed.__name__, field, error)
            assert error["param"].endswith(f".{field}")
