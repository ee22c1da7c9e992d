"""When the agent on a node sees a notice, and what wrong usage says. `test_node_loss` drains a real node with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer_service.cluster import node_agent


class Metadata(BaseHTTPRequestHandler):
    """Answers as clouds do: 404 or FALSE before the notice; only with the header that Google requires."""

    answers = iter(list[tuple[int, bytes]]())

    def do_GET(self) -> None:
        status, body = next(self.answers)
        if self.headers.get("Metadata-Flavor") != "Google":
            status, body = 403, b"TRUE"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/preempted"
        server.shutdown()
        thread.join()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[tuple[str, str, float]]]:
    """The exit code, and how the node was drained."""
    drained = list[tuple[str, str, float]]()

    def drain(address: str, node_id: str, seconds: float) -> bool:
        drained.append((address, node_id, seconds))
        return True

    monkeypatch.setattr(node_agent, "drain", drain)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return node_agent.main(["--address", "head:6379", *arguments]), drained


def test_a_notice_comes_from_an_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Metadata, "answers", iter([(404, b""), (503, b"TRUE"), (200, b"FALSE"), (200, b"TRUE"), (200, b"too late")])
    )
    code, drained = run(monkeypatch, "--url", endpoint, "--header", "Metadata-Flavor:Google", "--expect", "TRUE")
    assert (code, drained) == (0, [("head:6379", "", 25.0)])
    assert next(Metadata.answers) == (200, b"too late")


def test_a_notice_comes_from_a_file_while_the_endpoint_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notice").touch()
    unreachable = ("--url", "http://127.0.0.1:1/")
    assert run(monkeypatch, *unreachable, "--file", str(tmp_path / "notice"), "--seconds", "5")[1] == [
        ("head:6379", "", 5.0)
    ]


def test_a_cluster_that_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> bool:
        raise RuntimeError("the node is the head")

    monkeypatch.setattr(node_agent, "drain", refuse)
    assert node_agent.main(["--address", "head:6379"]) == 1
    assert "the node is the head" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--address", "head:6379", "--url", "ftp://x"]])
def test_wrong_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        node_agent.main(arguments)
    assert ended.value.code == 2
    assert "--address" in capsys.readouterr().err or "--url" in capsys.readouterr().err
