"""For machines that have torch and transformers and not this project's other dependencies: the GPU benchmarks need the numerical core only.

The core's records are pydantic models. Where pydantic is missing, a stand-in that keeps values and checks nothing takes its place, which
is enough for records that the benchmark fills itself.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


def stand_in_for_pydantic() -> bool:
    """Call it before importing the core. True if the stand-in is in place."""
    try:
        import pydantic
    except ImportError:
        pass
    else:
        return not hasattr(pydantic, "__version__")
    module = ModuleType("pydantic")
    module.__dict__.update(BaseModel=Record, ConfigDict=dict, Field=field, JsonValue=object, ValidationError=ValueError)
    sys.modules["pydantic"] = module
    return True


class _Default:
    def __init__(self, value: Any) -> None:
        self.value = value


def field(default: Any = None, **options: Any) -> Any:
    return _Default(options["default_factory"]() if "default_factory" in options else default)


class Record:
    """Keyword arguments become attributes; what is left out has its default."""

    def __init__(self, **values: Any) -> None:
        for kind in reversed(type(self).__mro__):
            for name in inspect.get_annotations(kind):
                default = kind.__dict__.get(name)
                setattr(self, name, values.get(name, default.value if isinstance(default, _Default) else default))
