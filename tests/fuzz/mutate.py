"""Damages valid inputs: bytes, JSON values and protobuf messages. Every choice is drawn from the given generator."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-308, 1e308, math.inf, -math.inf, math.nan)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "a",
        "default",
        "..",
        "../../etc/passwd",
        "-",
        "{input}",
        "{{7*7}}",
        "{% for x in y %}",
        "%s",
    ),
    *("<|im_end|>", "<|endoftext|>", "\ufeff", "\u202e", "\u0130", "e\u0301", "\U0010ffff", "\ufffe", "𝒳", "👩‍👩‍👧"),
    *(
        "null",
        "NaN",
        "1e999",
        "0x7f",
        "'; DROP TABLE jobs; --",
        "<script>alert(1)</script>",
        "=1+1",
        "a" * 70,
        "é" * 500,
    ),
    *('{"a": 1}', "[" * 200, "(a+)+$", "tone@default", "tone@7", "tone@99999999999999999999", "datasets/x"),
)
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[",
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"\r\n",
)


def damaged_bytes(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """`data` after one or a few changes; pieces of `others` may enter."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        start = random.randint(0, len(found))
        end = min(len(found), start + random.choice((1, 2, 4, 8, 64, 1024)))
        match random.randrange(8):
            case 0 if found and start < len(found):
                found[start] ^= 1 << random.randrange(8)
            case 1:
                del found[start:end]
            case 2:
                found[start:start] = random.choice(BYTES) * random.choice((1, 1, 1, 100))
            case 3:
                found[start:start] = found[start:end] * random.choice((1, 2, 50))
            case 4:
                other = random.choice(others)
                at = random.randint(0, len(other))
                found[start:end] = other[at : at + random.choice((1, 8, 64, 4096))]
            case 5:
                size = random.choice((1, 2, 4, 8))
                found[start : start + size] = (random.choice(NUMBERS) % 256**size).to_bytes(size, "little")
            case 6:
                del found[start:]
            case _:
                found[start:start] = random.choice(TEXTS).encode("utf-8", "surrogatepass")
    return bytes(found)


def odd_value(random: Random, depth: int = 0) -> Any:
    """Any JSON value."""
    match random.randrange(7 if depth < 3 else 5):
        case 0:
            return random.choice(NUMBERS)
        case 1:
            return random.choice(FLOATS[:7])
        case 2:
            return random.choice(TEXTS)
        case 3:
            return random.choice((None, True, False))
        case 4:
            return random.choice(([], {}, [[]], {"": ""}))
        case 5:
            return [odd_value(random, depth + 1) for _ in range(random.choice((1, 2, 200)))]
        case _:
            return {random.choice(TEXTS): odd_value(random, depth + 1) for _ in range(3)}


def damaged_json(value: Any, random: Random) -> Any:
    """A copy of a JSON value after one or a few changes, at places drawn at random."""
    holder = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        owner, key = random.choice(list(_places(holder)))
        match random.randrange(4):
            case 0 if owner is not holder:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[random.choice((*TEXTS, *owner))] = odd_value(random)
            case 2 if isinstance(owner, list) and owner is not holder:
                owner.extend([copy.deepcopy(owner[key])] * random.choice((1, 30)))
            case _:
                owner[key] = odd_value(random)
    return holder[0]


def _places(owner: Any) -> Any:
    for key, value in list(owner.items() if isinstance(owner, dict) else enumerate(owner)):
        yield owner, key
        if isinstance(value, dict | list):
            yield from _places(value)


def damage_message(message: Message, random: Random) -> None:
    """Sets or clears one or a few fields of the message or of messages inside it."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _damage_field(message, random)


def _damage_field(message: Message, random: Random, depth: int = 0) -> None:
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    present: list[Any] = [field for field, _ in message.ListFields()]
    field = random.choice(present if present and random.random() < 0.5 else fields)
    name = field.name
    if random.random() < 0.1:
        message.ClearField(name)
    elif field.message_type and field.message_type.GetOptions().map_entry:
        key, kind = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        if kind.message_type is None:
            getattr(message, name)[_scalar(key, random)] = _scalar(kind, random)
    elif field.is_repeated:
        many = random.choice((1, 1, 2, 300))
        if field.message_type is None:
            getattr(message, name).extend(_scalar(field, random) for _ in range(many))
        else:
            items = getattr(message, name)
            if items and random.random() < 0.7:
                _damage_field(random.choice(list(items)), random, depth + 1)
            else:
                for _ in range(many):
                    items.add()
    elif field.message_type is None:
        setattr(message, name, _scalar(field, random))
    else:
        inner = getattr(message, name)
        inner.SetInParent()
        if depth < 5:
            _damage_field(inner, random, depth + 1)


def _scalar(field: FieldDescriptor, random: Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = random.choice(TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice((*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1))
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return random.choice([number for number in NUMBERS if low <= number <= high])
