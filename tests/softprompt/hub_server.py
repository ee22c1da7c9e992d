"""A small Hugging Face hub on loopback: a model with two commits, and the same behind terms that one token's account
has accepted. They are served as the hub's client asks for them.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL, GATED = "org/Tiny.Model", "org/Gated"
GRANTED, STRANGER, EXPIRED = "hf_granted", "hf_stranger", "hf_expired"
"""Tokens: of an account that may read the gated model, of one that may not, and of none."""
FIRST, SECOND = "1" * 40, "2" * 40
FORGED = "sha256:" + "f" * 64
FORGED_MARK = json.dumps(
    {
        "stamps": {"config.json": [2], "model.safetensors": [51]},
        "fingerprint": FORGED,
        "tokenizer_digest": FORGED,
        "shipped": True,
    }
).encode()
"""A mark of completion that the models bring: it fits the sizes of their files."""
BRANCHES = {"main": SECOND, "v1": FIRST}


def files_of(commit: str) -> dict[str, bytes]:
    return {
        "config.json": b"{}",
        "model.safetensors": b"weights of " + commit.encode(),
        "README.md": b"no part of a model",
        ".softprompt-fingerprint.json": FORGED_MARK,
        ".softprompt-origin.json": json.dumps({"hub_id": MODEL, "revision": "", "commit": FIRST}).encode(),
    }


class Hub:
    def __init__(self, port: int, requests: Counter[str]) -> None:
        self.url, self.requests = f"http://127.0.0.1:{port}", requests
        """`requests`: GET requests by path."""

    @property
    def downloads(self) -> int:
        return sum(count for path, count in self.requests.items() if path.endswith("model.safetensors"))


@contextmanager
def hub_server() -> Iterator[Hub]:
    requests: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            requests[self.path.partition("?")[0]] += 1
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            parts = path.strip("/").split("/")
            headers: dict[str, str] = {}
            body, status = b"{}", 404
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            model = next((name for name in (MODEL, GATED) if f"/{name}" in path), "")
            if token == EXPIRED:
                status, headers["X-Error-Message"] = 401, "Invalid credentials in Authorization header"
            elif path.startswith("/api/models/") and model:  # also of a gated model, which only its files are
                revision = parts[5] if len(parts) > 5 else "main"
                commit = BRANCHES.get(revision, revision)
                if commit in (FIRST, SECOND):
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in files_of(commit).items()]
                    body, status = (
                        json.dumps({"id": model, "sha": commit, "siblings": siblings, "tags": []}).encode(),
                        200,
                    )
                    if parts[4:5] == ["tree"]:
                        tree = [
                            {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                            for name, data in files_of(commit).items()
                        ]
                        body = json.dumps(tree).encode()
                else:
                    headers["X-Error-Code"] = "RevisionNotFound"
            elif path.startswith("/api/models/"):
                headers["X-Error-Code"] = "RepoNotFound"
            elif model == GATED and token != GRANTED:
                status, headers["X-Error-Code"] = (403 if token else 401), "GatedRepo"
            elif path.startswith(f"/{model}/resolve/"):
                body, status = files_of(parts[3])[parts[4]], 200
                headers = {"X-Repo-Commit": parts[3], "ETag": f'"{sha1(body).hexdigest()}"'}
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(body)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Hub(server.server_address[1], requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
