"""An issuer of JSON Web Tokens on this machine, with keys that tests rotate."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, AUDIENCE = "https://issuer.example", "softprompt"


class Issuer:
    """Signs tokens, and serves its public keys at `url`."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.num_fetches = 0
        self.is_away = False
        self._answers = threading.Event()
        self._answers.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.num_fetches += 1
                issuer._answers.wait()
                body = json.dumps(issuer.key_set()).encode()
                self.send_response(503 if issuer.is_away else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.add_key("k1")

    def add_key(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def hold(self) -> None:
        """Accept requests for keys and answer none until `release`."""
        self._answers.clear()

    def release(self) -> None:
        self._answers.set()

    def key_set(self) -> dict[str, Any]:
        algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
        keys = [
            {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]
        return {"keys": keys}

    def token(self, kid: str = "k1", key: Any = None, algorithm: str = "ES256", **claims: Any) -> str:
        content = {
            "sub": "ann",
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": time.time() + 600,
            "groups": ["shop-team", 7],
            **claims,
        }
        content = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(content, key or self.keys[kid], algorithm=algorithm, headers={"kid": kid})

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
