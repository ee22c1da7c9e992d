"""Finds the proxy of a connection, and keeps proxies out of connections to loopback addresses.

A proxy can't reach the loopback addresses of the machine that calls it.

gRPC's C core reads `grpc_proxy`, `https_proxy` and `http_proxy`, and `no_grpc_proxy` or `no_proxy`, all in lower case
(see github.com/grpc/grpc/blob/master/doc/environment_variables.md). HTTP libraries also read the names in capitals, and
`all_proxy`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, MutableMapping

_GRPC_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_GRPC_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_PROXIES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@|^[^/@\s]*@")


def reach_loopback_directly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add the loopback addresses to `no_proxy` if a proxy is set, for this process and its children.

    Also to `no_grpc_proxy` if it replaces `no_proxy`, or if that has a `*`, which gRPC does not know.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    names = ["no_proxy", "NO_PROXY"]
    if environment.get("no_grpc_proxy") or any("*" in environment.get(name, "") for name in names):
        names.append("no_grpc_proxy")
    for name in names:
        known = environment.get(name) or environment.get("no_proxy") or environment.get("NO_PROXY") or ""
        entries = [entry.strip() for entry in known.split(",") if entry.strip()]
        if "*" not in entries or name == "no_grpc_proxy":
            environment[name] = ",".join(dict.fromkeys([*entries, *_LOOPBACK]))


def grpc_proxy(host: str, environment: Mapping[str, str] = os.environ) -> str:
    """The proxy of our gRPC channels for `host`, as `variable=value` without user and password; empty: none."""
    name = next((name for name in _GRPC_PROXIES if environment.get(name)), "")
    if not name:
        return ""
    exceptions = next((environment[found] for found in _GRPC_EXCEPTIONS if environment.get(found)), "")
    if any(_covers(entry.strip(), host.strip("[]")) for entry in exceptions.split(",") if entry.strip()):
        return ""
    return f"{name}={_USER_INFO.sub('***@', environment[name])}"


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` covers the host: names by suffix and addresses by network, as in gRPC, or `*`."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower().removeprefix("*"))
