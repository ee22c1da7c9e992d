"""Addresses of the services: their defaults from the environment, and a check of their form."""

from __future__ import annotations

import ipaddress
import os
import re

from shared.errors import InvalidInput

TRAINER_VARIABLE, INFERENCE_VARIABLE = "SOFTPROMPT_TRAINER", "SOFTPROMPT_INFERENCE"
GATEWAY_VARIABLE = "SOFTPROMPT_GATEWAY"
DEFAULT_TRAINER_PORT, DEFAULT_INFERENCE_PORT, DEFAULT_ROUTER_PORT, DEFAULT_GATEWAY_PORT = 50051, 50052, 50053, 8000
MAX_SOCKET_PATH_BYTES = 107
"""unix(7): a socket's address has 108 bytes for its path, including a final zero byte."""
_UNCHECKED = ("unix-abstract:", "vsock:", "xds:")
"""Prefixes of names without a port that gRPC resolves."""


def trainer_endpoint() -> str:
    """The trainer's address: `host:port`, or `dns:///name:port` to balance calls over all addresses of a name."""
    return os.environ.get(TRAINER_VARIABLE) or f"127.0.0.1:{DEFAULT_TRAINER_PORT}"


def inference_endpoint() -> str:
    """The inference service's address, as `trainer_endpoint`; or `store:URL`, for the replicas of a prompt store."""
    return os.environ.get(INFERENCE_VARIABLE) or f"127.0.0.1:{DEFAULT_INFERENCE_PORT}"


def check_endpoint(endpoint: str, field: str, port: int) -> None:
    """Raises InvalidInput for `field` if gRPC could never connect to the address; it would try until the deadline.
    `port` is for error texts. Valid are `host:port`, `[IPv6]:port`, `dns:///name:port`, `ipv4:a:1,b:2`, `ipv6:...` and
    `unix:path` (grpc.github.io, "Name Resolution").
    """
    if problem := _problem(endpoint, port):
        raise InvalidInput.of(field, f"{endpoint!r} is not an address of a service: {problem}")


def _problem(endpoint: str, port: int) -> str:
    if not endpoint.isprintable() or any(character.isspace() for character in endpoint):
        return "it contains a space or a control character"
    if endpoint.startswith(_UNCHECKED):
        return ""
    if endpoint.startswith("unix:"):
        return _socket_problem(endpoint.removeprefix("unix:"))
    if endpoint.startswith(("/", "./", "../", "~")):
        return f"a Unix socket is written unix:{endpoint}"
    scheme, separator, rest = endpoint.partition("://")
    if separator and scheme not in ("dns", "ipv4", "ipv6"):
        address = rest.partition("/")[0]
        example = f"{_host(address)}:{port}" if _address_problem(address, port) else address
        return f"leave out {scheme}://, as in {example}"
    kind, _, target = endpoint.partition(":")
    if kind == "dns":
        return _address_problem(re.sub("^//[^/]*/", "", target), port)
    if kind in ("ipv4", "ipv6"):
        addresses = target.removeprefix("///").split(",")
        return next((problem for address in addresses if (problem := _address_problem(address, port))), "")
    if "," in endpoint:
        return "several addresses are written ipv4:ADDRESS:PORT,ADDRESS:PORT, or as one name, dns:///NAME:PORT"
    return _address_problem(endpoint, port)


def _socket_problem(path: str) -> str:
    if not path.strip("/"):
        return "the path is missing, as in unix:/run/softprompt.socket"
    if path.startswith("//") and not path.startswith("///"):
        relative = f"a relative path is written unix:{path[2:]}"
        return f"unix:// needs an absolute path, as in unix:///run/softprompt.socket; {relative}"
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        return f"a socket's path can have at most {MAX_SOCKET_PATH_BYTES} bytes"
    return ""


def _address_problem(address: str, port: int) -> str:
    """What is wrong with `host:port` or `[IPv6]:port`; empty if nothing."""
    if "/" in address or "?" in address:
        return f"an address has no path, as in {re.split('[/?]', address)[0]}"
    if "@" in address:
        return "an address has no user name; a token is given with --token-file or SOFTPROMPT_TOKEN"
    bracketed = re.fullmatch(r"\[([^\]]*)\](.*)", address)
    if bracketed is None and address.count(":") > 1:
        return f"an IPv6 address is written in brackets, as in [::1]:{port}"
    if bracketed is not None and not _is_ipv6(bracketed[1]):
        return f"[{bracketed[1]}] is not an IPv6 address"
    host, separator, given = address.partition(":")
    if bracketed is not None:
        host, separator, given = f"[{bracketed[1]}]", bracketed[2][:1], bracketed[2][1:]
    if not separator and host.isdecimal():
        return f"the host is missing, as in 127.0.0.1:{host}"
    if not host:
        return f"the host is missing, as in 127.0.0.1:{given or port}"
    if not given or separator != ":":
        return f"the port is missing, as in {host}:{port}"
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 65536):
        return f"{given!r} is not a port: a number from 1 to 65535 is expected, as in {host}:{port}"
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _host(address: str) -> str:
    """The part before the port, for an example in an error."""
    host = re.sub(r":\d*$", "", address.rpartition("@")[2])
    return f"[{host}]" if ":" in host and not host.startswith("[") else host or "127.0.0.1"
