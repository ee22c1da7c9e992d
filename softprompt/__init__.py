"""softprompt: tune soft prompts and stream answers from them, over gRPC. Start with `softprompt.Client` or
`softprompt.AsyncClient`.

Names are imported on first use: the command line starts without loading gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt import errors as errors
    from softprompt.client.async_client import AsyncClient as AsyncClient
    from softprompt.client.stream import GenerationStream as GenerationStream
    from softprompt.client.sync_client import Client as Client
    from softprompt.client.sync_client import SyncGenerationStream as SyncGenerationStream
    from softprompt.types.common import Guide as Guide
    from softprompt.types.common import Message as Message
    from softprompt.types.common import Sampling as Sampling
    from softprompt.types.common import Template as Template
    from softprompt.types.common import TemplateFormat as TemplateFormat
    from softprompt.types.data import Data as Data
    from softprompt.types.data import Example as Example
    from softprompt.types.generation import Generation as Generation
    from softprompt.types.generation import GenerationDelta as GenerationDelta
    from softprompt.types.generation import TokenIds as TokenIds
    from softprompt.types.jobs import JobState as JobState
    from softprompt.types.jobs import TuningJob as TuningJob
    from softprompt.types.prompts import AliasTarget as AliasTarget
    from softprompt.types.spec import Hyperparameters as Hyperparameters
    from softprompt.types.spec import Init as Init
    from softprompt.types.spec import InitMethod as InitMethod
    from softprompt.types.spec import PublishGate as PublishGate
    from softprompt.types.spec import PublishPolicy as PublishPolicy
    from softprompt.types.spec import TaskKind as TaskKind
    from softprompt.types.spec import TooLong as TooLong
    from softprompt.types.spec import TuningSpec as TuningSpec

_MODULES = {
    "softprompt.client.async_client": ("AsyncClient",),
    "softprompt.client.sync_client": ("Client", "SyncGenerationStream"),
    "softprompt.client.stream": ("GenerationStream",),
    "softprompt.types.common": ("Guide", "Message", "Sampling", "Template", "TemplateFormat"),
    "softprompt.types.data": ("Data", "Example"),
    "softprompt.types.generation": ("Generation", "GenerationDelta", "TokenIds"),
    "softprompt.types.prompts": ("AliasTarget",),
    "softprompt.types.jobs": (
        "JobState",
        "TuningJob",
    ),
    "softprompt.types.spec": (
        "Hyperparameters",
        "Init",
        "InitMethod",
        "PublishGate",
        "PublishPolicy",
        "TaskKind",
        "TooLong",
        "TuningSpec",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["errors", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("softprompt.errors")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
