"""The OpenAPI description, made from the endpoints and the models of their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from softprompt.gateway.endpoint import Endpoint

_REFUSALS = {
    "400": "A parameter is wrong, unknown or not offered; `param` names it.",
    "401": "The token is missing or not valid.",
    "403": "The caller's roles do not allow this.",
    "404": "The model, file or job does not exist, or the caller may not use it.",
    "408": "The body did not arrive in time.",
    "409": "The state has changed meanwhile.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or not a form.",
    "421": "The host name is not this gateway's.",
    "431": "The head is too large.",
    "429": "A limit is reached: `Retry-After` says when to try again; or a budget is used up: `insufficient_quota`.",
    "500": "An internal error.",
    "501": "The service is too old for this.",
    "503": "A service is not available; `Retry-After` says when to try again.",
    "504": "The answer took too long.",
}


@cache
def openapi(endpoints: Sequence[tuple[str, str, Endpoint]]) -> dict[str, Any]:
    """The description of these endpoints, each with its method and path."""
    models = {one.body for _, _, one in endpoints if one.body is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for method, path, one in endpoints:
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = _operation(path, one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "softprompt gateway",
            "version": version("softprompt"),
            "description": "OpenAI's API over prompts of one frozen base model.",
        },
        "paths": paths,
        "security": [{"token": []}, {}],
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, one: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if one.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if one.downloads:
        content = {"application/jsonl": {"schema": {"type": "string"}}}
    refusals = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, text in _REFUSALS.items()
    }
    described: dict[str, Any] = {
        "operationId": one.operation,
        "summary": (one.handler.__doc__ or "").strip().splitlines()[0],
        "responses": {"200": {"description": "The result.", "content": content}, **refusals},
    }
    names = re.findall(r"{(\w+)", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names] + [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            **({"style": "deepObject", "explode": True} if schema.get("type") == "object" else {}),
        }
        for name, schema in one.query.items()
    ]
    if parameters:
        described["parameters"] = parameters
    if one.body is not None:
        schema = {"$ref": f"#/components/schemas/{one.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if one.form is not None:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": one.form}}}
    return described


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
