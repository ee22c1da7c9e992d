"""An S3 server on a directory, so that it can be killed: `python -m tests.chaos.object_server DIRECTORY PORT`.

It speaks the part of the protocol that the prompt store needs: conditional writes, reads, lists, deletions. An answered
write is synced to disk.
"""

from __future__ import annotations

import hashlib
import re
import sys
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from shared.store.base import ObjectInfo
from shared.store.local import LocalBackend

_MOST = 1 << 30


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match") != "*":
            self.server.objects.put(self._key, data)
        elif not self.server.objects.create(self._key, data):
            self._reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self._reply(200, etag=_etag(data))

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._reply(200, _listed(self.server.objects.list(query["prefix"][0])))
            return
        info, data = self.server.objects.head(self._key), self.server.objects.get(self._key, _MOST)
        if info is None or data is None:
            self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self._reply(200, data, etag=_etag(data), modified=format_datetime(info.modified_at, usegmt=True))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.server.objects.delete(self._key)
        self._reply(204)

    def do_POST(self) -> None:
        """Deletes several objects."""
        keys = re.findall(r"<Key>([^<]*)</Key>", self.rfile.read(int(self.headers["Content-Length"])).decode())
        for key in keys:
            self.server.objects.delete(key)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._reply(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Writes no log."""

    @property
    def _key(self) -> str:
        _, _, key = unquote(urlsplit(self.path).path).strip("/").partition("/")  # the bucket comes first
        return key

    def _reply(self, code: int, body: bytes = b"", *, etag: str = "", modified: str = "") -> None:
        self.send_response(code)
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path, port: int) -> None:
        self.objects = LocalBackend(directory)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client was killed during its request."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _listed(infos: list[ObjectInfo]) -> bytes:
    contents = "".join(
        f"<Contents><Key>{escape(info.key)}</Key><Size>{info.size_bytes}</Size><ETag>&quot;1&quot;</ETag>"
        f"<LastModified>{info.modified_at:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified></Contents>"
        for info in infos
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()


if __name__ == "__main__":
    _Server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
