"""The gateway as a process: readiness, metrics, TLS, drain, and services that are away."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from softprompt.cli.doctor import gateway_finding
from softprompt.gateway import server
from softprompt.gateway.settings import GatewaySettings
from tests.inference_service.conftest import Brake
from tests.shared.security.pki import Authority
from tests.softprompt.gateway.running import World, running_gateway
from tests.softprompt.gateway.test_attacks import LONG
from tests.tcp_proxy import tcp_proxy
from tests.waiting import until


async def test_metrics_health_and_readiness(services: World) -> None:
    async with httpx.AsyncClient(timeout=None) as client:
        await client.get(f"{services.url}/v1/models")
        for port in (services.gateway.port, services.gateway.metrics_port):
            for path in ("livez", "readyz"):
                assert (await client.get(f"http://127.0.0.1:{port}/{path}")).status_code == 200
        text = (await client.get(f"http://127.0.0.1:{services.gateway.metrics_port}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    handled = {
        (sample.labels["operation"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == "softprompt_gateway_requests_total"
    }
    assert handled["models.list", "200"] >= 1
    assert {"softprompt_gateway_ready", "softprompt_gateway_first_byte_seconds_count"} <= {s.name for s in samples}


@pytest.fixture
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.cli.doctor._SECONDS", 600.0)


@pytest.mark.usefixtures("patient_doctor")
async def test_doctor_finds_the_gateway(services: World) -> None:
    for url in (services.url, f"{services.url}/v1/"):
        found = await asyncio.to_thread(gateway_finding, url)
        assert not found.is_problem
        assert found.text == f"{services.url}, softprompt {version('softprompt')}, ready"
    other = await asyncio.to_thread(gateway_finding, f"http://127.0.0.1:{services.gateway.metrics_port}")
    assert other.is_problem, "a port of the gateway that is not its API"


@pytest.mark.usefixtures("patient_doctor")
async def test_a_gateway_without_its_services_says_so_and_is_not_ready(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    settings = GatewaySettings(
        port=0, trainer="127.0.0.1:1", inference="127.0.0.1:1", ready_file=str(ready), call_seconds=0.5
    )
    stop, ports = asyncio.Event(), list[int]()

    class Noted(server._Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ports.append(sockets[0].getsockname()[1])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(server, "_Server", Noted)
        done = asyncio.create_task(server.serve(settings, stop))
        await until(lambda: ports or done.done())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=None) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        found = await asyncio.to_thread(gateway_finding, f"http://127.0.0.1:{ports[0]}")
        assert (found.is_problem, found.text) == (True, f"http://127.0.0.1:{ports[0]} waits for the inference service")
        for response in (
            await client.get("/v1/models"),
            await client.post("/v1/chat/completions", json=LONG),
            await client.get("/v1/files"),
        ):
            assert response.status_code in (503, 504)
            assert "127.0.0.1:1" not in response.text
            assert response.status_code == 504 or response.headers["retry-after"] == "1"
        status = await client.get("/api/status")
        assert (status.status_code, "127.0.0.1" in status.text) == (200, False)
        assert all(service["error"] for service in status.json().values())
    assert not ready.exists()
    stop.set()
    await done


async def test_a_service_that_hangs_or_restarts_is_answered_for_in_time(
    services: World, held: Brake, tmp_path: Path
) -> None:
    with tcp_proxy(services.replica.port) as replica, tcp_proxy(services.trainer.port) as trainer:
        limits = {"call_seconds": 0.7, "generation_seconds": 2}
        async with (
            running_gateway(tmp_path / "a", trainer.port, replica.port) as patient,
            running_gateway(tmp_path / "b", trainer.port, replica.port, **limits) as hasty,
            httpx.AsyncClient(base_url=patient.url, timeout=None) as client,
            httpx.AsyncClient(base_url=hasty.url, timeout=None) as hurried,
        ):
            paths = "/v1/files", "/v1/fine_tuning/jobs", "/v1/models"
            assert {(await client.get(path)).status_code for path in paths} == {200}
            for asking, fail, status, code in (
                (hurried, lambda: replica.hang(), 504, "timeout"),
                (client, lambda: replica.cut(reset=True), 503, "service_unavailable"),
            ):
                async with asking.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
                    lines = response.aiter_lines()
                    await anext(lines)
                    fail()
                    rest = [line async for line in lines if line.startswith("data: ")]
                error = json.loads(rest[-1].removeprefix("data: "))["error"]
                assert (error["type"], error["code"]) == ("server_error", code), error
                if status == 504:
                    trainer.hang()
                    for path in paths:
                        refused = await hurried.get(path)
                        assert refused.status_code == status
                        assert refused.headers["retry-after"] == "1"
                        assert refused.json()["error"]["message"] == "a service did not answer in time; try again"
                    trainer.resume()
                    replica.resume()
                assert {(await client.get(path)).status_code for path in paths} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drain_finishes_what_runs_and_takes_nothing_new(
    services: World,
    held: Brake,
    tmp_path: Path,
    stream: bool,
) -> None:
    trainer, replica = services.trainer.port, services.replica.port
    async with (
        running_gateway(tmp_path, trainer, replica, grace_seconds=30) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=None) as client,
    ):
        body = {**LONG, "max_tokens": 40, "stream": stream}
        answering = asyncio.create_task(client.post("/v1/chat/completions", json=body))

        async def running() -> bool:
            return await asyncio.to_thread(services.loop.run, services.replica.metric("requests_running")) == 1

        await until(running)
        gateway.stop.set()
        await until(lambda: not (tmp_path / "gateway.json").exists())

        async def refuses() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was in the queue of the socket that closed
                return False
            writer.close()
            return False

        await until(refuses)
        held.holds = False
        response = await answering
        assert response.status_code == 200
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
        await gateway.done


async def test_streams_are_cut_after_the_grace_time(services: World, held: Brake, tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path, services.trainer.port, services.replica.port, grace_seconds=0) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=None) as client,
        client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response,
    ):
        chunks = response.aiter_bytes()
        await anext(chunks)
        gateway.stop.set()
        await gateway.done
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in chunks:
                pass


@pytest.fixture
def quick_tls_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway looks for renewed TLS files twenty times a second."""
    monkeypatch.setattr(server, "_TLS_LOOK_SECONDS", 0.05)


async def answers(url: str, context: ssl.SSLContext) -> bool:
    """Whether a client with this context gets an answer."""
    async with httpx.AsyncClient(verify=context, timeout=None) as client:
        try:
            return (await client.get(f"{url}/livez")).status_code == 200
        except httpx.TransportError:
            return False


@pytest.mark.usefixtures("quick_tls_looks")
async def test_tls_and_a_certificate_that_is_renewed(services: World, tmp_path: Path) -> None:
    authority, other = Authority(), Authority("another")
    certificate, key = authority.issue("gateway").write(tmp_path)
    files = {"tls_certificate_file": str(certificate), "tls_key_file": str(key)}

    async def trusts(made: Authority, url: str) -> bool:
        return await answers(url, ssl.create_default_context(cadata=made.certificate.decode()))

    async with running_gateway(tmp_path, services.trainer.port, services.replica.port, **files) as gateway:
        url = f"https://localhost:{gateway.port}"
        assert await trusts(authority, url)
        assert not await trusts(other, url)
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(timeout=None) as plain:
                await plain.get(f"http://localhost:{gateway.port}/livez")
        other.issue("gateway").write(tmp_path)
        await until(lambda: trusts(other, url))


@pytest.mark.usefixtures("quick_tls_looks")
async def test_a_replaced_client_ca_admits_its_clients_and_no_others(services: World, tmp_path: Path) -> None:
    authority, replacement = Authority(), Authority("another")
    certificate, key = authority.issue("gateway").write(tmp_path)
    client_ca = tmp_path / "clients.crt"
    client_ca.write_bytes(authority.certificate)

    async def admits(clients: Authority, url: str) -> bool:
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        context.load_cert_chain(*clients.issue("client").write(tmp_path, "client"))
        return await answers(url, context)

    def resumed(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        """The session of a request that goes on with a session; None if the gateway refuses it."""
        try:
            with (
                socket.create_connection(("127.0.0.1", port)) as connection,
                context.wrap_socket(connection, server_hostname="localhost", session=session) as tls,
            ):
                tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: tls.recv(4096), b""))  # TLS 1.3 sends its tickets with it
                is_as_asked = answer.startswith(b"HTTP/1.1 200 ") and tls.session_reused == (session is not None)
                return tls.session if is_as_asked else None
        except OSError:
            return None

    contexts = []
    for tls_version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        context.minimum_version = context.maximum_version = tls_version
        context.load_cert_chain(*authority.issue("client").write(tmp_path, "client"))
        contexts.append(context)
    files = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": client_ca}
    settings = {name: str(path) for name, path in files.items()}
    async with running_gateway(tmp_path, services.trainer.port, services.replica.port, **settings) as gateway:
        for host in ("localhost", "127.0.0.1"):  # an address has no server name
            assert await admits(authority, f"https://{host}:{gateway.port}")
            assert not await admits(replacement, f"https://{host}:{gateway.port}")
        sessions = [await asyncio.to_thread(resumed, context, gateway.port, None) for context in contexts]
        for context, session in zip(contexts, sessions, strict=True):
            assert await asyncio.to_thread(resumed, context, gateway.port, session) is not None
        (tmp_path / "clients.new").write_bytes(replacement.certificate)
        (tmp_path / "clients.new").replace(client_ca)
        await until(lambda: admits(replacement, f"https://127.0.0.1:{gateway.port}"))
        for host in ("localhost", "127.0.0.1"):
            assert await admits(replacement, f"https://{host}:{gateway.port}")
            assert not await admits(authority, f"https://{host}:{gateway.port}")
        for context, session in zip(contexts, sessions, strict=True):
            assert await asyncio.to_thread(resumed, context, gateway.port, session) is None


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"host": "0.0.0.0"}, "plaintext"),
        ({"tls_certificate_file": "x"}, "tls_key_file"),
        ({"port": 70_000}, "port"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as error:
        GatewaySettings(**settings)
    assert field in json.dumps([found["loc"] for found in error.value.errors()])
