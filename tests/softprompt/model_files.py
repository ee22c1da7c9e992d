"""A file server for base models, and small models of its files."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from softprompt.model_server import write_manifest
from tests.softprompt.hub_server import FIRST

_HEADER = b'{"a":{"dtype":"U8","shape":[320000],"data_offsets":[0,320000]}}'
WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + b"weights " * 40_000
TOKEN = "of-the-team"


@dataclass
class FileServer:
    """`url` serves `root`. It breaks off each answer after `breaks_after` bytes, once per file, if that is set."""

    url: str
    root: Path
    token: str = ""
    breaks_after: int = 0
    broken: set[str] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    elsewhere: str = ""
    """Set: everything is redirected to this server."""
    tokens: list[str] = field(default_factory=list)


@contextmanager
def file_server(root: Path) -> Iterator[FileServer]:
    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            state.tokens.append(self.headers.get("Authorization", ""))
            if state.elsewhere:
                self.send_response(302)
                self.send_header("Location", state.elsewhere + self.path)
                self.end_headers()
                return
            if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                self.send_error(403 if self.headers.get("Authorization") else 401)
                return
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data, start = path.read_bytes(), 0
            if asked := self.headers.get("Range"):
                state.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if state.breaks_after and path.name not in state.broken:
                state.broken.add(path.name)
                data = data[: state.breaks_after]
            self.wfile.write(data[start:])

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    state = FileServer(f"http://127.0.0.1:{http.server_address[1]}", root)
    try:
        yield state
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def make_model(directory: Path, hub_id: str = "") -> str:
    """The fingerprint of a small model with its manifest."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    (directory / "notes.md").write_text("no part of the model")
    return write_manifest(directory, hub_id, FIRST if hub_id else "").fingerprint
