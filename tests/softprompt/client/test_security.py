"""The client's side of TLS and tokens: what is chosen by default, what the environment says, and errors that say what
to do.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidInput, PermissionDenied, Unauthenticated, Unavailable
from shared.security.tokens import hash_token, is_token, new_token
from softprompt.cli.error_report import report
from softprompt.client.async_client import AsyncClient
from softprompt.client.security import ClientSecurity, TokenSource, is_local
from tests.shared.rpc.service import running_server
from tests.shared.security.pki import Authority
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services

TOKEN = new_token()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def service(tmp_path: Path, authority: Authority) -> dict[str, Any]:
    """Settings of a service with TLS and one caller; `ca` is what its clients trust."""
    certificate, key = authority.issue("service").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    entry = {"name": "shop", "roles": ["generator"], "token_sha256": [hash_token(TOKEN)]}
    (tmp_path / "callers.json").write_text(json.dumps({"callers": [entry]}))
    return {
        "tls_certificate_file": str(certificate),
        "tls_key_file": str(key),
        "callers_file": str(tmp_path / "callers.json"),
    }


async def count(port: int, security: ClientSecurity) -> int:
    async with AsyncClient(inference=f"127.0.0.1:{port}", security=security, timeout_seconds=600) as client:
        return (await client.count_tokens("hello")).input_tokens


async def test_tls_and_a_token_get_through(service: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(**service) as running:
        assert await count(running.port, ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token=TOKEN)) == 1


async def test_a_renewed_token_file_is_used_by_the_next_call(service: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(new_token())
    security = ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token_file=str(file))
    async with (
        running_server(**service) as running,
        AsyncClient(inference=f"127.0.0.1:{running.port}", security=security) as client,
    ):
        with pytest.raises(Unauthenticated):
            await client.count_tokens("hello")
        file.write_text(TOKEN + "\n")
        await client.count_tokens("hello")


async def test_a_stream_carries_the_token_too(service: dict[str, Any], tmp_path: Path) -> None:
    security = ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token=TOKEN)
    async with (
        running_server(**service) as running,
        AsyncClient(inference=f"127.0.0.1:{running.port}", security=security) as client,
    ):
        running.servicer.whole = True
        running.servicer.release.set()
        assert [delta.text async for delta in client.stream("hello")][-1] == "last"


@pytest.mark.parametrize("access", ["everyone", "callers", "off"])
async def test_going_round_replicas_works_with_any_health_access(
    service: dict[str, Any], tmp_path: Path, access: str
) -> None:
    """gRPC's own watch of health carries no token."""
    security = ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token=TOKEN)
    async with running_server(**service, health_access=access) as running:
        await running.server.set_serving(True)
        async with AsyncClient(
            inference=f"dns:///localhost:{running.port}", security=security, timeout_seconds=600
        ) as client:
            assert (await client.count_tokens("hello")).input_tokens == 1


@pytest.mark.usefixtures("quick_retries")
async def test_what_is_wrong_with_a_handshake_is_said(
    service: dict[str, Any], tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "other.crt").write_bytes(Authority("other").certificate)
    async with running_server(**service) as running:
        with pytest.raises(Unavailable, match="not trusted"):
            await count(running.port, ClientSecurity(ca_file=str(tmp_path / "other.crt"), token=TOKEN))
        with pytest.raises(Unavailable, match="it may use TLS"):
            await count(running.port, ClientSecurity(token=TOKEN))
        with pytest.raises(Unauthenticated):
            await count(running.port, ClientSecurity(ca_file=str(tmp_path / "ca.crt")))
    async with running_server() as running:
        with pytest.raises(Unavailable, match="does not use TLS"):
            await count(running.port, ClientSecurity(tls=True))


@pytest.mark.usefixtures("quick_retries")
async def test_a_missing_client_certificate_is_guessed(service: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(**service, tls_client_ca_file=str(tmp_path / "ca.crt")) as running:
        with pytest.raises(Unavailable, match="SOFTPROMPT_TLS_CERTIFICATE_FILE"):
            await count(running.port, ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token=TOKEN))


@pytest.mark.usefixtures("quick_retries")
async def test_an_expired_service_certificate_is_named(
    service: dict[str, Any], tmp_path: Path, authority: Authority
) -> None:
    authority.issue("service", valid_hours=-1).write(tmp_path)
    async with running_server(**service) as running:
        with pytest.raises(Unavailable, match="has expired"):
            await count(running.port, ClientSecurity(ca_file=str(tmp_path / "ca.crt"), token=TOKEN))


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("[::1]:1", True),
        ("unix:/run/s", True),
        ("dns:///inference-headless:50052", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("localhost.example:1", False),
        ("127.0.0.1.evil.example:50052", False),
        ("dns:///127.0.0.1.evil.example:50052", False),
        ("127.evil.example:1", False),
        ("evil.example:1/127.0.0.1", False),
        ("dns://resolver.example/localhost:1", False),
        ("xds:///127.0.0.1:1", False),
        ("ipv4:unix:1", False),
        ("::1", True),
        ("::1:50052", False),
        ("[::1%2eevil.example]:1", False),
        ("[::1].evil.example:1", False),
        ("127.0.0.1%2eevil.example:1", False),
        ("", False),
        ("10.0.0.1:50051", False),
    ],
)
def test_tls_is_the_default_for_every_other_machine(endpoint: str, local: bool) -> None:
    assert is_local(endpoint) is local
    assert ClientSecurity().uses_tls(endpoint) is not local
    assert ClientSecurity(tls=False).uses_tls(endpoint) is False
    assert ClientSecurity(ca_file="ca").uses_tls(endpoint) is True


def test_the_environment_says_all_of_it() -> None:
    found = ClientSecurity.from_environment(
        {
            "SOFTPROMPT_TLS": "off",
            "SOFTPROMPT_TLS_CA_FILE": "ca",
            "SOFTPROMPT_TOKEN": TOKEN,
            "SOFTPROMPT_TLS_SERVER_NAME": "s",
        }
    )
    assert found == ClientSecurity(tls=False, ca_file="ca", token=TOKEN, server_name="s")
    assert TOKEN not in repr(found)
    with pytest.raises(InvalidInput, match="SOFTPROMPT_TLS"):
        ClientSecurity.from_environment({"SOFTPROMPT_TLS": "yes please"})


@pytest.mark.parametrize("token", ["secret\nx", "secr\u00e9t", "secret x", "\udcff", b"secret", 5], ids=ascii)
def test_what_no_header_may_have_is_no_token(token: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^SOFTPROMPT_TOKEN: is not a token") as refused:
        TokenSource(ClientSecurity(token=token)).token()
    assert "secr" not in str(refused.value)
    file = tmp_path / "token"
    file.write_bytes(b"\xef\xbb\xbf" + str(token).encode(errors="surrogateescape") + b" x\r\n")
    with pytest.raises(InvalidInput, match=r"^SOFTPROMPT_TOKEN_FILE: is not a token"):
        TokenSource(ClientSecurity(token_file=str(file))).token()


def test_a_token_file_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\n")
    assert TokenSource(ClientSecurity(token_file=str(tmp_path / "token"))).token() == TOKEN


async def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for security in (ClientSecurity(ca_file=str(tmp_path / "none")), ClientSecurity(token_file=str(tmp_path / "none"))):
        with pytest.raises(InvalidInput, match="none"):
            await count(1, security)
    with pytest.raises(InvalidInput, match="SOFTPROMPT_TLS_KEY_FILE"):
        await count(1, ClientSecurity(certificate_file="cert"))


@pytest.mark.parametrize("wrong", ["ca_file", "certificate_file", "key_file"])
async def test_files_that_are_no_pem_are_named(service: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(b"0\x82\x01")
    files = {"certificate_file": service["tls_certificate_file"], "key_file": service["tls_key_file"]}
    reason = (
        f"SOFTPROMPT_TLS_{wrong.upper()}: .*/wrong is not PEM with a {'private key' if wrong == 'key_file' else 'cert'}"
    )
    with pytest.raises(InvalidInput, match=reason):
        await count(1, ClientSecurity(**files | {wrong: str(tmp_path / "wrong")}))


def test_the_command_line_makes_tokens_and_hashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CliRunner(monkeypatch, capsys)
    (made,) = cli("tokens", "new", "--json").json
    assert is_token(made["token"])
    monkeypatch.setattr("sys.stdin", io.StringIO(made["token"] + "\n"))
    assert cli("tokens", "hash").out.strip() == made["token_sha256"] == hash_token(made["token"])
    monkeypatch.setattr("sys.stdin", io.StringIO("secret123"))
    assert cli("tokens", "hash").code == 2


def test_options_before_the_command_go_over_the_environment(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli = CliRunner(monkeypatch, capsys)
    monkeypatch.setenv("SOFTPROMPT_TLS", "on")
    (tmp_path / "token").write_text(TOKEN)
    asked = ("generate", "hello", "--inference", services.inference_endpoint)
    assert cli(*asked).code == 5
    assert cli("--plaintext", "--token-file", str(tmp_path / "token"), *asked).code == 0
    assert cli("--plaintext", "--token-file", str(tmp_path / "none"), *asked).code == 2


@pytest.mark.parametrize(
    ("error", "hint"), [(Unauthenticated("no"), "SOFTPROMPT_TOKEN"), (PermissionDenied("no"), "role")]
)
def test_refusals_come_with_advice(error: Exception, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == 4
    assert hint in capsys.readouterr().err
