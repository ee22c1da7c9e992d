"""TLS and mTLS over real sockets: certificates that are renewed, expired, foreign or broken, and streams that outlive a
renewal.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prompttuning.v1 import generation_pb2, generation_pb2_grpc
from pydantic import ValidationError

from shared.config import ConfigError, ServerSettings
from shared.errors import PermissionDenied
from shared.rpc.server import server_credentials
from shared.security.certificates import CertificateReader, TlsFiles
from tests.shared.rpc.service import Running, count_request, refusal, running_server
from tests.shared.security.pki import Authority, Pair


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def settings(directory: Path, pair: Pair, client_ca: Authority | None = None) -> dict[str, Any]:
    certificate, key = pair.write(directory)
    found = {"tls_certificate_file": str(certificate), "tls_key_file": str(key)}
    if client_ca is not None:
        (directory / "clients.crt").write_bytes(client_ca.certificate)
        found["tls_client_ca_file"] = str(directory / "clients.crt")
    return found


def channel(running: Running, authority: Authority, client: Pair | None = None) -> grpc.aio.Channel:
    identity = {} if client is None else {"private_key": client.key, "certificate_chain": client.certificate}
    credentials = grpc.ssl_channel_credentials(root_certificates=authority.certificate, **identity)
    options = [("grpc.use_local_subchannel_pool", 1)]  # so each channel has its own connection and handshake
    return grpc.aio.secure_channel(f"localhost:{running.port}", credentials, options=options)


async def answers(running: Running, authority: Authority, client: Pair | None = None) -> bool:
    """Whether a new connection with this identity is served."""
    async with channel(running, authority, client) as made:
        call = generation_pb2_grpc.GenerationServiceStub(made).CountTokens(count_request())
        code = await call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


async def test_only_tls_is_served_and_health_on_a_plaintext_port_of_its_own(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_server(**settings(tmp_path, authority.issue("service")), health_port=0) as running:
        assert await answers(running, authority)
        assert not await answers(running, Authority("another"))
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.CountTokens(count_request())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.server.health_port}") as plain:
            answer = await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(service="live"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generation_pb2_grpc.GenerationServiceStub(plain).CountTokens(count_request())
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_renewed_certificate_serves_new_connections_and_old_streams_go_on(
    tmp_path: Path, authority: Authority
) -> None:
    successor = Authority("the next one")
    async with (
        running_server(**settings(tmp_path, authority.issue("service"))) as running,
        channel(running, authority) as old,
    ):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(old)
        stream = stub.GenerateStream(generation_pb2.GenerateStreamRequest())
        assert (await stream.read()).delta.text == "first"
        assert not await answers(running, successor)
        successor.issue("service").write(tmp_path)
        assert await answers(running, successor)
        assert not await answers(running, authority)
        running.servicer.release.set()
        assert (await stream.read()).delta.text == "last"
        assert await stream.read() is grpc.aio.EOF
        gauge = "softprompt_tls_certificate_expiry_timestamp_seconds"
        assert (running.registry.get_sample_value(gauge) or 0) > 1e9


async def test_broken_or_half_written_files_change_nothing(tmp_path: Path, authority: Authority) -> None:
    async with running_server(**settings(tmp_path, authority.issue("service"))) as running:
        (tmp_path / "tls.crt").write_bytes(authority.issue("service").certificate)  # the key is not there yet
        assert await answers(running, authority)
        (tmp_path / "tls.crt").write_bytes(b"-----BEGIN nonsense")
        assert await answers(running, authority)
        (tmp_path / "tls.crt").unlink()
        (tmp_path / "tls.key").unlink()
        assert await answers(running, authority)
        successor = Authority("the next one")
        successor.issue("service").write(tmp_path)
        assert await answers(running, successor)


async def test_mutual_tls_takes_only_valid_certificates_of_its_authority(tmp_path: Path, authority: Authority) -> None:
    clients = Authority("clients")
    async with running_server(**settings(tmp_path, authority.issue("service"), clients)) as running:
        assert await answers(running, authority, clients.issue("shop"))
        assert not await answers(running, authority)
        assert not await answers(running, authority, authority.issue("shop"))
        assert not await answers(running, authority, clients.issue("shop", valid_hours=-1))


async def test_an_expired_certificate_is_logged_and_clients_refuse_it(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with running_server(**settings(tmp_path, authority.issue("service", valid_hours=-1))) as running:
            assert "EXPIRED" in caplog.text
            assert not await answers(running, authority)
            authority.issue("service").write(tmp_path)
            assert await answers(running, authority)


async def test_a_client_certificate_is_an_identity(tmp_path: Path, authority: Authority) -> None:
    callers = tmp_path / "callers.json"
    entry = {"name": "shop", "roles": ["generator"], "certificates": ["spiffe://cluster/ns/shop/sa/web"]}
    callers.write_text(json.dumps({"callers": [entry]}))
    made = settings(tmp_path, authority.issue("service"), authority)
    async with running_server(**made, callers_file=str(callers)) as running:
        known, unknown = (
            authority.issue("web", uri="spiffe://cluster/ns/shop/sa/web"),
            authority.issue("web", uri="spiffe://cluster/ns/x"),
        )
        async with channel(running, authority, known) as made_channel:
            await generation_pb2_grpc.GenerationServiceStub(made_channel).CountTokens(count_request())
        async with channel(running, authority, unknown) as made_channel:
            stub = generation_pb2_grpc.GenerationServiceStub(made_channel)
            assert isinstance(await refusal(stub.CountTokens(count_request())), PermissionDenied)


def test_what_asks_for_new_files_never_raises(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.issue("service").write(tmp_path)
    reader = CertificateReader(TlsFiles(certificate, key))
    authority.issue("service").write(tmp_path)

    def broken() -> None:
        raise MemoryError

    monkeypatch.setattr(reader, "_read", broken)
    assert reader.renewed() is None
    monkeypatch.undo()
    assert reader.renewed() is not None
    assert reader.renewed() is None


@pytest.mark.parametrize("damage", ["foreign key", "no key", "no certificate", "bad ca", "password"])
def test_files_that_can_not_be_used_stop_the_start(tmp_path: Path, authority: Authority, damage: str) -> None:
    certificate, key = authority.issue("service").write(tmp_path)
    client_ca = None
    if damage == "foreign key":
        key.write_bytes(authority.issue("service").key)
    elif damage == "no key":
        key.unlink()
    elif damage == "no certificate":
        certificate.write_bytes(b"")
    elif damage == "password":
        key.write_bytes(key.read_bytes().replace(b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"))
    else:
        client_ca = tmp_path / "ca.crt"
        client_ca.write_bytes(b"nothing")
    with pytest.raises(ConfigError):
        server_credentials(TlsFiles(certificate, key, client_ca))


def test_the_key_is_in_no_message(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("service").write(tmp_path)
    secret = key.read_text().splitlines()[1]
    certificate.write_bytes(key.read_bytes())  # mixed up
    with pytest.raises(ConfigError) as caught:
        server_credentials(TlsFiles(certificate, key))
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "0.0.0.0"},
        {"tls_certificate_file": "a"},
        {"tls_key_file": "a"},
        {"tls_client_ca_file": "a"},
        {"tls_certificate_file": "a", "tls_key_file": "b", "plaintext": True},
        {"oidc_issuer": "https://i"},
        {"oidc_issuer": "https://i", "oidc_audience": "a", "oidc_jwks_url": "https://i/keys"},
        {"callers_file": "c", "oidc_issuer": "https://i", "oidc_audience": "a", "oidc_jwks_url": "http://i/keys"},
        {"callers_file": "c", "oidc_issuer": "https://i", "oidc_audience": "a", "oidc_jwks_url": "file:///etc/passwd"},
        {"otlp_endpoint": "collector:4317"},
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, str | bool]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(**changes)  # type: ignore[arg-type]


async def test_plaintext_beyond_this_machine_needs_a_setting_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with running_server(host="0.0.0.0", plaintext=True) as running:
            await running.stub.CountTokens(count_request())
    assert "PLAINTEXT" in caplog.text
    assert "NO AUTHENTICATION" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        async with running_server():
            pass
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "plaintext, on loopback only" in caplog.text


async def test_silent_connections_are_closed_and_delay_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.rpc.server.HANDSHAKE_SECONDS", 0.5)
    async with running_server(health_port=0) as running:
        ports = [running.port] * 50 + [running.server.health_port] * 50
        silent = [await asyncio.open_connection("127.0.0.1", port) for port in ports]
        await running.stub.CountTokens(count_request())
        for reader, writer in silent:
            while await reader.read(1 << 16):
                pass
            writer.close()
