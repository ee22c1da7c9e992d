"""Lets the check of a GPU run with torch and transformers alone: it needs only the numerical core.

The core's records are pydantic models. If pydantic is missing, a substitute that stores values without validation
replaces it. This is enough for records that the check itself fills.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


def stand_in_for_pydantic() -> bool:
    """Installs the substitute if pydantic is missing; call it before importing the core. Returns whether it is used."""
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
    """Stores keyword arguments as attributes; other fields get their defaults."""

    def __init__(self, **values: Any) -> None:
        for kind in reversed(type(self).__mro__):
            for name in inspect.get_annotations(kind):
                default = kind.__dict__.get(name)
                setattr(self, name, values.get(name, default.value if isinstance(default, _Default) else default))

    def model_copy(self, *, update: dict[str, Any]) -> Any:
        """A copy with other values."""
        return type(self)(**{**vars(self), **update})
