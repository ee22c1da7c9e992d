"""From what a call presents (a bearer token, a client certificate, nothing) to the caller behind it."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import PermissionDenied, Unauthenticated
from shared.security.caller import EVERYBODY, Caller, Role
from shared.security.callers_file import CallersFile
from shared.security.failures import FailureLimiter
from shared.security.oidc import OidcVerifier, looks_like_jwt
from shared.security.tokens import hash_token, is_token

log = logging.getLogger(__name__)

_REMEMBER_SECONDS = 60.0
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Credentials:
    """What a call presents."""

    authorization: tuple[str, ...] = ()
    """Values of the `authorization` metadata; more than one is a mistake or an attack."""
    certificate_names: tuple[str, ...] = ()
    """Subject alternative names, then the common name, of a client certificate that TLS has verified."""
    address: str = ""
    """Where it comes from, without the port."""


class Authenticator:
    """`callers` None: whoever gets through TLS may do everything. A token goes before a certificate, and a bad one is never ignored."""

    def __init__(self, callers: CallersFile | None = None, oidc: OidcVerifier | None = None) -> None:
        self._callers, self._oidc = callers, oidc
        self._failures = FailureLimiter()
        self._good: OrderedDict[str, tuple[Caller, float, int]] = OrderedDict()

    @property
    def asks(self) -> bool:
        """Whether callers must say who they are."""
        return self._callers is not None

    async def identify(self, credentials: Credentials) -> Caller:
        """Raises Unauthenticated, Overloaded after too many failures, PermissionDenied for somebody known who has no role here."""
        if self._callers is None:
            return _named(EVERYBODY, credentials.certificate_names)
        if credentials.authorization:
            return await self._by_token(self._callers, credentials)
        if credentials.certificate_names:
            found = self._callers.directory.by_certificate(credentials.certificate_names)
            if found is None:
                raise PermissionDenied(f"no caller is known by the certificate of {credentials.certificate_names[0][:200]!r}")
            return found
        raise Unauthenticated("say who you are: send `authorization: Bearer TOKEN`, or a client certificate")

    async def _by_token(self, callers: CallersFile, credentials: Credentials) -> Caller:
        token = _bearer(credentials.authorization)
        directory = callers.directory
        digest = hash_token(token) if token else ""
        good = self._good.get(digest)
        if good is not None and good[1] > time.monotonic() and good[2] == callers.generation:
            return good[0]
        self._failures.check(credentials.address)
        try:
            if not is_token(token):
                raise Unauthenticated("the authorization must be `Bearer TOKEN`, once")
            found = directory.by_token(digest)
            seconds = _REMEMBER_SECONDS
            if found is None:
                found, seconds = await self._by_jwt(callers, token)
        except Unauthenticated:
            self._failures.failed(credentials.address)
            raise
        self._remember(digest, found, seconds, callers.generation)
        return found

    async def _by_jwt(self, callers: CallersFile, token: str) -> tuple[Caller, float]:
        """And for how many seconds that may be remembered."""
        if self._oidc is None or not looks_like_jwt(token):
            raise Unauthenticated("the token is not valid")
        claims = await self._oidc.verify(token)
        found = callers.directory.by_claims(claims.subject, claims.groups)
        if found is None:
            raise PermissionDenied(f"{claims.subject[:200]!r} is known to the issuer, but has no role here")
        return found, min(_REMEMBER_SECONDS, claims.expires_at - time.time())

    def _remember(self, digest: str, caller: Caller, seconds: float, generation: int) -> None:
        """Whoever was right a moment ago is not held up by others who guess from the same address, and is checked faster."""
        self._good[digest] = (caller, time.monotonic() + seconds, generation)
        if len(self._good) > _MAX_REMEMBERED:
            self._good.popitem(last=False)


def _bearer(values: Sequence[str]) -> str:
    """The token of exactly one `Bearer TOKEN`; empty for anything else."""
    if len(values) != 1:
        return ""
    scheme, _, token = values[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _named(everybody: Caller, certificate_names: Sequence[str]) -> Caller:
    if not certificate_names:
        return everybody
    return Caller(certificate_names[0][:200], frozenset({Role.ADMIN}), identified_by="certificate")
