"""Writes `docs/settings.md` from the services' settings: `python -m tests.settings_reference`. A test checks that it is
current.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic_settings import BaseSettings

from shared.config import fields_in_order
from softprompt.gateway.settings import GatewaySettings
from softprompt.router.settings import RouterSettings
from tests.k8s.checks.settings import PREFIXES, SERVICES

PAGE = Path(__file__).parents[1] / "docs/settings.md"
_BEGIN = """# Settings

Generated from the code by `python -m tests.settings_reference`; change the texts there. Each setting is an environment
variable, read once at the start of the process. `softprompt-trainer --help`, `softprompt-inference --help`, `python -m
softprompt.gateway --help` and `python -m softprompt.router --help` show the same. White space around a value is
ignored, and an empty path counts as not set. Settings of the client are on the page about the
[command line](cli.md).
"""
_PROCESSES: dict[str, tuple[type[BaseSettings], str]] = {
    **SERVICES,
    "gateway": (GatewaySettings, PREFIXES["gateway"]),
    "router": (RouterSettings, PREFIXES["router"]),
}


def reference() -> str:
    """The page."""
    parts = [_BEGIN]
    for name, (settings, prefix) in _PROCESSES.items():
        parts += [f"\n## {name}\n", "| variable | values | default | meaning |", "|---|---|---|---|"]
        for field, info in fields_in_order(settings).items():
            default = "required" if info.is_required() else _default(info.get_default(call_default_factory=False))
            cells = (f"`{prefix}{field.upper()}`", _kind(info.annotation), default, _text(info.description or ""))
            parts.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def _kind(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in parts if part is not type(None))
    if origin is tuple:
        return "list"
    names = {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}
    return names.get(annotation, "JSON")


def _default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, str | int | float | Path) else "none"


def _text(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
