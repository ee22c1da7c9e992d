"""`softprompt chat` over pipes and on a real terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.softprompt.conftest import Services

COMMAND = [sys.executable, "-m", "softprompt.cli", "chat"]


def piped(services: Services, text: str | bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        "SOFTPROMPT_INFERENCE": services.inference_endpoint,
        "PYTHONIOENCODING": "utf-8:strict",
    }
    given = text if isinstance(text, bytes) else text.encode()
    command = [*COMMAND, *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=environment, check=False)


def test_each_line_of_a_pipe_is_a_turn(services: Services) -> None:
    done = piped(services, "one\n\ntwo\n/reset\n//three\n/exit\nnever\n", "tone", "--temperature", "0.5")
    assert (done.returncode, done.stdout) == (0, b"Hello wide world\n" * 3), done.stderr
    turns = [[turn.content for turn in request.input.chat.messages] for request in services.inference.requests]
    assert turns == [["one"], ["one", "Hello wide world", "two"], ["/three"]]
    assert services.inference.requests[0].sampling.temperature == 0.5


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        ("hi\n", ["unknown"], 3, b"'unknown' does not exist"),
        ("/rest\n", [], 2, b"do you mean '/reset'?"),
        (b"caf\xe9\n", [], 2, b"not text in utf-8"),
        ("", [], 0, b""),
    ],
)
def test_a_pipe_ends_with_its_first_error(
    services: Services, text: str | bytes, arguments: list[str], code: int, said: bytes
) -> None:
    done = piped(services, text, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_ends_the_answer_and_not_the_session(services: Services) -> None:
    services.inference.endless = True
    ours, theirs = pty.openpty()
    environment = {**os.environ, "SOFTPROMPT_INFERENCE": services.inference_endpoint, "TERM": "dumb"}
    shown = b""

    def until(is_there: Callable[[bytes], bool], press: bytes = b"") -> None:
        """Press a key, once more after each 5 s without an answer: a Ctrl-C at the prompt is lost if it comes between
        readline's look at signals and its wait for a key.
        """
        nonlocal shown
        os.write(ours, press)
        while not is_there(shown):
            ready, _, _ = select.select([ours], [], [], 5)
            if ready:
                shown += os.read(ours, 1 << 16)
            else:
                os.write(ours, press)

    with subprocess.Popen(COMMAND, env=environment, preexec_fn=lambda: os.login_tty(theirs)) as process:
        try:
            os.close(theirs)
            until(lambda text: b"> " in text)
            os.write(ours, b"hi\n")
            until(lambda text: b"Hello wide world" in text)
            until(lambda text: b"(stopped)" in text, press=b"\x03")
            services.inference.endless = False
            shown = b""
            os.write(ours, b"again\n")
            until(lambda text: b"Hello wide world\r\n" in text and text.endswith(b"> "))
            until(lambda text: b"ends the chat" in text and text.endswith(b"> "), press=b"\x03")
            os.write(ours, b"\x04")
            assert process.wait() == 0
        finally:
            process.kill()  # otherwise the block waits for it without end
    os.close(ours)
    assert len(services.inference.requests[1].input.chat.messages) == 3, "what came before Ctrl-C is kept"
