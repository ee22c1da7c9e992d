"""Settings of one part of a process; not in `shared.config`, because the numerical core has no settings library."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class SettingsPart(BaseModel):
    """Settings of one part of a process, declared beside the part that uses them.

    The process's settings class inherits them, so that they are parsed with all others, and passes them to the part
    whole. A part reads no environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def of(cls, settings: BaseModel, **others: Any) -> Self:
        """This part of a process's settings, and `others`; fields that the process doesn't have keep their defaults."""
        names = cls.model_fields.keys() & type(settings).model_fields.keys()
        return cls(**{name: getattr(settings, name) for name in names}, **others)
