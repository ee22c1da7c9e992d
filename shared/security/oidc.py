"""Verifies JSON Web Tokens of an OpenID Connect issuer with PyJWT, and fetches the issuer's keys.

Only the key set's URL in the settings is ever fetched. A token's own references to keys (`jku`, `x5u`, `jwk`) are
ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from shared.errors import Unauthenticated, Unavailable
from shared.process.call_pool import CallPool

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Asymmetric algorithms only: if HS256 were accepted, anyone could sign with the public key as the secret."""

REFRESH_SECONDS = 300.0
"""Age at which keys are fetched again."""
COOL_DOWN_SECONDS = 10.0
"""Least time between two fetches, also after failures and if unknown key ids arrive."""

_FETCH_SECONDS = 5.0
_RENEWAL_SECONDS = 1.0
_LEEWAY_SECONDS = 30.0


@dataclass(frozen=True)
class OidcConfig:
    """The issuer, as in `ServerSettings`."""

    issuer: str
    audience: str
    jwks_url: str
    groups_claim: str = "groups"


@dataclass(frozen=True)
class Claims:
    """The claims of a verified token that matter here."""

    subject: str
    groups: tuple[str, ...]
    expires_at: float
    """Unix time."""


class OidcVerifier:
    """Verifies tokens. A thread fetches keys, one fetch at a time; if a fetch fails, the last keys stay valid."""

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._client = jwt.PyJWKClient(config.jwks_url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._tried = self._fetched = float("-inf")
        self._fetching = asyncio.Lock()
        self._pool = CallPool("oidc_issuer", max_threads=2, timeout_seconds=2 * _FETCH_SECONDS)
        self._refresh: asyncio.Task[None] | None = None

    async def verify(self, token: str) -> Claims:
        """The token's claims. Raises Unauthenticated, or Unavailable if no keys could be fetched yet."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise Unauthenticated("the token is not valid") from None
        key = await self._key(str(header.get("kid", "")))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            expires_at = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.InvalidTokenError, OverflowError) as error:
            log.debug("refused a token: %s", type(error).__name__)
            raise Unauthenticated("the token is not valid") from None
        return Claims(str(claims["sub"]), _groups(claims.get(self._config.groups_claim)), expires_at)

    async def _key(self, kid: str) -> jwt.PyJWK:
        now = time.monotonic()
        is_due = kid not in self._keys or now - self._fetched > REFRESH_SECONDS
        if is_due and now - self._tried > COOL_DOWN_SECONDS:
            if kid not in self._keys:
                await self._fetch_since(now)
            elif self._refresh is None or self._refresh.done():  # one caller waits briefly while known keys are renewed
                self._refresh = asyncio.create_task(self._fetch_since(now))
                await asyncio.wait({self._refresh}, timeout=_RENEWAL_SECONDS)
        if not self._keys:
            raise Unavailable("the issuer's keys can't be fetched at the moment; try again")
        if kid not in self._keys:
            raise Unauthenticated("the token is not valid")
        return self._keys[kid]

    async def _fetch_since(self, begun: float) -> None:
        async with self._fetching:
            if self._tried < begun:  # else another call has fetched them since
                await self._fetch()

    async def _fetch(self) -> None:
        try:
            keys = await self._pool.call(self._client.get_signing_keys)
        except (jwt.PyJWKClientError, jwt.PyJWKSetError, ValueError, OSError, Unavailable) as error:
            log.warning(
                "the issuer's keys can't be fetched; keeping the known ones: %s",
                error,
                extra={"fields": {"known": len(self._keys)}},
            )
        else:
            self._keys = {str(key.key_id): key for key in keys}
            self._fetched = time.monotonic()
        finally:
            self._tried = time.monotonic()


def looks_like_jwt(token: str) -> bool:
    """Whether the token has the three parts of a JSON Web Token."""
    return token.count(".") == 2


def _groups(claim: Any) -> tuple[str, ...]:
    if isinstance(claim, str):
        return tuple(claim.split())
    return tuple(item for item in claim if isinstance(item, str)) if isinstance(claim, list) else ()
