"""Page tokens: the place where a list goes on, sealed together with the list, its filter and its caller.

A token is encrypted and authenticated with AES-SIV (RFC 5297): it can be neither read nor made nor used for another
list, with another filter or by another caller. The encryption is deterministic, so the same request always gets the
same answer, and no nonce can be reused.
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
MAX_TOKEN_CHARS = 1024

Json: TypeAlias = str | int | bool | list["Json"] | dict[str, "Json"] | None


@dataclass(frozen=True)
class ListScope:
    """The one list that a token is valid for. The page size is not part of it: callers may change that from page to
    page.
    """

    method: str
    """Name of the method, for example "ListTuningJobs"."""
    caller: Caller
    """Tokens of another caller are refused, and those that the same caller got while other prompts were allowed."""
    filter: Mapping[str, Json] = field(default_factory=dict)
    """Everything else in the request that chooses the entries or their order. Sort what has no order of its own."""

    def encode(self) -> bytes:
        """The same bytes for the same scope in every process."""
        caller: list[Json] = [self.caller.name, self.caller.tenant.name, [*sorted(self.caller.prompts)]]
        return json.dumps([self.method, caller, dict(self.filter)], sort_keys=True).encode()


class PageTokens:
    """Seals and opens tokens with a key that all replicas of a service share, and that survives restarts. Thread-safe."""

    def __init__(self, key: bytes) -> None:
        """`key`: `KEY_BYTES` random bytes."""
        self._cipher = AESSIV(key)

    def seal(self, cursor: str, scope: ListScope) -> str:
        """The token of the page that begins after `cursor`, URL-safe. An empty cursor, the end of the list, is an empty
        token.
        """
        if not cursor:
            return ""
        return base64.urlsafe_b64encode(self._cipher.encrypt(cursor.encode(), [scope.encode()])).decode().rstrip("=")

    def open(self, token: str, scope: ListScope) -> str:
        """The cursor; empty for an empty token. Raises InvalidInput for `page_token` unless `seal` made it for this
        scope.
        """
        if not token:
            return ""
        try:
            if len(token) > MAX_TOKEN_CHARS:
                raise ValueError
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            return self._cipher.decrypt(data, [scope.encode()]).decode()
        except (ValueError, InvalidTag):
            reason = "was not made for this list, filter, order and caller; leave it out to begin anew"
            raise InvalidInput.of("page_token", reason) from None


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)
