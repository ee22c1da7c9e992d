"""softprompt: tune soft prompts and stream answers from them, over gRPC. Start with `softprompt.Client` or
`softprompt.AsyncClient`.

All names are imported at the first use of one: the command line starts without loading gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "errors":  # its own users need no gRPC
        return import_module("softprompt.errors")
    public = import_module("softprompt.public")
    if name == "__all__":
        return public.NAMES
    if name in public.NAMES:
        return getattr(public, name)
    raise AttributeError(f"module 'softprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(import_module("softprompt.public").NAMES)
