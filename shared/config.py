"""Settings, read from the environment once, at start, into a frozen object.

A bad value stops the start with an error that names the variable. Each service derives its class from
`ServerSettings`; `--help` prints the docstrings of the fields.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from shared.close_names import did_you_mean
from shared.loopback import is_loopback
from shared.settings_part import SettingsPart as SettingsPart
from shared.text.parsing_message import plain_message

SettingsType = TypeVar("SettingsType", bound=BaseSettings)
Access = Literal["everyone", "callers", "off"]

_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")
_SECRET_WORDS = ("password", "secret", "database_url", "limits_storage")


class ConfigError(Exception):
    """The environment can't be used. The text has one line for each offending variable."""


def settings_config(prefix: str) -> SettingsConfigDict:
    """Configuration of a settings class whose variables begin with `prefix`, for example SOFTPROMPT_TRAINER_."""
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", use_attribute_docstrings=True)


class TracingSettings(SettingsPart):
    """Where a process sends its traces."""

    otlp_endpoint: str = ""
    """URL of the OTLP/HTTP receiver of traces, for example http://collector:4318/v1/traces. Empty: no traces are sent.
    """

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_is_http(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("must be an http or https URL")
        return value


class _Environment(EnvSettingsSource):
    """The environment without the whitespace around values, such as the line break of a file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        text = value.strip() if isinstance(value, str) else value
        is_path = field.annotation in (Path, Path | None)
        return None if is_path and not text else text, key, is_complex  # an empty path would be the working directory


class ListenerSettings(BaseSettings, TracingSettings):
    """Settings of every process that listens: both services and the gateway."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], *_: Any, **sources: Any) -> tuple[Any, ...]:
        """Arguments, then the environment."""
        return sources["init_settings"], _Environment(settings_cls)

    host: str = "127.0.0.1"
    """Address that the process and its metrics listen on; 0.0.0.0 for all interfaces."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the server; 0 chooses a free port."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus endpoint; 0 chooses a free port."""
    log_format: Literal["console", "json"] = "console"
    """Format of log lines: `console` for people, `json` for machines (one object per line)."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest severity that is logged."""
    grace_seconds: float = Field(default=30.0, ge=0, le=3600)
    """Time that running calls have to finish after SIGTERM. Kubernetes' own grace period must be longer."""
    ready_file: str = ""
    """File in which to write {"port", "metrics_port", "pid"} as JSON once the service can serve; empty: none."""
    tls_certificate_file: str = ""
    """Certificate chain of the service (PEM). Reloaded when it changes; open connections keep the old certificate."""
    tls_key_file: str = ""
    """Private key of the certificate (PEM), without a password."""
    tls_client_ca_file: str = ""
    """Certificate authority (PEM) that must have signed client certificates (mTLS); empty: clients need none."""
    plaintext: bool = Field(default=False, validate_default=True)
    """Serve without TLS. Not needed on a loopback host; on others, a service without TLS starts only if this is set."""

    @field_validator("tls_key_file")
    @classmethod
    def _key_goes_with_certificate(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("tls_certificate_file", value)):
            raise ValueError("a certificate file and a key file are set together or not at all")
        return value

    @field_validator("plaintext")
    @classmethod
    def _plaintext_is_meant(cls, value: bool, info: ValidationInfo) -> bool:
        has_tls = bool(info.data.get("tls_certificate_file") or info.data.get("tls_client_ca_file"))
        if bool(info.data.get("tls_certificate_file")) != bool(info.data.get("tls_key_file")):
            raise ValueError("a certificate file and a key file are set together or not at all")
        if info.data.get("tls_client_ca_file") and not info.data.get("tls_certificate_file"):
            raise ValueError("a client CA also needs a certificate file and a key file")
        if value and has_tls:
            raise ValueError("contradicts the TLS files that are set")
        if not (value or has_tls or is_loopback(info.data.get("host", ""))):
            raise ValueError(
                "other machines could reach this service: set TLS_CERTIFICATE_FILE and TLS_KEY_FILE, or this to true"
            )
        return value

    @property
    def is_plaintext(self) -> bool:
        """Whether the main port has no TLS."""
        return not self.tls_certificate_file


class RpcSettings(ListenerSettings):
    """Settings of every process with a gRPC server."""

    max_message_bytes: int = Field(default=16 << 20, ge=1 << 20, le=1 << 30)
    """Size of the largest gRPC message that is accepted."""
    max_connection_age_seconds: float = Field(default=600.0, ge=1, le=86_400)
    """Age at which a client is asked to reconnect, so that load spreads to new replicas; running streams continue."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of a second gRPC server for probes: health only, always plaintext; 0 chooses a free port; unset: none."""
    health_access: Access = "everyone"
    """Access to health on the main port: everyone, callers (authenticated ones only), or off.

    Clients that balance calls over replicas watch health without a token. Unless this is everyone, they also call
    replicas that can't serve.
    """
    reflection_access: Access = "callers"
    """Access to gRPC reflection on the main port: everyone, callers (authenticated ones only), or off."""


class ServerSettings(RpcSettings):
    """Settings that both services have."""

    callers_file: str = ""
    """JSON file of callers: credentials, roles, prompts, limits (docs/security.md). Empty: everyone may do everything.
    """
    limits_storage: str = ""
    """Address of a Redis server (redis:// or rediss://) in which all processes with this address count the rates of
    callers and tenants together; needs softprompt[limits]. Empty: each process counts alone (docs/security.md).
    """
    oidc_issuer: str = ""
    """Issuer of JSON Web Tokens that are accepted in addition to the tokens of the callers file; empty: none."""
    oidc_audience: str = Field(default="", validate_default=True)
    """Audience that these tokens must name."""
    oidc_jwks_url: str = Field(default="", validate_default=True)
    """URL of the issuer's keys, https (http on loopback only). Nothing else is fetched to check a token."""
    oidc_groups_claim: str = "groups"
    """Claim that lists the groups of a token's subject."""

    @field_validator("limits_storage")
    @classmethod
    def _limits_are_set(cls, value: str, info: ValidationInfo) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("redis", "rediss") or not (parts.hostname and parts.port)):
            raise ValueError("must be a redis:// or rediss:// URL with a host and a port")
        if value and not info.data.get("callers_file"):
            raise ValueError("needs a callers file, which sets the limits")
        return value

    @field_validator("oidc_audience", "oidc_jwks_url")
    @classmethod
    def _oidc_is_whole(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("oidc_issuer")):
            raise ValueError("issuer, audience and URL of the keys are set together or not at all")
        if value and not info.data.get("callers_file"):
            raise ValueError("needs a callers file, which says what the issuer's subjects and groups may do")
        if value and info.field_name == "oidc_jwks_url":
            parts = urlsplit(value)
            if not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))):
                raise ValueError("must be an https URL")
        return value


def load_settings(cls: type[SettingsType]) -> SettingsType:
    """The settings from the environment. Raises ConfigError naming each bad or unknown variable."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    known = {f"{prefix}{name}".upper(): name for name in cls.model_fields}
    problems = [
        f"{variable} is not a setting{did_you_mean(variable, known) or '; --help of the service lists them'}"
        for variable in os.environ
        if prefix and variable.upper().startswith(prefix.upper()) and variable.upper() not in known
    ]
    try:
        settings = cls()
    except ValidationError as error:
        for detail in error.errors():
            field = str(detail["loc"][0]) if detail["loc"] else ""
            variable = next(
                (name for name, known_field in known.items() if known_field == field), f"{prefix}{field}".upper()
            )
            value = os.environ.get(variable)
            message = "must be set" if detail["type"] == "missing" else plain_message(detail["msg"])
            if detail["type"] == "literal_error":
                message += did_you_mean(str(value), get_args(cls.model_fields[field].annotation))
            problems.append(f"{variable}{_shown(cls, field, value)}: {_masked(message, value)}")
        raise ConfigError("\n".join(problems)) from None  # pydantic's text repeats every value, also secret ones
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _shown(cls: type[BaseSettings], field: str, value: str | None) -> str:
    """A bad value for an error text: a secret is hidden, and so are user and password in a URL."""
    if value is None:
        return ""
    annotation = cls.model_fields[field].annotation if field in cls.model_fields else None
    if annotation is SecretStr or any(word in field for word in _SECRET_WORDS):
        return " (its value is not shown)"
    return f"={_USER_INFO.sub('***@', value)!r}"


def _masked(message: str, value: str | None) -> str:
    """The message, which may repeat the value, without the value's user and password."""
    found = _USER_INFO.search(value or "")
    return message.replace(found[0], "***@") if found else message


def fields_in_order(cls: type[BaseSettings]) -> dict[str, FieldInfo]:
    """The fields of a settings class, its own first, then those of its bases and parts."""
    declared = (name for base in cls.__mro__ for name in inspect.get_annotations(base))
    return {name: cls.model_fields[name] for name in declared if name in cls.model_fields}


def describe_settings(cls: type[BaseSettings]) -> str:
    """Every variable with its default and meaning, for `--help`."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    lines = []
    for name, field in fields_in_order(cls).items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  {prefix}{name.upper()}  ({default})")
        lines += [f"      {line}".rstrip() for line in (field.description or "").strip().splitlines()]
    return "\n".join(lines)
