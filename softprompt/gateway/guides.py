"""`response_format` and tools as guides, which let the model write only text of that form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from shared.values.guide import Guide
from softprompt.gateway import results
from softprompt.gateway.errors import bad_value, missing, unsupported
from softprompt.gateway.fields import Fields, else_saying

Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]{1,64}$"),
    else_saying("must be a string of 1 to 64 letters (A to Z, a to z), digits, '_' and '-'"),
]
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class JsonSchema(Fields):
    """A named JSON Schema. `strict` changes nothing: an answer always has the form of its schema."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


def check_members(type: str, place: str, needed: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Raises ApiError naming a member of `place` that a JSON Schema needs, or that only a JSON Schema has."""
    for name, value in {**needed, **(optional or {})}.items():
        if type == "json_schema" and value is None and name in needed:
            raise missing(f"{place}.{name}")
        if type != "json_schema" and value is not None:
            raise bad_value(f"{place}.{name}", "is only for the type json_schema")


def guide_of(type: str, schema: Mapping[str, Any] | None) -> Guide | None:
    """The guide to a form of answers; None for text."""
    wanted = _ANY_OBJECT if type == "json_object" else schema
    return None if wanted is None else Guide(json_schema=wanted)


class ResponseFormat(Fields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def guide(self) -> Guide | None:
        """The guide; None for text. Raises ApiError."""
        check_members(self.type, "response_format", needed={"json_schema": self.json_schema})
        return guide_of(self.type, self.json_schema.schema_ if self.json_schema else None)


class Function(Fields):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and value.get("type") != "object":
            raise ValueError('must be a schema of "type": "object", because arguments have names')
        return value


class Tool(Fields):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The tool to call."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool,
    else_saying('must be "none", "required" or {"type": "function", "function": {"name": NAME}}'),
]


@dataclass(frozen=True)
class Call:
    """A call that the model must write: of the function `name`, or, if it is empty, of one of several."""

    name: str
    guide: Guide
    param: str
    """The parameter that has its schema."""

    def read(self, text: str) -> tuple[str, str]:
        """The function's name and its arguments (JSON) in an answer. Of an answer that was cut, what is there."""
        if self.name:
            return self.name, text
        try:
            found = json.loads(text)
            return str(found["name"]), json.dumps(found["arguments"], ensure_ascii=False)
        except (ValueError, KeyError, TypeError):
            match = re.match(r'\s*{\s*"name"\s*:\s*"([\w-]*)"(?:\s*,\s*"arguments"\s*:\s*)?', text)
            return (match[1], text[match.end() :]) if match else ("", text)

    def message(self, text: str) -> dict[str, Any]:
        """The call as a part of a message. Each has a new id."""
        name, arguments = self.read(text)
        return {"id": results.new_id("call"), "type": "function", "function": {"name": name, "arguments": arguments}}


def call_of(tools: list[Tool] | None, choice: ToolChoice | None) -> Call | None:
    """The call that a request demands; None if the model only answers. Raises ApiError."""
    if not tools:
        if choice not in (None, "none"):
            raise bad_value("tool_choice", "needs tools")
        return None
    if choice == "none":
        return None
    if choice is None or choice == "auto":
        reason = "models here don't decide between answer and call"
        raise unsupported("tool_choice", f"must be none, required or a function: {reason}")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_value("tools", "two functions have the same name")
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise bad_value("tool_choice", f"{choice.function.name[:80]!r} is not one of the tools")
        names = [choice.function.name]
    if len(names) == 1:
        (index,) = (index for index, tool in enumerate(tools) if tool.function.name == names[0])
        return Call(names[0], Guide(json_schema=_parameters(tools[index])), f"tools[{index}].function.parameters")
    for index, tool in enumerate(tools):
        if "$ref" in json.dumps(tool.function.parameters):
            reason = "can't have $ref beside other tools: name one function"
            raise unsupported(f"tools[{index}].function.parameters", reason)
    return Call("", Guide(json_schema={"anyOf": [_one_of_several(tool) for tool in tools]}), "tools")


def _parameters(tool: Tool) -> Mapping[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _one_of_several(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": _parameters(tool)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
