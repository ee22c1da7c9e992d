"""Identifies the caller from the credentials of a call: a bearer token, a client certificate, or none."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.caller import EVERYBODY, STANDARD_CLASS, Caller, PromptClass, Tenant, matches
from shared.errors import Overloaded, PermissionDenied, Unauthenticated
from shared.security.bucket import Bucket
from shared.security.callers_file import CallersFile
from shared.security.oidc import Claims, OidcVerifier, looks_like_jwt
from shared.security.tokens import hash_token, is_token

_VERIFY_AGAIN_SECONDS = 60.0
"""Time for which a verified JSON Web Token is accepted without verifying it again."""

_MAX_REMEMBERED = 10_000
"""Maximum number of verified JSON Web Tokens in memory."""


FREE_FAILURES = 10
FAILURES_PER_SECOND = 0.5
MAX_PEERS = 10_000


class FailureLimiter:
    """Counts failed authentications of the MAX_PEERS addresses that failed last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, peer: str) -> None:
        """Raises Overloaded while the peer must wait."""
        bucket = self._peers.get(peer)
        if bucket is not None and (wait := bucket.seconds_until(1.0)):
            raise Overloaded(
                "too many invalid tokens came from your address; wait, then try a valid one", retry_after_seconds=wait
            )

    def failed(self, peer: str) -> None:
        """Record a failed authentication."""
        bucket = self._peers.pop(peer, None) or Bucket(FAILURES_PER_SECOND, FREE_FAILURES, self._clock)
        bucket.take(1.0)
        self._peers[peer] = bucket
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)


@dataclass(frozen=True)
class Credentials:
    """Credentials of a call, and its origin."""

    authorization: tuple[str, ...] = ()
    """Values of the `authorization` metadata; more than one value is a mistake or an attack."""
    certificate_names: tuple[str, ...] = ()
    """Subject alternative names, then the common name, of a client certificate that TLS has verified."""
    address: str = ""
    """The client's address without the port."""


@dataclass(frozen=True)
class _Proven:
    """A verified JSON Web Token; times are on the authenticator's clock."""

    claims: Claims
    verify_at: float
    expires_at: float


class Authenticator:
    """Finds the caller for credentials.

    If `callers` is None, every client that passes TLS may do everything. A token takes precedence over a certificate,
    and an invalid token is never ignored. Repeated failures from an address delay only unknown tokens from that
    address: tokens of the callers file are looked up first, and a JSON Web Token that was verified once is known until
    it expires.
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
        """Whether callers must authenticate."""
        return self._callers is not None

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """Tenants of the current callers file by name; empty without a callers file."""
        return {} if self._callers is None else self._callers.directory.tenants

    @property
    def classes(self) -> Mapping[str, PromptClass]:
        """Prompt classes by name, in the callers file's order, always with the standard one."""
        given = {} if self._callers is None else self._callers.directory.classes
        return {**given, STANDARD_CLASS: given.get(STANDARD_CLASS, PromptClass())}

    def class_of(self, prompt: str) -> str:
        """Name of the first class with a pattern that matches the prompt, else the standard one."""
        return next((name for name, found in self.classes.items() if matches(found.prompts, prompt)), STANDARD_CLASS)

    async def identify(self, credentials: Credentials) -> Caller:
        """The caller with these credentials.

        Raises Unauthenticated for missing or invalid ones, Overloaded after too many failures, PermissionDenied if the
        credentials are valid but belong to no caller.
        """
        if self._callers is None:
            return _named(EVERYBODY, credentials.certificate_names)
        if credentials.authorization:
            return await self._by_token(self._callers, credentials)
        if credentials.certificate_names:
            found = self._callers.directory.by_certificate(credentials.certificate_names)
            if found is None:
                raise PermissionDenied(
                    f"the certificate of {credentials.certificate_names[0][:200]!r} belongs to no caller"
                )
            return found
        raise Unauthenticated("no credentials: send `authorization: Bearer TOKEN` or a client certificate")

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
        """Claims of a valid JSON Web Token. Raises Overloaded for an unknown token if its address must wait."""
        now = self._clock()
        proven = self._proven.get(digest)
        if proven is not None and now < proven.verify_at:
            return proven.claims
        if proven is None or now >= proven.expires_at:
            self._failures.check(address)
        try:
            if not is_token(token):
                raise Unauthenticated("the metadata `authorization` must be `Bearer TOKEN`, exactly once")
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


def _named(caller: Caller, certificate_names: Sequence[str]) -> Caller:
    if not certificate_names:
        return caller
    return replace(caller, name=certificate_names[0][:200], identified_by="certificate")
