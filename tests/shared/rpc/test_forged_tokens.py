"""Forged bearer tokens through a real socket: none reaches a handler, causes an internal error, or delays known
callers.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.security import oidc
from shared.security.tokens import hash_token, new_token
from tests.raw_http2 import framed, raw_call
from tests.shared.rpc.service import SERVICE, Running, count_request, running_server
from tests.shared.security.issuer import AUDIENCE, ISSUER, Issuer

SHOP = new_token()
CLAIMS = {"sub": "boss", "iss": ISSUER, "aud": AUDIENCE, "exp": 4e9, "groups": ["shop-team"]}
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
async def running(issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(
        "shared.security.authenticator.FREE_FAILURES", 10_000
    )  # every token is looked at, none refused by its address
    monkeypatch.setattr(oidc, "COOL_DOWN_SECONDS", 0.0)
    callers = [
        {"name": "shop", "roles": ["generator"], "groups": ["shop-team"], "token_sha256": [hash_token(SHOP)]},
        {"name": "boss", "roles": ["admin"], "subjects": ["boss"]},
    ]
    (tmp_path / "callers.json").write_text(json.dumps({"callers": callers}))
    settings: dict[str, Any] = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks_url": issuer.url}
    async with running_server(callers_file=str(tmp_path / "callers.json"), **settings) as made:
        yield made


async def status(running: Running, *values: str | bytes) -> grpc.StatusCode:
    running.servicer.metadata = {}
    metadata = tuple(("authorization", value) for value in values)
    code = await running.stub.CountTokens(count_request(), metadata=metadata).code()
    assert (code is grpc.StatusCode.OK) == bool(running.servicer.metadata), "a refused call reached its handler"
    return code


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unsigned(header: bytes, claims: bytes = b"{}") -> str:
    return f"{b64(header)}.{b64(claims)}.{b64(b'x' * 64)}"


def shared_secret(content: dict[str, Any], secret: bytes, algorithm: str = "HS256") -> str:
    """Signed without PyJWT, which refuses a public key as a secret."""
    head = b64(json.dumps({"alg": algorithm, "kid": "k1"}).encode()) + "." + b64(json.dumps(content).encode())
    return f"{head}.{b64(hmac.new(secret, head.encode(), 'sha256').digest())}"


def forged(issuer: Issuer) -> dict[str, str]:
    """Forged tokens by their defect."""
    stranger, public = ec.generate_private_key(ec.SECP256R1()), issuer.keys["k1"].public_key()
    own_key = jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key(), as_dict=True)
    good = issuer.token(sub="boss")
    head, body, signature = good.split(".")
    boss = json.dumps(CLAIMS).encode()

    def by_stranger(**header: Any) -> str:
        return jwt.encode(CLAIMS, stranger, algorithm="ES256", headers={"kid": "k1", **header})

    return {
        "alg none": jwt.encode(CLAIMS, None, algorithm="none", headers={"kid": "k1"}),  # type: ignore[arg-type]
        **{
            f"alg {name}": unsigned(json.dumps({"alg": name, "kid": "k1"}).encode(), boss)
            for name in ("None", "nOnE", "", "ES256 ", "HS256")
        },
        "alg null": unsigned(b'{"alg":null,"kid":"k1"}', boss),
        "alg list": unsigned(b'{"alg":["none"],"kid":"k1"}', boss),
        "no signature": f"{head}.{body}.",
        "the signature of other claims": f"{head}.{b64(boss)}.{signature}",
        "a changed header": ".".join((b64(b'{"alg":"ES256","kid":"k1","typ":"at+jwt"}'), body, signature)),
        "a stranger's key": by_stranger(),
        "a stranger's key in the header": by_stranger(jwk=own_key),
        "a key's address in the header": by_stranger(
            jku="http://127.0.0.1:1/keys", x5u="http://127.0.0.1:1/c", x5c=["AAAA"]
        ),
        "another algorithm": jwt.encode(
            CLAIMS, rsa.generate_private_key(65537, 2048), algorithm="RS256", headers={"kid": "k1"}
        ),
        "no kid": jwt.encode(CLAIMS, stranger, algorithm="ES256"),
        "kid None": by_stranger(kid="None"),
        "kid a path": by_stranger(kid="../../../../dev/null"),
        "kid a query": by_stranger(kid="' OR 1=1 --"),
        "kid of a lone surrogate": unsigned(b'{"alg":"ES256","kid":"\\ud800"}', boss),
        "kid a number": unsigned(b'{"alg":"ES256","kid":1}', boss),
        "kid long": by_stranger(kid="k" * 3000),
        "the public key as a secret, PEM": shared_secret(
            CLAIMS, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        ),
        "the public key as a secret, DER": shared_secret(
            CLAIMS, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ),
        "a secret called ES256": shared_secret(CLAIMS, b"", "ES256"),
        "expired": issuer.token(sub="boss", exp=time.time() - 60),
        "not yet": issuer.token(sub="boss", nbf=time.time() + 600),
        "no end": issuer.token(sub="boss", exp=None),
        "another audience": issuer.token(sub="boss", aud=["billing", AUDIENCE.upper()]),
        "no audience": issuer.token(sub="boss", aud=None),
        "another issuer": issuer.token(sub="boss", iss=f"{ISSUER}/"),
        "issuers": signed(issuer, {**CLAIMS, "iss": [ISSUER]}),
        "an end beyond all numbers": signed(issuer, {**CLAIMS, "exp": 10**400}),
        "an unknown extension that must be understood": signed(issuer, CLAIMS, crit=["softprompt"], softprompt=1),
        "nested header": unsigned(b'{"a":' * 900 + b"1" + b"}" * 900, boss),
        "header no object": unsigned(b"[" * 2000),
        "header of digits": unsigned(b'{"alg":"ES256","kid":"k1","n":' + b"9" * 4500 + b"}"),
        "header no UTF-8": unsigned(b"\xff\xfe" * 20),
        "encrypted": b64(b'{"alg":"dir","enc":"A256GCM"}') + ".." + ".".join(b64(b"x" * size) for size in (12, 20, 16)),
        "JSON serialisation": b64(
            json.dumps({"payload": body, "signatures": [{"protected": head, "signature": signature}]}).encode()
        ),
        "dots": "." * 40,
        "a signature twice": f"{good}.{signature}",
        "a token of the file, hashed": hash_token(SHOP),
        "a token of the file and more": f"{SHOP}.{SHOP}.{SHOP}",
    }


def signed(issuer: Issuer, claims: dict[str, Any], **header: Any) -> str:
    """Signs arbitrary claims with the issuer's own key."""
    return jwt.PyJWS().encode(
        json.dumps(claims).encode(), issuer.keys["k1"], algorithm="ES256", headers={"kid": "k1", **header}
    )


async def test_no_forged_token_is_taken_and_none_is_a_fault_of_the_service(
    running: Running, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    good = issuer.token(sub="boss")
    assert await status(running, f"Bearer {good}") is grpc.StatusCode.OK
    for name, token in forged(issuer).items():
        assert await status(running, f"Bearer {token}") is UNAUTHENTICATED, name
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert await status(running, f"Bearer {good}") is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "token",
    [
        f"{SHOP}\u00e9".encode(),
        SHOP.replace("_", "\uff3f").encode(),
        f"{SHOP}\u00a0".encode(),
        b"\xff" * 40,
        SHOP.encode() + b"\0",
        b"\x7f" * 40,
    ],
    ids=["accent", "full-width", "no-break space", "no UTF-8", "null", "control"],
)
async def test_bytes_that_no_client_library_sends_are_refused(
    running: Running, caplog: pytest.LogCaptureFixture, token: bytes
) -> None:
    async with raw_call(
        running.port, f"/{SERVICE}/CountTokens", metadata={"authorization": b"Bearer " + token}
    ) as call:
        await call.send(framed(b""), is_last=True)
        while not (codes := ended(running)):
            await asyncio.sleep(0.01)
    assert codes == {"UNAUTHENTICATED"}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert await status(running, f"Bearer {SHOP}") is grpc.StatusCode.OK


def ended(running: Running) -> set[str]:
    """Codes of all calls that ended."""
    samples = [sample for metric in running.registry.collect() for sample in metric.samples]
    return {
        sample.labels["grpc_code"] for sample in samples if sample.name == "grpc_server_handled_total" and sample.value
    }


async def test_oversized_and_repeated_tokens_are_refused_and_the_connection_serves_on(running: Running) -> None:
    for size in (8000, 20_000, 500_000):
        assert await status(running, "Bearer " + "a" * size) in (UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED), (
            size
        )
        assert await status(running, f"Bearer {'a' * size}.b.c") in (
            UNAUTHENTICATED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ), size
    assert await status(running, f"Bearer {SHOP}", f"Bearer {SHOP}") is UNAUTHENTICATED
    assert await status(running, *(f"Bearer {new_token()}" for _ in range(50)), f"Bearer {SHOP}") is UNAUTHENTICATED
    assert await status(running, f"Bearer {SHOP}") is grpc.StatusCode.OK


async def test_a_caller_with_a_known_key_does_not_wait_while_forged_key_ids_make_the_issuer_answer(
    running: Running, issuer: Issuer
) -> None:
    """An unknown key id may cause a fetch; if the issuer hangs, only calls with such an id wait."""
    good = issuer.token()
    assert await status(running, f"Bearer {good}") is grpc.StatusCode.OK
    issuer.hold()
    unknown = [issuer.token(kid=f"guess-{number}", key=issuer.keys["k1"]) for number in range(20)]
    calls = [
        running.stub.CountTokens(count_request(), metadata=(("authorization", f"Bearer {token}"),)) for token in unknown
    ]
    while issuer.num_fetches < 2:
        await asyncio.sleep(0.01)
    assert await status(running, f"Bearer {issuer.token(sub='another')}") is grpc.StatusCode.OK
    issuer.release()
    assert {await call.code() for call in calls} == {UNAUTHENTICATED}
