"""JSON in messages: read as protobuf reads it, and also what protobuf can't read but any client may send."""

from __future__ import annotations

import math

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from prompttuning.v1 import common_pb2

from shared.wire.generation import read_template


def test_json_is_read_as_protobuf_reads_it() -> None:
    arguments = Struct()
    arguments.update({"a": [1.5, "x", None, True, {"b": []}], "c": {}, "d": "", "e": False})
    assert dict(read_template(common_pb2.Template(arguments=arguments)).arguments) == MessageToDict(arguments)


def test_what_is_no_json_can_be_read() -> None:
    """Its check then names the field; an error of the conversion would be an internal one."""
    values = [Value(number_value=math.inf), Value()]
    arguments = Struct(fields={"a": Value(list_value=ListValue(values=values))})
    assert dict(read_template(common_pb2.Template(arguments=arguments)).arguments) == {"a": [math.inf, None]}
