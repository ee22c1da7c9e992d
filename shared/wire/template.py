"""The `Template` message as `Template`, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prompttuning.v1 import common_pb2

from shared.values.template import INPUT_FIELD, Template
from shared.violations import Violations
from shared.wire.enums import TEMPLATE_FORMATS
from shared.wire.mirror import read_fields, reader, write


@reader(Template)
def read_template(message: common_pb2.Template) -> Template:
    """The template as the caller wrote it, unchecked: an empty text is the input alone."""
    found = Template(**read_fields(Template, message))
    return replace(found, text=found.text or INPUT_FIELD, arguments=_with_integers(found.arguments))


def read_checked_template(message: common_pb2.Template, field: str, violations: Violations) -> Template | None:
    """The template, or None after its problems were added to `violations`."""
    TEMPLATE_FORMATS.checked(message.format, f"{field}.format", violations)
    return read_template(message)


def write_template(template: Template) -> common_pb2.Template:
    """The message, without what the service added to the template."""
    return write(template, common_pb2.Template(), "template")


def _with_integers(value: Any) -> Any:
    """JSON as the caller wrote it: a Struct has every number as a float, and templates print 3.0 unlike 3."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
