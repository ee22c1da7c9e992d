"""The line of `softprompt doctor` about the gateway."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from softprompt.endpoints import GATEWAY_VARIABLE
from softprompt.extras import missing_packages
from softprompt.local.machine_checks import Finding

_SECONDS = 5.0
_MAX_BYTES = 1 << 22
_PORTS = "ss -ltnp names the program; --gateway-port of softprompt up and --gateway here choose another address"


def gateway_finding(url: str) -> Finding:
    """Whether the gateway answers at `url`, is ready and has this version. Its absence is no problem, because only the
    page and the HTTP API need it.
    """
    url = url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        fix = f"--gateway http://HOST:PORT, or {GATEWAY_VARIABLE}"
        return Finding("gateway", f"{url[:200]!r} does not begin with http:// or https://", True, fix)
    try:
        title, theirs = _described(url)
    except (OSError, http.client.HTTPException, LookupError, TypeError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if not isinstance(reason, ConnectionRefusedError):
            return Finding("gateway", f"no gateway answers at {url}: {str(reason)[:200]!r}", True, _PORTS)
        if missing_packages("gateway"):
            return Finding("gateway", "not installed", fix="pip install 'softprompt[gateway]' for the page and HTTP")
        return Finding("gateway", f"none at {url}", fix="softprompt up or softprompt gateway starts it")
    if title != "softprompt gateway":
        return Finding("gateway", f"another program answers at {url}", True, _PORTS)
    if not _is_ready(url):
        fix = "start the inference service; the gateway's log has the address that it tries"
        return Finding("gateway", f"{url} waits for the inference service", True, fix)
    fix = f"pip install softprompt=={theirs}, or upgrade the gateway" if theirs != version("softprompt") else ""
    return Finding("gateway", f"{url}, softprompt {theirs}, ready", fix=fix)


def _opened(url: str) -> Any:
    """The response, without a proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_SECONDS)


def _described(url: str) -> tuple[str, str]:
    """Title and version of the HTTP API. Raises OSError, HTTPException, LookupError, TypeError or ValueError."""
    with _opened(f"{url}/openapi.json") as response:
        info = json.loads(response.read(_MAX_BYTES))["info"]
    return str(info["title"]), str(info["version"])


def _is_ready(url: str) -> bool:
    with suppress(OSError, http.client.HTTPException), _opened(f"{url}/readyz"):
        return True
    return False
