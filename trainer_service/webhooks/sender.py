"""Signs and sends one delivery over HTTP, as the Standard Webhooks specification (standardwebhooks.com) describes.

Redirects are not followed, so only the configured URL gets the request. The answer's body is not read.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import SecretStr

from trainer_service.webhooks.endpoints import Endpoint, key_of

SEND_SECONDS = 10.0
"""Time limit of connecting, and then of the rest: a receiver that answers byte by byte gets no more."""
GONE = "HTTP status 410"
"""The receiver wants no more of these events: the delivery is not repeated."""
_attempt = threading.local()
"""`timer` of this thread's attempt: it ends the connection."""


class _Limited(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        held = self.sock.dup()  # TLS takes the socket itself away
        _attempt.timer = threading.Timer(SEND_SECONDS, _shut, [held])
        _attempt.timer.daemon, _attempt.held = True, held
        _attempt.timer.start()


class _LimitedTLS(http.client.HTTPSConnection, _Limited):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Limited, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_LimitedTLS, request, context=_TLS)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_TLS = ssl.create_default_context()
_OPENER = urllib.request.build_opener(_NoRedirects, _Handler)


def signature(secrets: Iterable[SecretStr], event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 of "id.timestamp.body" with each secret."""
    content = f"{event_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(key_of(secret), content, "sha256") for secret in secrets]
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def send(
    endpoint: Endpoint, event_id: str, body: bytes, on_retry_after: Callable[[float], None] = lambda seconds: None
) -> str:
    """Sends one event. Returns why it was not accepted; empty if it was (a status of 2xx). Blocks; raises nothing that
    the endpoint can cause. `on_retry_after` gets the seconds of the answer's Retry-After, if it has one.
    """
    now = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "softprompt-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(endpoint.secrets, event_id, now, body),
    }
    request, began = urllib.request.Request(endpoint.url, body, headers, method="POST"), time.monotonic()
    try:
        with _OPENER.open(request, timeout=SEND_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        if (seconds := _retry_after(error.headers.get("retry-after", ""), now)) is not None:
            on_retry_after(seconds)
        return f"HTTP status {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() - began >= SEND_SECONDS:
            return f"no answer within {SEND_SECONDS:g} s"
        if isinstance(error, urllib.error.URLError):
            return f"not reachable: {_shown(error.reason)}"
        return f"{type(error).__name__}: {_shown(error)}"
    finally:
        if (timer := vars(_attempt).pop("timer", None)) is not None:
            timer.cancel()
            _attempt.held.close()


def _retry_after(text: str, now: float) -> float | None:
    """Retry-After as seconds: a number, or a time; None if it is neither."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _shown(error: object) -> str:
    """The error's text without control characters, which the receiver could have sent."""
    return "".join(character if character.isprintable() else " " for character in str(error))
