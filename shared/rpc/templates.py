"""Reads the fields of the `Template` message that mean the same in both services."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from prompttuning.v1 import common_pb2


def template_options(message: common_pb2.Template) -> dict[str, Any]:
    """Keyword arguments of `shared.text.template.Template` for all fields of the message but text and format."""
    return {
        "system": message.system,
        "system_override": message.system_override,
        "arguments": _with_integers(MessageToDict(message.arguments)),
        "date": message.date,
    }


def _with_integers(value: Any) -> Any:
    """The value with whole floats as integers: a Struct holds only floats, but templates must print 3 as 3."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
