"""The webhooks file: which URLs are called, for which events, signed with which secrets.

It is JSON, written by the operator, and reloaded when it changes:

{"endpoints": [{"name": "ci", "url": "https://ci.example/hooks/softprompt", "secrets": ["whsec_<base64>"],
                "events": ["version.published", "alias.moved"], "prompts": ["support-*"]}]}
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from shared.caller import matches
from shared.config import ConfigError
from shared.loopback import is_loopback
from shared.security.json_file import read_json
from shared.security.watched_file import WatchedFile
from trainer_service.webhooks.events import EventType, WebhookEvent

log = logging.getLogger(__name__)

MAX_ENDPOINTS = 50
_SECRET_PREFIX = "whsec_"  # of the Standard Webhooks specification
_LEAST_SECRET_BYTES, _MOST_SECRET_BYTES = 24, 64  # of the same specification
_Pattern = Annotated[str, Field(pattern=r"^[a-z0-9*-]{1,100}$")]


class Endpoint(BaseModel):
    """A URL that receives events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    plaintext: bool = False
    """Whether the URL may be http:// on another machine. The body can then be read on the way; it stays signed."""
    url: Annotated[str, Field(max_length=2000)]
    secrets: Annotated[tuple[SecretStr, ...], Field(min_length=1, max_length=4)]
    """Each request has a signature with each of them, so that a receiver can rotate them."""
    events: Annotated[tuple[EventType, ...], Field(min_length=1)] = tuple(
        kind for kind in EventType if kind is not EventType.TEST
    )
    prompts: Annotated[tuple[_Pattern, ...], Field(min_length=1)] = ("*",)
    """Patterns: events of other prompts are not sent to this endpoint."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str, info: ValidationInfo) -> str:
        try:
            parts = urlsplit(value)
            host = parts.hostname or ""
            _ = parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in ("http", "https") or not host or not value.isprintable() or " " in value:
            raise ValueError("must be an https:// URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must have no user and password: the signature proves who calls")
        if parts.scheme == "http" and not info.data.get("plaintext") and not is_loopback(host):
            raise ValueError('must be an https:// URL, or set "plaintext": true')
        return value

    @field_validator("secrets")
    @classmethod
    def _are_secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            if not _LEAST_SECRET_BYTES <= len(key_of(secret)) <= _MOST_SECRET_BYTES:
                raise ValueError(
                    f'each must be "{_SECRET_PREFIX}" and the base64 of {_LEAST_SECRET_BYTES} to {_MOST_SECRET_BYTES} '
                    "random bytes"
                )
        return value

    @property
    def origin(self) -> str:
        """The URL's scheme and host. The rest is often a secret of the receiver."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def wants(self, event: WebhookEvent) -> bool:
        """Whether the event is sent to this endpoint."""
        if event.type is EventType.TEST:
            return event.subject == self.name
        return event.type in self.events and matches(self.prompts, event.prompt)


def key_of(secret: SecretStr) -> bytes:
    """The key's bytes; empty for a malformed secret."""
    text = secret.get_secret_value()
    try:
        return base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True) if _SECRET_PREFIX in text[:6] else b""
    except binascii.Error:
        return b""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoints: Annotated[tuple[Endpoint, ...], Field(max_length=MAX_ENDPOINTS)]

    @field_validator("endpoints")
    @classmethod
    def _names_differ(cls, value: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        if len({endpoint.name for endpoint in value}) != len(value):
            raise ValueError("two endpoints have the same name")
        return value


class Endpoints:
    """The newest valid content of the file; without a file, there are no endpoints. If the file becomes invalid or is
    deleted, the previous content stays in force and the error is logged. Thread-safe.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError if the file is invalid at the start."""
        self._file = None if path is None else WatchedFile(path)
        self._current = () if self._file is None else _read(self._file)

    @property
    def is_configured(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    @property
    def current(self) -> tuple[Endpoint, ...]:
        """The endpoints of the last `look`."""
        return self._current

    def look(self) -> None:
        """Reads the file again if it has changed."""
        if self._file is None or not self._file.changed():
            return
        try:
            self._current = _read(self._file)
        except ConfigError as error:
            log.error("the webhooks file is invalid; keeping the previous one: %s", error)
            return
        log.info("webhooks file reloaded", extra={"fields": {"endpoints": len(self._current)}})


def _read(file: WatchedFile) -> tuple[Endpoint, ...]:
    return read_json(file, _File).endpoints
