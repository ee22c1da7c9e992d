"""A loopback stand-in for the part of Azure's and Google's storage protocols that a conditional write needs: put, get,
delete.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

EXISTS = b"<?xml version='1.0'?><Error><Code>BlobAlreadyExists</Code></Error>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Cloud

    def do_PUT(self) -> None:
        data, azure = self.rfile.read(int(self.headers["Content-Length"])), self.headers.get("If-None-Match") == "*"
        google = self.headers.get("x-goog-if-generation-match") == "0"
        if self.server.honest and (azure or google) and self._key in self.server.objects:
            self._reply(409 if azure else 412, EXISTS)
            return
        self.server.objects[self._key] = data
        self._reply(201 if azure else 200)

    def do_GET(self) -> None:
        found = self.server.objects.get(self._key)
        self._reply(404) if found is None else self._reply(200, found)

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._key, None)
        self._reply(204)

    def do_POST(self) -> None:
        """Azure's batch of deletions."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body)):
            self.server.objects.pop(unquote(path.split("?")[0]), None)
            parts.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"
            )
        self._reply(202, ("".join(parts) + "--b--").encode(), "multipart/mixed; boundary=b")

    def log_message(self, format: str, *args: object) -> None:
        """Writes no log; tests assert on the objects."""

    @property
    def _key(self) -> str:
        return unquote(self.path.split("?")[0])

    def _reply(self, code: int, body: bytes = b"", content_type: str = "application/xml") -> None:
        self.send_response(code)
        for name, value in (
            ("ETag", '"1"'),
            ("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT"),
            ("Content-Type", content_type),
        ):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Cloud(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, honest: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.honest = honest
        self.objects: dict[str, bytes] = {}


@contextmanager
def cloud(honest: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its address and objects. If it is not `honest`, it accepts conditions and ignores them."""
    server = _Cloud(honest)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.objects
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
