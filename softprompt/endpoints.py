"""The addresses of the services: from the environment, else on this machine; and whether a text can be one."""

from __future__ import annotations

import ipaddress
import os
import re

from shared.errors import InvalidInput

TRAINER_VARIABLE, INFERENCE_VARIABLE = "SOFTPROMPT_TRAINER", "SOFTPROMPT_INFERENCE"
DEFAULT_TRAINER_PORT, DEFAULT_INFERENCE_PORT = 50051, 50052
MAX_SOCKET_PATH_BYTES = 107
"""unix(7): a socket's address has 108 bytes for its path, the last one is zero."""
_UNCHECKED = ("unix-abstract:", "vsock:", "xds:")
"""Kinds of names that gRPC resolves and that have no port."""


def trainer_endpoint() -> str:
    """`host:port`, or `dns:///name:port` to go round all its addresses."""
    return os.environ.get(TRAINER_VARIABLE) or f"127.0.0.1:{DEFAULT_TRAINER_PORT}"


def inference_endpoint() -> str:
    """As `trainer_endpoint`."""
    return os.environ.get(INFERENCE_VARIABLE) or f"127.0.0.1:{DEFAULT_INFERENCE_PORT}"


def check_endpoint(endpoint: str, field: str, port: int) -> None:
    """Raises InvalidInput naming `field` for what gRPC could never reach, instead of trying until the deadline. `port`
    is for examples.

    Allowed are `host:port`, `[IPv6]:port`, `dns:///name:port`, `ipv4:a:1,b:2`, `ipv6:...` and `unix:path`; see
    grpc.github.io, "Name Resolution".
    """
    if problem := _problem(endpoint, port):
        raise InvalidInput.of(field, f"{endpoint!r} is no address of a service: {problem}")


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
        return f"leave out {scheme}://, as in {address if not _address_problem(address, port) else f'{_host(address)}:{port}'}"
    kind, _, target = endpoint.partition(":")
    if kind == "dns":
        return _address_problem(re.sub("^//[^/]*/", "", target), port)
    if kind in ("ipv4", "ipv6"):
        return next(
            filter(None, (_address_problem(address, port) for address in target.removeprefix("///").split(","))), ""
        )
    if "," in endpoint:
        return "several addresses are written ipv4:ADDRESS:PORT,ADDRESS:PORT, or as one name, dns:///NAME:PORT"
    return _address_problem(endpoint, port)


def _socket_problem(path: str) -> str:
    if not path.strip("/"):
        return "the path is missing, as in unix:/run/softprompt.socket"
    if path.startswith("//") and not path.startswith("///"):
        return f"unix:// needs an absolute path, as in unix:///run/softprompt.socket; a relative one is written unix:{path[2:]}"
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        return f"it is longer than the {MAX_SOCKET_PATH_BYTES} bytes that a socket's path may have"
    return ""


def _address_problem(address: str, port: int) -> str:
    """Of `host:port` or `[IPv6]:port`."""
    if "/" in address or "?" in address:
        return f"an address has no path, as in {re.split('[/?]', address)[0]}"
    if "@" in address:
        return "an address has no user name; a token is given with --token-file or SOFTPROMPT_TOKEN"
    bracketed = re.fullmatch(r"\[([^\]]*)\](.*)", address)
    if bracketed is None and address.count(":") > 1:
        return f"an IPv6 address is written in brackets, as in [::1]:{port}"
    if bracketed is not None and not _is_ipv6(bracketed[1]):
        return f"[{bracketed[1]}] is no IPv6 address"
    host, separator, given = (
        (f"[{bracketed[1]}]", bracketed[2][:1], bracketed[2][1:]) if bracketed else address.partition(":")
    )
    if not separator and host.isdecimal():
        return f"the host is missing, as in 127.0.0.1:{host}"
    if not host:
        return f"the host is missing, as in 127.0.0.1:{given or port}"
    if not given or separator != ":":
        return f"the port is missing, as in {host}:{port}"
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 65536):
        return f"{given!r} is no port: a number from 1 to 65535 is expected, as in {host}:{port}"
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _host(address: str) -> str:
    """The part before the port, for an example."""
    host = re.sub(r":\d*$", "", address.rpartition("@")[2])
    return f"[{host}]" if ":" in host and not host.startswith("[") else host or "127.0.0.1"
