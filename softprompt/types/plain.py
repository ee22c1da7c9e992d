"""Values as JSON has them."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


def as_plain(value: Any) -> Any:
    """A value as strict JSON has it: dataclasses become dictionaries, times ISO 8601 texts, and numbers that are not
    finite None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        shown = (item.name for item in fields(value) if not item.metadata.get("internal"))
        return {name: as_plain(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
