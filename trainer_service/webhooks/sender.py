"""Signs and sends one delivery over HTTP, as the Standard Webhooks specification (standardwebhooks.com) describes.

Redirects are not followed, so only the configured URL gets the request. The answer's body is not read.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from pydantic import SecretStr

from trainer_service.webhooks.endpoints import Endpoint, key_of

SEND_SECONDS = 10.0
"""Time limit of connecting, and of each wait for the answer."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=ssl.create_default_context()))


def signature(secrets: Iterable[SecretStr], event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 of "id.timestamp.body" with each secret."""
    content = f"{event_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(key_of(secret), content, "sha256") for secret in secrets]
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def send(endpoint: Endpoint, event_id: str, body: bytes) -> str:
    """Sends one event. Returns why it was not accepted; empty if it was (a status of 2xx). Blocks; raises nothing that
    the endpoint can cause.
    """
    now = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "softprompt-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(endpoint.secrets, event_id, now, body),
    }
    request = urllib.request.Request(endpoint.url, body, headers, method="POST")
    try:
        with _OPENER.open(request, timeout=SEND_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP status {error.code}"
    except urllib.error.URLError as error:
        return f"not reachable: {_shown(error.reason)}"
    except TimeoutError:
        return f"no answer within {SEND_SECONDS:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {_shown(error)}"


def _shown(error: object) -> str:
    """The error's text without control characters, which the receiver could have sent."""
    return "".join(character if character.isprintable() else " " for character in str(error))
