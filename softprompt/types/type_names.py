"""What error texts call the type of a value."""

from __future__ import annotations


def type_name(value: object) -> str:
    """The name of a value's type in error texts."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        tuple: "a tuple",
        bytes: "bytes",
        type(None): "nothing",
    }
    names |= {str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value)) or f"a value of type {type(value).__name__}"
