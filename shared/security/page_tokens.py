"""Page tokens: the position where a list continues, bound to the list, its filter and its caller.

A token is encrypted and authenticated with AES-SIV (RFC 5297). Callers can neither read nor forge it, nor use it for
another list, with another filter or as another caller. The encryption is deterministic: the same request always gets
the same token, and there is no nonce that could be reused.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from shared.caller import Caller
from shared.errors import InvalidInput

KEY_BYTES = 64
MAX_TOKEN_CHARS = 4096
"""More than the largest key of a usage record (2,000 bytes of names) in base64."""

Json: TypeAlias = str | int | bool | list["Json"] | dict[str, "Json"] | None


@dataclass(frozen=True)
class ListScope:
    """The list that a token is valid for. The page size is not included: callers may change it from page to page."""

    method: str
    """Name of the method, for example "ListTuningJobs"."""
    caller: Caller
    """The caller; a token becomes invalid if the caller's tenant or allowed prompts change."""
    filter: Mapping[str, Json] = field(default_factory=dict)
    """All other fields of the request that select or order the entries. Sort the items of unordered fields."""

    def encode(self) -> bytes:
        """The scope as bytes, which are the same in every process."""
        caller: list[Json] = [self.caller.name, self.caller.tenant.name, [*sorted(self.caller.prompts)]]
        return json.dumps([self.method, caller, dict(self.filter)], sort_keys=True).encode()


class PageTokens:
    """Seals and opens tokens. Thread-safe. All replicas of a service must share the key and keep it over restarts."""

    def __init__(self, key: bytes) -> None:
        """`key`: `KEY_BYTES` random bytes."""
        self._cipher = AESSIV(key)

    def seal(self, cursor: str, scope: ListScope) -> str:
        """The URL-safe token of the page that begins after `cursor`. An empty cursor (end of the list) stays empty."""
        if not cursor:
            return ""
        return base64.urlsafe_b64encode(self._cipher.encrypt(cursor.encode(), [scope.encode()])).decode().rstrip("=")

    def open(self, token: str, scope: ListScope) -> str:
        """The cursor in a token, or empty. Raises InvalidInput for `page_token` if it was not sealed for this scope."""
        if not token:
            return ""
        try:
            if len(token) > MAX_TOKEN_CHARS:
                raise ValueError
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            return self._cipher.decrypt(data, [scope.encode()]).decode()
        except (ValueError, InvalidTag):
            reason = "was not made for this list, filter, order and caller; leave it out to start again"
            raise InvalidInput.of("page_token", reason) from None


def new_key() -> bytes:
    """A random key for `PageTokens`."""
    return secrets.token_bytes(KEY_BYTES)
