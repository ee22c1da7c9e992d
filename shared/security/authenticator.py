"""From what a call presents (a bearer token, a client certificate, nothing) to the caller behind it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.caller import EVERYBODY, Caller, Tenant
from shared.errors import PermissionDenied, Unauthenticated
from shared.security.callers_file import CallersFile
from shared.security.failures import FailureLimiter
from shared.security.oidc import Claims, OidcVerifier, looks_like_jwt
from shared.security.tokens import hash_token, is_token

_VERIFY_AGAIN_SECONDS = 60.0
"""A JSON Web Token that was right is taken for so long without looking at its signature."""

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


@dataclass(frozen=True)
class _Proven:
    """A JSON Web Token that was right; times on the authenticator's clock."""

    claims: Claims
    verify_at: float
    expires_at: float


class Authenticator:
    """`callers` None: whoever gets through TLS may do everything. A token goes before a certificate, and a bad one is
    never ignored.

    Who guesses from an address makes those wait who come from there with something unknown, never those who are known:
    tokens of the callers file are looked up first, and a JSON Web Token that was right once is known until it expires.
    """

    def __init__(
        self,
        callers: CallersFile | None = None,
        oidc: OidcVerifier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers, self._oidc, self._clock = callers, oidc, clock
        self._failures = FailureLimiter(clock)
        self._proven: OrderedDict[str, _Proven] = OrderedDict()

    @property
    def asks(self) -> bool:
        """Whether callers must say who they are."""
        return self._callers is not None

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """Tenants of the callers file as it is now, by name; none without one."""
        return {} if self._callers is None else self._callers.directory.tenants

    async def identify(self, credentials: Credentials) -> Caller:
        """Raises Unauthenticated, Overloaded after too many failures, PermissionDenied for somebody known who has no
        role here.
        """
        if self._callers is None:
            return _named(EVERYBODY, credentials.certificate_names)
        if credentials.authorization:
            return await self._by_token(self._callers, credentials)
        if credentials.certificate_names:
            found = self._callers.directory.by_certificate(credentials.certificate_names)
            if found is None:
                raise PermissionDenied(
                    f"no caller is known by the certificate of {credentials.certificate_names[0][:200]!r}"
                )
            return found
        raise Unauthenticated("say who you are: send `authorization: Bearer TOKEN`, or a client certificate")

    async def _by_token(self, callers: CallersFile, credentials: Credentials) -> Caller:
        token = _bearer(credentials.authorization)
        digest = hash_token(token)
        if is_token(token) and (found := callers.directory.by_token(digest)):
            return found
        claims = await self._claims(token, digest, credentials.address)
        by_claims = callers.directory.by_claims(claims.subject, claims.groups)
        if by_claims is None:
            raise PermissionDenied(f"{claims.subject[:200]!r} is known to the issuer, but has no role here")
        return by_claims

    async def _claims(self, token: str, digest: str, address: str) -> Claims:
        """Of a JSON Web Token that is right; one that is not known to have been is looked at only if its address
        doesn't have to wait.
        """
        now = self._clock()
        proven = self._proven.get(digest)
        if proven is not None and now < proven.verify_at:
            return proven.claims
        if proven is None or now >= proven.expires_at:
            self._failures.check(address)
        try:
            if not is_token(token):
                raise Unauthenticated("the authorization must be `Bearer TOKEN`, once")
            if self._oidc is None or not looks_like_jwt(token):
                raise Unauthenticated("the token is not valid")
            claims = await self._oidc.verify(token)
        except Unauthenticated:
            self._proven.pop(digest, None)
            self._failures.failed(address)
            raise
        self._remember(digest, claims)
        return claims

    def _remember(self, digest: str, claims: Claims) -> None:
        now = self._clock()
        expires_at = now + claims.expires_at - time.time()
        self._proven[digest] = _Proven(claims, min(expires_at, now + _VERIFY_AGAIN_SECONDS), expires_at)
        self._proven.move_to_end(digest)
        if len(self._proven) > _MAX_REMEMBERED:
            self._proven.popitem(last=False)


def _bearer(values: Sequence[str]) -> str:
    """The token of exactly one `Bearer TOKEN`; empty for anything else."""
    if len(values) != 1:
        return ""
    scheme, _, token = values[0].partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""


def _named(everybody: Caller, certificate_names: Sequence[str]) -> Caller:
    if not certificate_names:
        return everybody
    return replace(everybody, name=certificate_names[0][:200], identified_by="certificate")
