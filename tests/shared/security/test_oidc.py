"""JSON Web Tokens against a real key server on this machine: good ones, forged ones, rotation, an issuer that is away."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import Unauthenticated, Unavailable
from shared.security import oidc
from shared.security.oidc import OidcConfig, OidcVerifier

ISSUER, AUDIENCE = "https://issuer.example", "softprompt"


class Issuer:
    """Signs tokens, and serves its public keys at `url`."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.num_fetches = 0
        self.is_away = False
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.num_fetches += 1
                body = json.dumps(issuer.key_set()).encode()
                self.send_response(503 if issuer.is_away else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.add_key("k1")

    def add_key(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def key_set(self) -> dict[str, Any]:
        algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
        keys = [{**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"} for kid, key in self.keys.items()]
        return {"keys": keys}

    def token(self, kid: str = "k1", key: Any = None, algorithm: str = "ES256", **claims: Any) -> str:
        content = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "groups": ["shop-team", 7], **claims}
        content = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(content, key or self.keys[kid], algorithm=algorithm, headers={"kid": kid})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
    [{"iss": "https://other"}, {"aud": "other"}, {"exp": 1.0}, {"exp": None}, {"sub": None}, {"aud": None}, {"nbf": 1e11}, {"sub": 7}],
    ids=str,
)
async def test_wrong_claims_are_refused(issuer: Issuer, verifier: OidcVerifier, claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(issuer.token(**claims))


async def test_forged_tokens_are_refused(issuer: Issuer, verifier: OidcVerifier) -> None:
    await verifier.verify(issuer.token())
    stranger = ec.generate_private_key(ec.SECP256R1())
    public = issuer.keys["k1"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head, body, signature = issuer.token().split(".")
    forged = [
        issuer.token(key=stranger),
        signed_with_secret(issuer.token(), public),  # the public key as a shared secret
        jwt.encode({"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60}, None, algorithm="none", headers={"kid": "k1"}),
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


async def test_while_the_issuer_is_away_the_last_keys_hold(issuer: Issuer, verifier: OidcVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer.is_away = True
    with pytest.raises(Unavailable):
        await verifier.verify(issuer.token())
    issuer.is_away = False
    await verifier.verify(issuer.token())
    issuer.is_away = True
    monkeypatch.setattr(oidc, "REFRESH_SECONDS", 0.0)
    await verifier.verify(issuer.token())
    assert issuer.num_fetches == 3
