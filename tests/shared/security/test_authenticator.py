"""Known callers beside one that guesses tokens from the same address, for longer than failures are kept; comparisons in
constant time.
"""

from __future__ import annotations

import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest

from shared.errors import SoftPromptError, Unauthenticated
from shared.security.authenticator import FREE_FAILURES, Authenticator, Credentials
from shared.security.callers_file import CallersFile
from shared.security.oidc import Claims
from shared.security.tokens import find_hash, hash_token, new_token
from tests.clock import Clock

TOKEN = new_token()
JWT = f"header.{'a' * 40}.signature"
NEW_JWT = f"header.{'b' * 40}.signature"
VALID_SECONDS = 1000.0


class Issuer:
    """A fake verifier: its tokens are valid until it withdraws its key."""

    def __init__(self) -> None:
        self.num_verified, self.has_withdrawn = 0, False

    async def verify(self, token: str) -> Claims:
        self.num_verified += 1
        if token not in (JWT, NEW_JWT) or self.has_withdrawn:
            raise Unauthenticated("the token is not valid")
        return Claims("boss", (), time.time() + VALID_SECONDS)


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    shop = {"name": "shop", "roles": ["generator"], "token_sha256": [hash_token(TOKEN)]}
    boss = {"name": "boss", "roles": ["viewer"], "subjects": ["boss"]}
    path = tmp_path / "callers.json"
    path.write_text(json.dumps({"callers": [shop, boss]}))
    return CallersFile(path)


async def outcome(authenticator: Authenticator, token: str) -> str:
    """The caller's name, or the name of the refusal."""
    try:
        return (await authenticator.identify(Credentials((f"Bearer {token}",), address="10.0.0.1"))).name
    except SoftPromptError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("token", "name"), [(TOKEN, "shop"), (JWT, "boss")], ids=["token of the file", "JSON Web Token"]
)
async def test_a_caller_goes_on_for_minutes_beside_one_that_guesses(
    callers: CallersFile, token: str, name: str
) -> None:
    clock = Clock()
    authenticator = Authenticator(callers, Issuer(), clock)  # type: ignore[arg-type]
    assert await outcome(authenticator, token) == name
    guesses = []
    for _ in range(3000):  # five minutes
        clock.now += 0.1
        guesses += [await outcome(authenticator, new_token()), await outcome(authenticator, f"x.{new_token()}.y")]
        assert await outcome(authenticator, token) == name
    assert guesses.count("Unauthenticated") <= 10 + 150 + 1  # free ones, then one every two seconds
    assert set(guesses) == {"Unauthenticated", "Overloaded"}


async def test_a_caller_that_paused_and_a_token_of_the_file_never_seen_before_are_not_held_up(
    callers: CallersFile,
) -> None:
    clock = Clock()
    authenticator = Authenticator(callers, Issuer(), clock)  # type: ignore[arg-type]
    await outcome(authenticator, JWT)
    clock.now += VALID_SECONDS / 2
    while await outcome(authenticator, new_token()) != "Overloaded":
        pass
    assert await outcome(authenticator, TOKEN) == "shop"
    assert await outcome(authenticator, JWT) == "boss"
    assert await outcome(authenticator, NEW_JWT) == "Overloaded", "an unknown token waits"
    clock.now += VALID_SECONDS
    while await outcome(authenticator, new_token()) != "Overloaded":
        pass
    assert await outcome(authenticator, JWT) == "Overloaded", "it is not known for longer than it is valid"


async def test_a_signature_is_looked_at_again_every_minute(callers: CallersFile) -> None:
    clock, issuer = Clock(), Issuer()
    authenticator = Authenticator(callers, issuer, clock)  # type: ignore[arg-type]
    for _ in range(1200):
        assert await outcome(authenticator, JWT) == "boss"
        clock.now += 0.1
    assert issuer.num_verified == 2
    clock.now += 60
    issuer.has_withdrawn = True
    assert await outcome(authenticator, JWT) == "Unauthenticated"
    for _ in range(FREE_FAILURES):
        last = await outcome(authenticator, JWT)
    assert last == "Overloaded", "it counts as a guess from now on"


def test_a_search_compares_with_every_hash_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def counting(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    known = [hash_token(str(number)) for number in range(50)]
    for digest in (known[0], known[24], known[49], hash_token("x")):
        compared.clear()
        assert find_hash(digest, known) == (digest if digest in known else None)
        assert compared == [(candidate, digest) for candidate in known]
