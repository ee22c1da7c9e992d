"""Writes `docs/proto.md` from the protos and their comments: `python -m tests.proto_reference`. A test checks that it
is current.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/proto.md"
_BEGIN = """# The gRPC API

Generated from `protos/prompttuning/v1` by `python -m tests.proto_reference`; change the comments there. The package is
`prompttuning.v1`. How to generate stubs, and what errors contain, is on the page about [other languages](clients.md).
"""
Place = tuple[int, ...]
"""Where a declaration is in its file, as in descriptor.proto: field numbers and indices."""
_MESSAGE, _ENUM, _SERVICE, _SYNTAX = 4, 5, 6, 12
_FIELD, _NESTED, _NESTED_ENUM, _ONEOF, _VALUE, _METHOD = 2, 3, 4, 8, 2, 2


def reference() -> str:
    """The page."""
    parts = [_BEGIN]
    for file in _files():
        comments = {tuple(item.path): _text(item.leading_comments) for item in file.source_code_info.location}
        parts += [f"\n## {Path(file.name).name}\n", comments.get((_SYNTAX,), "")]
        parts += _services(file, comments)
        for index, message in enumerate(file.message_type):
            parts += _message(message, message.name, (_MESSAGE, index), comments)
        for index, enum in enumerate(file.enum_type):
            parts += _enum(enum, enum.name, (_ENUM, index), comments)
    return "\n".join(parts).rstrip() + "\n"


def _files() -> Iterator[FileDescriptorProto]:
    sources = sorted(path.relative_to(ROOT / "protos") for path in (ROOT / "protos").glob("prompttuning/**/*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "set")
        arguments = [f"-I{ROOT / 'protos'}", f"-I{files('grpc_tools') / '_proto'}", "--include_source_info"]
        if protoc.main(["protoc", *arguments, f"--descriptor_set_out={target}", *map(str, sources)]) != 0:
            raise SystemExit("protoc failed")
        yield from FileDescriptorSet.FromString(target.read_bytes()).file


def _services(file: FileDescriptorProto, comments: dict[Place, str]) -> Iterator[str]:
    for index, service in enumerate(file.service):
        path = (_SERVICE, index)
        yield f"\n### {service.name}\n\n{comments[path]}\n"
        yield "| method | request | response | meaning |\n|---|---|---|---|"
        for number, method in enumerate(service.method):
            cells = (
                f"`{method.name}`",
                f"{'stream of ' if method.client_streaming else ''}{_link(method.input_type)}",
                f"{'stream of ' if method.server_streaming else ''}{_link(method.output_type)}",
                comments[*path, _METHOD, number],
            )
            yield _row(cells)


def _message(message: DescriptorProto, name: str, path: Place, comments: dict[Place, str]) -> Iterator[str]:
    yield f"\n### {name}\n\n{comments.get(path, '')}"
    if message.field:
        yield "\n| field | type | meaning |\n|---|---|---|"
    for index, field in enumerate(message.field):
        meaning = comments.get((*path, _FIELD, index), "")
        if field.HasField("oneof_index") and not field.proto3_optional:
            group = message.oneof_decl[field.oneof_index].name
            meaning = f"One of `{group}`. {comments.get((*path, _ONEOF, field.oneof_index), '')} {meaning}"
        yield _row((f"`{field.name}`", _type(field, message), meaning))
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, f"{name}.{nested.name}", (*path, _NESTED, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, _NESTED_ENUM, index), comments)


def _enum(enum: Any, name: str, path: Place, comments: dict[Place, str]) -> Iterator[str]:
    yield f"\n### {name}\n\n{comments.get(path, '')}\n\n| value | number | meaning |\n|---|---|---|"
    for index, value in enumerate(enum.value):
        yield _row((f"`{value.name}`", str(value.number), comments.get((*path, _VALUE, index), "")))


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{nested.name}"):
            key, value = nested.field
            return f"map of {_type(key, nested)} to {_type(value, nested)}"
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    kind = _link(field.type_name) if field.type_name else name
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".prompttuning.v1.")
    if name == type_name:
        return f"`{type_name.lstrip('.')}`"
    return f"[{name}](#{name.lower().replace('.', '')})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _text(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines()).replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
