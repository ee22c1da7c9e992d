"""The `Template` message as the services' `Template`, and back."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from prompttuning.v1 import common_pb2

from shared.text.template import INPUT_FIELD, Template
from shared.violations import Violations
from shared.wire.enums import TEMPLATE_FORMATS
from shared.wire.models import build


def read_template(message: common_pb2.Template, field: str, violations: Violations) -> Template | None:
    """The template, or None after its problems were added to `violations`.

    If the caller left the format out, `format` is not in the template's `model_fields_set`.
    """
    format = TEMPLATE_FORMATS.checked(message.format, f"{field}.format", violations)
    values: dict[str, object] = {
        "text": message.text or INPUT_FIELD,
        "system": message.system,
        "system_override": message.system_override,
        "arguments": _with_integers(MessageToDict(message.arguments)),
        "date": message.date,
    }
    return build(Template, values if format is None else {**values, "format": format}, field, {}, violations)


def write_template(template: Template) -> common_pb2.Template:
    """The message, without what the service added to the template."""
    message = common_pb2.Template(
        text=template.text,
        format=TEMPLATE_FORMATS.to_wire(template.format),
        system=template.system,
        system_override=template.system_override,
        date=template.date,
    )
    if template.arguments:
        message.arguments.update(template.arguments)
    return message


def _with_integers(value: Any) -> Any:
    """JSON as the caller wrote it: a Struct has every number as a float, and templates print 3.0 unlike 3."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
