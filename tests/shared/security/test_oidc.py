"""JSON Web Tokens with a real key server: valid and forged ones, rotation of keys, an issuer that is unavailable."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import Unauthenticated, Unavailable
from shared.security import oidc
from shared.security.oidc import OidcConfig, OidcVerifier
from tests.shared.security.issuer import AUDIENCE, ISSUER, Issuer


def signed_with_secret(token: str, secret: bytes) -> str:
    """The token's claims, signed as HS256."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1","typ":"JWT"}').rstrip(b"=")
    content = head + b"." + token.split(".")[1].encode()
    signature = base64.urlsafe_b64encode(hmac.new(secret, content, "sha256").digest()).rstrip(b"=")
    return (content + b"." + signature).decode()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def verifier(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> OidcVerifier:
    monkeypatch.setattr(oidc, "COOL_DOWN_SECONDS", 0.0)
    return OidcVerifier(OidcConfig(ISSUER, AUDIENCE, issuer.url))


async def test_a_good_token_tells_subject_and_groups(issuer: Issuer, verifier: OidcVerifier) -> None:
    claims = await verifier.verify(issuer.token())
    assert (claims.subject, claims.groups) == ("ann", ("shop-team",))
    await verifier.verify(issuer.token(sub="bob"))
    assert issuer.num_fetches == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other"},
        {"aud": "other"},
        {"exp": 1.0},
        {"exp": None},
        {"sub": None},
        {"aud": None},
        {"nbf": 1e11},
        {"sub": 7},
    ],
    ids=str,
)
async def test_wrong_claims_are_refused(issuer: Issuer, verifier: OidcVerifier, claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(issuer.token(**claims))


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
async def test_the_issuers_clock_may_differ_by_30_seconds(issuer: Issuer, verifier: OidcVerifier, claim: str) -> None:
    """The tolerance is that of docs/operations.md, and no more."""

    def token(seconds: int) -> str:
        claims: dict[str, Any] = {claim: time.time() + (-seconds if claim == "exp" else seconds)}
        return issuer.token(**claims)

    await verifier.verify(token(25))
    with pytest.raises(Unauthenticated):
        await verifier.verify(token(40))


async def test_forged_tokens_are_refused(issuer: Issuer, verifier: OidcVerifier) -> None:
    await verifier.verify(issuer.token())
    stranger = ec.generate_private_key(ec.SECP256R1())
    public = issuer.keys["k1"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head, body, signature = issuer.token().split(".")
    forged = [
        issuer.token(key=stranger),
        signed_with_secret(issuer.token(), public),  # the public key as a shared secret
        jwt.encode(
            {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60},
            None,  # type: ignore[arg-type]
            algorithm="none",
            headers={"kid": "k1"},
        ),
        f"{head}.{body}.",
        f"{head}.{body}x.{signature}",
        "a.b.c",
        "..",
    ]
    for token in forged:
        with pytest.raises(Unauthenticated):
            await verifier.verify(token)


async def test_a_new_key_is_fetched_and_an_old_one_forgotten(issuer: Issuer, verifier: OidcVerifier) -> None:
    old = issuer.token()
    await verifier.verify(old)
    issuer.add_key("k2")
    del issuer.keys["k1"]
    assert (await verifier.verify(issuer.token("k2"))).subject == "ann"
    with pytest.raises(Unauthenticated):
        await verifier.verify(old)


async def test_unknown_key_ids_do_not_make_it_fetch_again_and_again(issuer: Issuer) -> None:
    verifier = OidcVerifier(OidcConfig(ISSUER, AUDIENCE, issuer.url))
    await verifier.verify(issuer.token())
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await verifier.verify(issuer.token(f"guess-{number}", key=issuer.keys["k1"]))
    assert issuer.num_fetches == 1


async def test_while_the_issuer_is_away_the_last_keys_hold(
    issuer: Issuer, verifier: OidcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.is_away = True
    with pytest.raises(Unavailable):
        await verifier.verify(issuer.token())
    issuer.is_away = False
    await verifier.verify(issuer.token())
    issuer.is_away = True
    monkeypatch.setattr(oidc, "REFRESH_SECONDS", 0.0)
    await verifier.verify(issuer.token())
    assert issuer.num_fetches == 3
