"""The `Template` message as `Template`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prompttuning.v1 import common_pb2

from shared.values.template import INPUT_FIELD, Template
from shared.violations import Violations
from shared.wire.mirror import read_fields, reader


@reader(Template)
def read_template(
    message: common_pb2.Template, path: str = "template", violations: Violations | None = None
) -> Template:
    """The template as the caller wrote it, with unchecked ranges: an empty text is the input alone."""
    found = Template(**read_fields(Template, message, path, violations))
    return replace(found, text=found.text or INPUT_FIELD, arguments=_with_integers(found.arguments))


def _with_integers(value: Any) -> Any:
    """JSON as the caller wrote it: a Struct has every number as a float, and templates print 3.0 unlike 3."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
