"""The command line in an awkward shell: proxies, narrow encodings, closed or full streams, no home, odd paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import DeadlineExceeded, InvalidInput, NotFound, Unavailable
from shared.process.proxies import grpc_proxy, reach_loopback_directly
from shared.process.user_cache import ensure_home
from softprompt.cli.error_report import report
from softprompt.client.async_client import AsyncClient
from softprompt.client.security import ClientSecurity
from softprompt.endpoints import MAX_SOCKET_PATH_BYTES
from softprompt.input_files import MAX_PIPE_BYTES, input_file
from tests.devices import full_device
from tests.softprompt.conftest import Services
from tests.tcp_proxy import silent_server

NOWHERE = "http://user:secret@127.0.0.1:9"
PROXIES: dict[str, Any] = dict.fromkeys(
    ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), NOWHERE
)
ANSWER = "Zürich costs 5 € 日本 😀"


class Shell:
    """Runs `softprompt` in a shell against the fakes, with only those variables that a test names beside the usual
    ones.
    """

    def __init__(self, services: Services, home: Path) -> None:
        taken = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in {proxy.lower() for proxy in PROXIES}
        }
        self._environment = {
            **taken,
            "SOFTPROMPT_TRAINER": services.trainer_endpoint,
            "SOFTPROMPT_INFERENCE": services.inference_endpoint,
            "HOME": str(home),
        }

    def __call__(
        self, script: str, *, without: str = "", stdin: bytes = b"", **environment: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """`SP` in the script is the command."""
        variables = {name: value for name, value in {**self._environment, **environment}.items() if name != without}
        command = script.replace("SP", f"{sys.executable} -m softprompt.cli")
        return subprocess.run(["bash", "-c", command], env=variables, input=stdin, capture_output=True, check=False)


@pytest.fixture
def shell(services: Services, tmp_path: Path) -> Shell:
    services.inference.pieces = [ANSWER]
    return Shell(services, tmp_path)


def test_a_proxy_is_never_asked_for_this_machine(shell: Shell) -> None:
    done = shell("SP info && SP generate hi", **PROXIES)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
async def test_a_proxy_that_is_to_blame_is_named_without_its_password(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, NOWHERE)
    security = ClientSecurity(tls=False)
    async with AsyncClient(trainer="trainer.invalid:50051", security=security, timeout_seconds=600) as client:
        with pytest.raises(Unavailable, match=rf"through the proxy {variable}=http://\*\*\*@127.0.0.1:9") as caught:
            await client.service_info()
    report(caught.value)
    shown = capsys.readouterr().err
    assert "no_proxy=HOST" in shown
    assert "secret" not in shown


async def test_a_proxy_that_never_answers_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with silent_server() as port:
        monkeypatch.setenv("grpc_proxy", f"http://127.0.0.1:{port}")
        async with AsyncClient(
            trainer="trainer.invalid:50051", security=ClientSecurity(tls=False), timeout_seconds=0.5
        ) as client:
            with pytest.raises((DeadlineExceeded, Unavailable), match="through the proxy grpc_proxy="):
                await client.service_info()


@pytest.mark.parametrize(
    ("exceptions", "host", "is_direct"),
    [
        ("", "trainer.example.com", False),
        ("example.com", "trainer.example.com", True),
        (" other.org , .example.com", "trainer.EXAMPLE.com", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("fd00::/8", "[fd00::1]", True),
        ("*", "trainer.example.com", True),
        ("*.example.com", "trainer.example.com", True),
        ("*.example.com", "trainer.example.org", False),
    ],
)
def test_exceptions_are_read_as_grpc_reads_them(exceptions: str, host: str, is_direct: bool) -> None:
    environment = {"https_proxy": "http://proxy:3128", "no_proxy": exceptions}
    assert grpc_proxy(host, environment) == ("" if is_direct else "https_proxy=http://proxy:3128")


def test_http_libraries_and_children_reach_loopback_directly() -> None:
    environment = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "internal, 10.0.0.0/8"}
    reach_loopback_directly(environment)
    reach_loopback_directly(environment)
    wanted = "internal,10.0.0.0/8,localhost,127.0.0.1,::1,127.0.0.0/8"
    assert (environment["no_proxy"], environment["NO_PROXY"]) == (wanted, wanted)
    alone = {"PATH": "/bin"}
    reach_loopback_directly(alone)
    assert alone == {"PATH": "/bin"}
    everything = {"http_proxy": "http://proxy", "no_proxy": "*"}
    reach_loopback_directly(everything)
    assert everything["no_proxy"] == "*"
    assert grpc_proxy("trainer.example.com", everything) == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"grpc_proxy": "http://proxy"},
        {"https_proxy": "http://proxy", "no_grpc_proxy": "example.com"},
        {"https_proxy": "http://proxy", "no_proxy": "*"},
        {"https_proxy": "http://proxy", "NO_PROXY": "*"},
    ],
)
def test_grpc_in_children_reaches_loopback_directly(environment: dict[str, str]) -> None:
    reach_loopback_directly(environment)
    read_by_grpc = environment.get("no_grpc_proxy") or environment["no_proxy"]
    assert {"localhost", "127.0.0.1", "::1"} <= set(read_by_grpc.split(","))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_answers_and_json_get_through_narrow_encodings(shell: Shell, encoding: str) -> None:
    done = shell("SP generate hi && SP generate hi --json && SP tune --help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text, *lines = done.stdout.decode(encoding).splitlines()
    assert text == ANSWER.encode(encoding, "backslashreplace").decode(encoding)
    assert json.loads(lines[1])["delta"]["text"] == ANSWER


def test_an_argument_of_utf8_is_understood_in_an_ascii_locale(shell: Shell, services: Services) -> None:
    done = shell("SP generate 'naïve 日本'", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0
    assert services.inference.requests[-1].input.text == "naïve 日本"


def test_standard_input_is_read_in_its_encoding(shell: Shell, services: Services) -> None:
    assert shell("SP generate -", stdin="café\n".encode("cp1252"), PYTHONIOENCODING="cp1252").returncode == 0
    assert services.inference.requests[-1].input.text == "café"
    assert shell("SP generate -", stdin="\ufeffcafé\n".encode(), PYTHONIOENCODING="utf-8").returncode == 0
    assert services.inference.requests[-1].input.text == "café"
    for variables in ({"PYTHONIOENCODING": "utf-8"}, {"LC_ALL": "C"}):
        done = shell("SP generate -", stdin=b"caf\xe9", **variables)
        assert done.returncode == 2
        assert done.stderr.startswith(
            b"error: standard input is not text in utf-8\nhint: set its encoding, for example PYTHONIOENCODING"
        )
    done = shell(r"SP generate $'\xff\xfe'")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        b"error: the input is not text in this shell's encoding",
    )


def test_closed_streams_are_no_mistake_of_the_program(shell: Shell) -> None:
    done = shell("SP generate hi >&- && SP info --json >&- 2>&- <&-")
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell("SP generate - <&-")
    assert (done.returncode, done.stderr) == (2, b"error: input.text: must not be empty\n")


def test_a_full_disk_under_the_output_is_said_once(shell: Shell) -> None:
    for command in ("generate hi", "info --json", "--help"):
        done = shell(f"SP {command} > /dev/full")
        assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n"), command
    assert shell("SP generate --prompt unknown hi 2> /dev/full").returncode == 3


def test_a_file_that_does_not_fit_is_named_and_what_was_there_is_kept(shell: Shell, tmp_path: Path) -> None:
    """A limit of the size of files acts as a full disk does."""
    source = tmp_path / "in.csv"
    source.write_text("text,label\n" + "".join(f"number {number},x\n" for number in range(600)))
    out = tmp_path / "out.csv"
    out.write_text("former")
    done = shell(f"ulimit -f 2; SP data convert {source} {out} --overwrite")
    assert (done.returncode, done.stderr.decode().splitlines()[1:]) == (1, [f"error: {out}: File too large"])
    assert out.read_text() == "former"
    done = shell(f"ulimit -f 0; SP init {tmp_path / 'new.csv'}")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'new.csv.README.md'}: File too large\n".encode())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_a_full_device_is_named_and_stays_a_device(shell: Shell, tmp_path: Path) -> None:
    source, device = tmp_path / "in.csv", full_device(tmp_path)
    source.write_text("text,label\n" + "".join(f"number {number},x\n" for number in range(600)))
    for form in ("csv", "xlsx", "parquet"):
        done = shell(f"SP data convert {source} {device} --format {form}")
        assert done.returncode == 1
        assert done.stderr.decode().splitlines()[1:] == [f"error: {device}: No space left on device"], form
        assert device.is_char_device(), form


def test_answers_that_fit_before_the_disk_was_full_are_kept(shell: Shell, services: Services, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\n" + "".join(f"number {number}\n" for number in range(30)))
    command = f"SP generate --file {source} --out {out} --concurrency 1"
    done = shell(f"ulimit -f 1; {command}")
    assert done.returncode == 1
    assert f"error: {out}.progress.jsonl: File too large" in done.stderr.decode()
    kept = re.search(r"hint: (\d+) answers are in", done.stderr.decode())
    assert kept is not None
    services.inference.requests.clear()
    assert shell(command).returncode == 0
    assert len(services.inference.requests) == 30 - int(kept[1])


def test_a_reader_that_leaves_ends_the_command_in_silence(shell: Shell, services: Services) -> None:
    services.inference.endless = True
    for command in ("SP generate hi", "SP generate hi --json"):
        done = shell(f"set -o pipefail; {command} | head -c 20")
        assert (done.returncode, done.stderr) == (1, b"")


def test_a_terminal_of_twenty_columns(shell: Shell) -> None:
    """Tables become blocks whose words are whole; a terminal that holds a table shows one."""
    done = shell(
        r'script -qec "stty cols 20; SP jobs list && SP info && SP tune --help" /dev/null', TERM="xterm", COLUMNS="20"
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stdout
    lines = done.stdout.decode().splitlines()
    assert {"JOB tuningJobs/0", "STATE RUNNING"} <= set(lines), lines[:9]
    wide = shell(r'script -qec "stty cols 100; SP jobs list" /dev/null', TERM="dumb", COLUMNS="100")
    assert re.match(rb"JOB +PROMPT +STATE", wide.stdout)


def test_without_a_home_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    ensure_home()
    made = tmp_path / f"softprompt-home-{os.getuid()}"
    assert os.environ["HOME"] == str(made)
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)  # any user could have made it so
    ensure_home()
    assert os.environ["HOME"] != str(made)
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700


def test_an_unknown_home_is_no_error_of_the_program(shell: Shell) -> None:
    done = shell("SP tune '~nobody-knows-me/train.jsonl' --prompt tone", without="HOME")
    assert (done.returncode, done.stderr) == (3, b"error: dataset file '~nobody-knows-me/train.jsonl' does not exist\n")


def test_examples_come_from_pipes_and_standard_input(shell: Shell, services: Services, tmp_path: Path) -> None:
    examples = tmp_path / "train.jsonl"
    examples.write_text('{"input": "a", "output": "b"}\n')
    for script in (
        f"SP tune - --prompt tone < {examples}",
        f"cat {examples} | SP tune - --prompt tone",
        f"SP tune <(cat {examples}) --prompt t",
    ):
        assert shell(script).returncode == 0
        header, content = services.trainer.uploads.pop()
        assert content == examples.read_bytes()
        assert isinstance(header, tuning_pb2.DatasetHeader)
        assert header.size_bytes == len(content)


def test_what_is_no_file_is_called_what_it_is(shell: Shell, tmp_path: Path) -> None:
    for script, code, message in (
        (f"SP tune {tmp_path} --prompt t", 2, f"dataset: '{tmp_path}' is a directory; a file is expected"),
        ("SP tune /nowhere --prompt t", 3, "dataset file '/nowhere' does not exist"),
        ("SP prompts import - --prompt t", 2, "file: '-' is neither a file nor a directory; a pipe can't be imported"),
        ("SP prompts import <(true) --prompt t", 2, "is neither a file nor a directory; a pipe can't be imported"),
        (f"SP --token-file {tmp_path} info", 2, f"SOFTPROMPT_TOKEN_FILE: {tmp_path}: Is a directory"),
        (f"SP --tls-ca-file {tmp_path} info", 2, f"SOFTPROMPT_TLS_CA_FILE: {tmp_path}: Is a directory"),
    ):
        done = shell(script)
        assert done.returncode == code, done.stderr
        assert message in done.stderr.decode().splitlines()[0]


def test_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n")
    assert input_file(file, "dataset") == file
    with pytest.raises(InvalidInput, match="dataset: the file name is empty"):
        input_file("", "dataset")
    with pytest.raises(InvalidInput, match=r"dataset: can't read .*File name too long"):
        input_file("x" * 300, "dataset")
    with pytest.raises(InvalidInput, match=r"dataset: can't read .*null"):
        input_file("a\0b", "dataset")
    with pytest.raises(NotFound):
        input_file(file / "below", "dataset")
    monkeypatch.setattr("softprompt.input_files.MAX_PIPE_BYTES", 1 << 20)
    with pytest.raises(InvalidInput, match="'/dev/zero' has more than 1 MiB"):
        input_file("/dev/zero", "dataset")
    assert MAX_PIPE_BYTES == 512 << 20


async def test_the_path_of_a_socket_that_is_too_long_is_refused_by_its_length() -> None:
    path = "/tmp/" + "x" * MAX_SOCKET_PATH_BYTES
    async with AsyncClient(f"unix:{path}") as client:
        with pytest.raises(InvalidInput, match=f"trainer: .* at most {MAX_SOCKET_PATH_BYTES} bytes"):
            await client.service_info()


def test_standard_input_is_read_also_where_it_has_no_path() -> None:
    code = "import softprompt.input_files as files; files.STANDARD_INPUT = files.Path('/none')\n"
    code += "print(files.input_file('/none', 'dataset'))"
    done = subprocess.run([sys.executable, "-c", code], input=b"a,b", capture_output=True, check=True)
    assert done.stdout == b"b'a,b'\n"
