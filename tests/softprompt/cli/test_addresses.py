"""Mistakes in an address: one sentence, at once, exit code 2."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from shared.errors import InvalidInput
from softprompt.endpoints import MAX_SOCKET_PATH_BYTES, check_endpoint
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services

MISTAKES = [
    ("http://127.0.0.1:50051", "leave out http://, as in 127.0.0.1:50051"),
    ("https://trainer.example.com", "leave out https://, as in trainer.example.com:50051"),
    ("https://trainer.example.com:443/v1", "leave out https://, as in trainer.example.com:443"),
    ("grpc://[::1]:50051", "leave out grpc://, as in [::1]:50051"),
    ("http://[::1]", "leave out http://, as in [::1]:50051"),
    ("trainer.example.com:50051/v1", "an address has no path, as in trainer.example.com:50051"),
    ("trainer.example.com:50051/", "an address has no path"),
    ("trainer", "the port is missing, as in trainer:50051"),
    ("trainer:", "the port is missing, as in trainer:50051"),
    ("[::1]", "the port is missing, as in [::1]:50051"),
    ("dns:///trainer", "the port is missing, as in trainer:50051"),
    ("dns://8.8.8.8/trainer", "the port is missing"),
    ("50051", "the host is missing, as in 127.0.0.1:50051"),
    (":50052", "the host is missing, as in 127.0.0.1:50052"),
    ("::1:50051", "an IPv6 address is written in brackets, as in [::1]:50051"),
    ("fe80::1", "an IPv6 address is written in brackets"),
    ("[::1", "an IPv6 address is written in brackets"),
    ("[localhost]:50051", "[localhost] is not an IPv6 address"),
    ("trainer:grpc", "'grpc' is not a port: a number from 1 to 65535 is expected"),
    ("trainer:0", "'0' is not a port"),
    ("trainer:65536", "'65536' is not a port"),
    ("trainer:٣", "is not a port"),
    ("ipv4:10.0.0.1:1,10.0.0.2", "the port is missing, as in 10.0.0.2:50051"),
    ("10.0.0.1:1,10.0.0.2:1", "several addresses are written ipv4:ADDRESS:PORT,ADDRESS:PORT"),
    ("me@trainer:50051", "an address has no user name"),
    ("trainer :50051", "a space or a control character"),
    ("trainer:50051\n", "a space or a control character"),
    ("/run/trainer.socket", "a Unix socket is written unix:/run/trainer.socket"),
    ("unix:", "the path is missing"),
    ("unix://run/trainer.socket", "unix:// needs an absolute path"),
    ("unix:/" + "x" * MAX_SOCKET_PATH_BYTES, "at most 107 bytes"),
]
FINE = [
    "127.0.0.1:50051",
    "localhost:1",
    "trainer_1.example.com:443",
    "[::1]:50051",
    "dns:///trainer:50051",
    "dns:trainer:50051",
    "dns://8.8.8.8/trainer:50051",
    "ipv4:10.0.0.1:1,10.0.0.2:2",
    "ipv6:[::1]:1",
    "unix:/run/trainer.socket",
    "unix:///run/trainer.socket",
    "unix:trainer.socket",
    "unix-abstract:trainer",
]


@pytest.mark.parametrize(("address", "message"), MISTAKES)
def test_what_can_never_be_reached_is_refused(address: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_endpoint(address, "trainer", 50051)
    assert message in str(caught.value)
    assert str(caught.value).startswith("trainer: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", FINE)
def test_addresses_of_every_kind_are_taken(address: str) -> None:
    check_endpoint(address, "trainer", 50051)


@pytest.mark.parametrize(
    ("command", "option", "variable"),
    [
        (("jobs", "list"), "--trainer", "SOFTPROMPT_TRAINER"),
        (("jobs", "watch", "job1"), "--trainer", "SOFTPROMPT_TRAINER"),
        (("prompts", "watch"), "--trainer", "SOFTPROMPT_TRAINER"),
        (("generate", "hi"), "--inference", "SOFTPROMPT_INFERENCE"),
        (("classify", "hi", "--prompt", "p"), "--inference", "SOFTPROMPT_INFERENCE"),
        (("prompts", "loaded"), "--inference", "SOFTPROMPT_INFERENCE"),
    ],
)
def test_the_command_line_says_it_in_one_line(
    cli: CliRunner, command: tuple[str, ...], option: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = cli(*command, option, "http://127.0.0.1:1")
    assert (given.code, given.out, given.err.count("\n")) == (2, "", 1)
    assert f"error: {option[2:]}: 'http://127.0.0.1:1' is not an address of a service: leave out http://" in given.err
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert (cli(*command).code, cli(*command).err) == (2, given.err)


@pytest.mark.parametrize(
    "command", [("jobs", "list"), ("jobs", "watch", "job1"), ("jobs", "cancel", "job1"), ("prompts", "watch")]
)
def test_the_inference_service_in_place_of_the_trainer(
    cli: CliRunner, services: Services, command: tuple[str, ...]
) -> None:
    outcome = cli(*command, "--trainer", services.inference_endpoint)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"trainer: {services.inference_endpoint} is the inference service and not the trainer" in outcome.err
    assert "are the addresses of trainer and inference swapped?" in outcome.err


@pytest.mark.parametrize("command", [("generate", "hi"), ("classify", "hi", "--prompt", "p"), ("prompts", "loaded")])
def test_the_trainer_in_place_of_the_inference_service(
    cli: CliRunner, services: Services, command: tuple[str, ...]
) -> None:
    outcome = cli(*command, "--inference", services.trainer_endpoint)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"inference: {services.trainer_endpoint} is the trainer and not the inference service" in outcome.err


@pytest.fixture
def web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("quick_retries")
def test_a_port_that_speaks_no_grpc(cli: CliRunner, web_server: str) -> None:
    outcome = cli("jobs", "list", "--trainer", web_server)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"trainer: {web_server} does not speak gRPC" in outcome.err


PORTS = ["--trainer-port", "--inference-port", "--gateway-port"]


@pytest.mark.parametrize("option", PORTS)
def test_up_on_a_port_that_is_taken(cli: CliRunner, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = [arg for other in PORTS if other != option for arg in (other, "0")]
        outcome = cli("up", option, str(port), *others, "--model", "no-such-model")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"error: cannot listen on 127.0.0.1:{port} ({option}): another program uses this port" in outcome.err
    # it was found before anything was loaded: the model does not exist


def test_up_on_an_address_of_another_machine_or_with_one_port_for_both(cli: CliRunner) -> None:
    outcome = cli(
        "up", "--host", "192.0.2.1", "--trainer-port", "0", "--inference-port", "0", "--model", "no-such-model"
    )
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "cannot listen on 192.0.2.1:0 (--trainer-port): this machine has no such address" in outcome.err
    outcome = cli(
        "up", "--host", "2001:db8::1", "--trainer-port", "0", "--inference-port", "0", "--model", "no-such-model"
    )
    assert "cannot listen on [2001:db8::1]:0 (--trainer-port): this machine has no such address" in outcome.err
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    outcome = cli("up", "--trainer-port", port, "--inference-port", port, "--model", "no-such-model")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"two services can't listen on port {port}: change --trainer-port or --inference-port" in outcome.err


def test_up_on_a_place_that_can_not_be_written(cli: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, reason in (
        (tmp_path / "file", "it is not a directory"),
        (tmp_path / "file" / "below", "Not a directory"),
        (Path("/proc/nowhere"), "No such file or directory"),
        (Path("/sys/kernel"), ""),
    ):
        free = [arg for port in PORTS for arg in (port, "0")]
        outcome = cli("up", "--data", str(place), *free, "--model", "no-such-model")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert f"error: --data: can't write to {str(place)!r}: {reason}" in outcome.err


def test_up_in_a_place_of_another_up(cli: CliRunner, tmp_path: Path) -> None:
    free = [arg for port in PORTS for arg in (port, "0")]
    with FileLock(tmp_path / "up.lock"):
        outcome = cli("up", "--data", str(tmp_path), *free, "--model", "no-such-model")
    assert outcome.code == 2
    assert f"error: --data: another softprompt up uses {str(tmp_path)!r}" in outcome.err
    assert "no-such-model" in cli("up", "--data", str(tmp_path), *free, "--model", "no-such-model").err
