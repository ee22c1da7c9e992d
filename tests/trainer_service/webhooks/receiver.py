"""A real HTTP server that receives webhooks and checks their signatures as a receiver would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(KEY[::-1]).decode()
"""A secret that the operator has added, and the receiver does not know yet."""


@dataclass(frozen=True)
class Received:
    id: str
    type: str
    data: dict[str, Any]
    num_signatures: int
    """One is by the secret that the receiver knows."""


@dataclass
class Receiver:
    url: str = ""
    answer: Callable[[Received], int] = lambda event: 204
    """The status of the answer to an event."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answers."""
    events: list[Received] = field(default_factory=list)

    @property
    def distinct(self) -> list[Received]:
        """Each event once, where it first came: it comes again if its trainer ends before it has noted the delivery."""
        return list({event.id: event for event in self.events}.values())

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def write_file(self, path: Path, **endpoint: Any) -> Path:
        """A webhooks file with this receiver as its endpoint."""
        entry = {"name": "here", "url": self.url, "secrets": [NEXT_SECRET, SECRET], **endpoint}
        path.write_text(json.dumps({"endpoints": [entry]}))
        return path


@contextmanager
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
            signatures = self.headers["webhook-signature"].split()
            assert f"v1,{digest}" in signatures
            parsed = json.loads(body)
            event = Received(self.headers["webhook-id"], parsed["type"], parsed["data"], len(signatures))
            made.events.append(event)
            self.send_response(made.answer(event))
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("location", made.url)  # matters for a redirect only
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Writes nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/hooks/secret-path"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
