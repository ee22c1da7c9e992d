"""Settings: read from the environment once, at start, into a frozen object. A bad value stops the start and says which variable.

Each service derives its own class from `ServerSettings`; the docstring under a field is its documentation (`--help` prints it).
"""

from __future__ import annotations

import os
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

SettingsType = TypeVar("SettingsType", bound=BaseSettings)


class ConfigError(Exception):
    """The environment can't be used. The text has one line for each offending variable."""


def settings_config(prefix: str) -> SettingsConfigDict:
    """Configuration of a settings class whose variables begin with `prefix`, for example SOFTPROMPT_TRAINER_."""
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", use_attribute_docstrings=True)


class ServerSettings(BaseSettings):
    """What both services are told in the same words."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address that gRPC and metrics listen on; 0.0.0.0 for every interface."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus endpoint; 0 takes a free one."""
    log_format: Literal["console", "json"] = "console"
    """`json` writes one object a line, for machines."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged."""
    grace_seconds: float = Field(default=30.0, ge=0, le=3600)
    """After SIGTERM: how long running streams may take to finish. Kubernetes' own grace period must be longer."""
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 20, le=1 << 30)
    """Largest gRPC message that is accepted."""
    ready_file: str = ""
    """Where to write {"port", "metrics_port", "pid"} as JSON once the service can serve; empty: nowhere."""


def load_settings(cls: type[SettingsType]) -> SettingsType:
    """The settings from the environment. Raises ConfigError naming each bad or unknown variable."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    known = {f"{prefix}{name}".upper(): name for name in cls.model_fields}
    problems = [
        f"{variable} is not a setting; known are {', '.join(sorted(known))}"
        for variable in os.environ
        if prefix and variable.upper().startswith(prefix.upper()) and variable.upper() not in known
    ]
    try:
        settings = cls()
    except ValidationError as error:
        for detail in error.errors():
            field = str(detail["loc"][0]) if detail["loc"] else ""
            variable = next((name for name, known_field in known.items() if known_field == field), f"{prefix}{field}".upper())
            problems.append(f"{variable}={os.environ.get(variable, '')!r}: {detail['msg']}")
        raise ConfigError("\n".join(problems)) from error
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def describe_settings(cls: type[BaseSettings]) -> str:
    """Every variable with its default and meaning, for `--help`."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    lines = []
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  {prefix}{name.upper()}  ({default})\n      {field.description or ''}")
    return "\n".join(lines)
